"""The keyboard: reports, text, LEDs, idle rate, protocols, remote wake-up."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from usbvfiod_core.errors import ConfigError, DeviceError
from usbvfiod_core.options import from_text
from usbvfiod_core.testing.device_bench import DeviceBench, WatchedTransfer
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb.descriptors import HID, HID_REPORT, parse_hid
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.speed import Speed
from usbvfiod_core.usb.transfer import TransferStatus, TransferType
from usbvfiod_core.virtual.hid import MAX_REPORTS
from usbvfiod_core.virtual.keyboard import LEDS, REPORT_DESCRIPTOR, Keyboard, open_keyboard
from usbvfiod_core.virtual.options import SlowOptions

NOTHING = bytes(8)


class Desk:
    """A keyboard and the driver that reads it."""

    def __init__(self) -> None:
        self.loop = StepLoop()
        self.keyboard = Keyboard(self.loop)
        self.bench = DeviceBench(self.keyboard, self.loop, submit_limit=2.0)

    def configure(self, idle: int | None = 0) -> None:
        assert self.set(0x00, 9, 1)
        if idle is not None:
            assert self.set(0x21, 0x0A, idle << 8)

    def set(self, kind: int, request: int, value: int = 0, data: bytes = b"", index: int = 0) -> bool:
        transfer = self.bench.control(SetupPacket(kind, request, value, index, len(data)), data)
        return transfer.status is TransferStatus.COMPLETED

    def get(self, kind: int, request: int, value: int = 0, length: int = 64, index: int = 0) -> bytes | None:
        transfer = self.bench.control(SetupPacket(kind, request, value, index, length))
        return transfer.data if transfer.status is TransferStatus.COMPLETED else None

    def poll(self, length: int = 8) -> WatchedTransfer:
        return self.bench.submit(0x81, TransferType.INTERRUPT, length)

    def reports(self) -> list[bytes]:
        """The reports that are there now."""
        found: list[bytes] = []
        for _ in range(1000):
            transfer = self.poll()
            if transfer.status is None:
                self.bench.cancel(transfer)
                return found
            assert transfer.status is TransferStatus.COMPLETED
            found.append(transfer.data)
        raise AssertionError("the keyboard never ends")


@pytest.fixture
def desk() -> Iterator[Desk]:
    desk = Desk()
    yield desk
    desk.bench.close()


def keys(*usages: int, modifiers: int = 0) -> bytes:
    return bytes((modifiers, 0, *usages)).ljust(8, b"\0")


# -- keys --------------------------------------------------------------------------------------------------------------


def test_press_and_release(desk: Desk) -> None:
    desk.configure()
    transfer = desk.poll()
    assert transfer.completions == 0
    desk.keyboard.press("a")
    assert (transfer.status, transfer.data) == (TransferStatus.COMPLETED, keys(0x04))
    desk.keyboard.press("b", "shift")
    desk.keyboard.release("a")
    desk.keyboard.release()
    assert desk.reports() == [keys(4, 5, modifiers=2), keys(5, modifiers=2), NOTHING]


def test_a_key_held_is_pressed_once(desk: Desk) -> None:
    desk.configure()
    desk.keyboard.press("a")
    desk.keyboard.press("a")
    desk.keyboard.release("a")
    assert desk.reports() == [keys(4), keys(4), NOTHING]


def test_more_than_six_keys_roll_over(desk: Desk) -> None:
    desk.configure()
    desk.keyboard.press(*"abcdef")
    desk.keyboard.press("g", "ctrl")
    desk.keyboard.release("a")
    assert desk.reports() == [
        keys(4, 5, 6, 7, 8, 9),
        keys(1, 1, 1, 1, 1, 1, modifiers=1),
        keys(5, 6, 7, 8, 9, 10, modifiers=1),
    ]


def test_all_modifiers(desk: Desk) -> None:
    desk.configure()
    names = ["ctrl", "shift", "alt", "gui", "rightctrl", "rightshift", "rightalt", "rightgui"]
    for name in names:
        desk.keyboard.press(name)
    assert [report[0] for report in desk.reports()] == [1, 3, 7, 15, 31, 63, 127, 255]


@pytest.mark.parametrize(
    ("key", "usage"),
    [("enter", 0x28), ("f1", 0x3A), ("f12", 0x45), ("f13", 0x68), ("f24", 0x73), ("up", 0x52), ("/", 0x38)],
)
def test_named_keys(desk: Desk, key: str, usage: int) -> None:
    desk.configure()
    desk.keyboard.press(key)
    assert desk.reports() == [keys(usage)]


def test_typing(desk: Desk) -> None:
    desk.configure()
    desk.keyboard.type("Hi, ll!\n")
    pressed = desk.reports()
    assert pressed[1::2] == [NOTHING] * 8
    assert pressed[::2] == [
        keys(0x0B, modifiers=2),
        keys(0x0C),
        keys(0x36),
        keys(0x2C),
        keys(0x0F),
        keys(0x0F),
        keys(0x1E, modifiers=2),
        keys(0x28),
    ]


def test_every_printable_character_has_a_key_of_its_own(desk: Desk) -> None:
    desk.configure()
    text = "".join(chr(code) for code in range(0x20, 0x7F)) + "\n\t"
    desk.keyboard.type(text)
    pressed = [report for report in desk.reports() if report != NOTHING]
    assert len(set(pressed)) == len(text)


def test_typing_while_a_modifier_is_held(desk: Desk) -> None:
    desk.configure()
    desk.keyboard.press("ctrl")
    desk.keyboard.type("cX")
    assert [report[0] for report in desk.reports()] == [1, 1, 1, 3, 1]


def test_keys_there_are_not(desk: Desk) -> None:
    desk.configure()
    with pytest.raises(ConfigError, match=r"there is no key 'hyper'; keys are characters .*ctrl, .*enter"):
        desk.keyboard.press("a", "hyper")
    with pytest.raises(ConfigError, match="a US keyboard has no key for 'é'"):
        desk.keyboard.type("café")
    assert desk.reports() == []


def test_a_driver_that_does_not_read(desk: Desk) -> None:
    desk.configure()
    desk.keyboard.type("x" * (MAX_REPORTS // 2))
    actions: list[Callable[[], object]] = [
        lambda: desk.keyboard.type("yy"),
        lambda: desk.keyboard.press("y"),
        lambda: desk.keyboard.release(),
    ]
    for action in actions:
        with pytest.raises(DeviceError, match=f"{MAX_REPORTS} of {MAX_REPORTS} reports already wait"):
            action()
    assert desk.poll().data == keys(0x1B)
    desk.keyboard.release()


def test_a_pause_would_show_while_a_key_is_down_that_is_already_let_go_of(desk: Desk) -> None:
    keyboard = desk.keyboard
    desk.configure()
    keyboard.press("shift")
    assert desk.reports() == [keys(modifiers=2)]
    assert not keyboard.is_midway()  # its user holds it
    keyboard.release()
    assert keyboard.is_midway()
    assert desk.reports() == [keys()]
    keyboard.type("ab")
    seen = []
    for _ in range(4):
        seen.append(keyboard.is_midway())
        desk.poll()
    assert seen == [False, True, False, True]
    assert not keyboard.is_midway()
    keyboard.tap("a")
    desk.poll()
    desk.configure()
    assert not keyboard.is_midway()


def test_before_it_is_configured_only_what_is_held_counts(desk: Desk) -> None:
    desk.keyboard.type("lost")
    desk.keyboard.press("a")
    desk.configure()
    assert desk.reports() == [keys(4)]
    desk.bench.reset()
    desk.keyboard.release()
    desk.configure()
    assert desk.reports() == []


# -- class requests ----------------------------------------------------------------------------------------------------


def test_descriptors(desk: Desk) -> None:
    hid = desk.get(0x81, 6, HID << 8)
    assert hid is not None
    assert parse_hid(hid) == [(HID_REPORT, len(REPORT_DESCRIPTOR))]
    assert desk.get(0x81, 6, HID_REPORT << 8, 255) == REPORT_DESCRIPTOR
    assert desk.get(0x81, 6, 0x2300) is None
    assert desk.get(0x81, 6, HID_REPORT << 8, index=1) is None
    interface = desk.keyboard.configurations[0].interfaces[0]
    assert (interface.class_code, interface.subclass, interface.protocol, interface.extra) == (3, 1, 1, hid)


def test_the_report_descriptor_describes_the_boot_report() -> None:
    """Walk its items: eight bytes in, one byte out."""
    bits, size, count, place = {0x80: 0, 0x90: 0}, 0, 0, 0
    depth = 0
    while place < len(REPORT_DESCRIPTOR):
        item = REPORT_DESCRIPTOR[place]
        length = (0, 1, 2, 4)[item & 3]
        value = int.from_bytes(REPORT_DESCRIPTOR[place + 1 : place + 1 + length], "little")
        place += 1 + length
        if item & 0xFC == 0x74:
            size = value
        elif item & 0xFC == 0x94:
            count = value
        elif item & 0xFC in bits:
            bits[item & 0xFC] += size * count
        depth += {0xA0: 1, 0xC0: -1}.get(item & 0xFC, 0)
    assert (bits, depth) == ({0x80: 64, 0x90: 8}, 0)


def test_get_report(desk: Desk) -> None:
    desk.configure()
    desk.keyboard.press("z", "alt")
    assert desk.get(0xA1, 1, 0x0100, 8) == keys(0x1D, modifiers=4)
    desk.set(0x21, 9, 0x0200, b"\2")
    assert desk.get(0xA1, 1, 0x0200, 8) == b"\2"
    assert desk.get(0xA1, 1, 0x0300, 8) is None
    assert desk.get(0xA1, 1, 0x0101, 8) is None


def test_leds(desk: Desk) -> None:
    desk.configure()
    seen: list[int] = []
    desk.keyboard.on_leds = seen.append
    for value in (2, 2, 0xE3, 0):
        assert desk.set(0x21, 9, 0x0200, bytes((value,)))
    assert seen == [2, 3, 0]
    assert desk.keyboard.leds == 0
    assert LEDS["capslock"] == 2
    assert not desk.set(0x21, 9, 0x0200, b"")
    assert not desk.set(0x21, 9, 0x0100, b"\1")
    assert desk.set(0x21, 9, 0x0200, b"\4")
    desk.bench.reset()
    assert seen == [2, 3, 0, 4, 0]


def test_protocol(desk: Desk) -> None:
    desk.configure()
    assert desk.get(0xA1, 3, 0, 1) == b"\1"
    assert desk.set(0x21, 0x0B, 0)
    assert desk.get(0xA1, 3, 0, 1) == b"\0"
    desk.keyboard.press("a")
    assert desk.reports() == [keys(4)]
    assert not desk.set(0x21, 0x0B, 2)
    desk.bench.reset()
    desk.configure()
    assert desk.get(0xA1, 3, 0, 1) == b"\1"


@pytest.mark.parametrize(("kind", "request_"), [(0xA1, 0x04), (0x21, 0x08), (0xC0, 0x01), (0x40, 0x09)])
def test_other_requests_stall(desk: Desk, kind: int, request_: int) -> None:
    desk.configure()
    assert desk.get(kind, request_) is None if kind & 0x80 else not desk.set(kind, request_)


def test_class_requests_need_a_configuration(desk: Desk) -> None:
    assert desk.get(0xA1, 3, 0, 1) is None
    assert not desk.set(0x21, 0x0A, 0)


# -- idle rate (HID 1.11 7.2.4) ----------------------------------------------------------------------------------------


def test_idle_zero_reports_changes_only(desk: Desk) -> None:
    desk.configure(idle=0)
    desk.keyboard.press("a")
    desk.reports()
    transfer = desk.poll()
    desk.loop.advance(3600)
    assert transfer.status is None
    assert desk.get(0xA1, 2, 0, 1) == b"\0"


def test_an_unchanged_report_is_repeated_at_the_idle_rate(desk: Desk) -> None:
    desk.configure(idle=25)  # 100 ms
    desk.keyboard.press("a")
    assert desk.poll().data == keys(4)
    for _ in range(3):
        transfer = desk.poll()
        desk.loop.advance(0.08)
        assert transfer.status is None
        desk.loop.advance(0.021)
        assert transfer.data == keys(4)


def test_a_change_begins_the_idle_time_anew(desk: Desk) -> None:
    desk.configure(idle=25)
    desk.keyboard.press("a")
    desk.poll()
    desk.loop.advance(0.09)
    desk.keyboard.release()
    assert desk.poll().data == NOTHING
    transfer = desk.poll()
    desk.loop.advance(0.09)
    assert transfer.status is None
    desk.loop.advance(0.02)
    assert transfer.data == NOTHING


def test_a_driver_that_does_not_poll_costs_no_timers(desk: Desk) -> None:
    desk.configure(idle=1)
    desk.keyboard.press("a")
    desk.poll()
    fired: list[float] = []
    desk.loop.call_later(3600, lambda: fired.append(desk.loop.time()))
    assert desk.loop.run_until(lambda: bool(fired), 4000)
    assert desk.poll().data == keys(4)  # the one repetition that was due
    assert desk.poll().status is None


def test_the_rate_after_a_reset_is_500_ms(desk: Desk) -> None:
    desk.configure(idle=None)
    assert desk.get(0xA1, 2, 0, 1) == bytes((125,))
    desk.keyboard.press("a")
    desk.poll()
    transfer = desk.poll()
    desk.loop.advance(0.49)
    assert transfer.status is None
    desk.loop.advance(0.02)
    assert transfer.data == keys(4)


def test_closing_ends_the_timer(desk: Desk) -> None:
    desk.configure(idle=25)
    desk.keyboard.press("a")
    desk.poll()
    waiting = desk.poll()
    desk.keyboard.close()
    assert waiting.status is TransferStatus.DISCONNECTED
    desk.loop.advance(10)
    assert waiting.completions == 1
    desk.keyboard.press("b")


# -- the rest ----------------------------------------------------------------------------------------------------------


def test_a_transfer_that_is_too_small_babbles(desk: Desk) -> None:
    desk.configure()
    desk.keyboard.press("a")
    transfer = desk.poll(4)
    assert (transfer.status, transfer.data) == (TransferStatus.BABBLE, keys(4)[:4])


def test_a_key_wakes_the_driver_if_that_was_enabled(desk: Desk) -> None:
    desk.configure()
    desk.keyboard.press("a")
    assert desk.bench.events.wakeups == 0
    desk.set(0x00, 3, 1)
    desk.keyboard.press("b")
    assert desk.bench.events.wakeups == 1


def test_options() -> None:
    loop = StepLoop()
    assert open_keyboard(from_text(SlowOptions, {}), loop).speed is Speed.FULL
    keyboard = open_keyboard(from_text(SlowOptions, {"speed": "high", "serial": "K1"}), loop)
    assert (keyboard.speed, keyboard.serial, keyboard.name) == (Speed.HIGH, "K1", "usbvfiod Keyboard")
    with pytest.raises(ConfigError, match="speed is one of full, high"):
        open_keyboard(from_text(SlowOptions, {"speed": "super"}), loop)
    with pytest.raises(ConfigError, match=r"there is no option 'layout' \(there are: fault, serial, speed\)"):
        open_keyboard(from_text(SlowOptions, {"layout": "de"}), loop)
    loop.close()
