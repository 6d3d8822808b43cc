"""The mouse and the tablet: their reports as a driver reads them, and what can be said to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from struct import unpack

import pytest

from usbvfiod_core.errors import ConfigError, DeviceError
from usbvfiod_core.options import from_text
from usbvfiod_core.testing.device_bench import DeviceBench
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.transfer import TransferStatus, TransferType
from usbvfiod_core.virtual.hid import MAX_REPORTS
from usbvfiod_core.virtual.options import SlowOptions
from usbvfiod_core.virtual.pointer import MOST, MOUSE_REPORT, TABLET_REPORT, Mouse, Pointer, Tablet, open_tablet


class Desk:
    """A pointer and the driver that reads it."""

    def __init__(self, kind: type[Mouse] | type[Tablet]) -> None:
        self.loop = StepLoop()
        self.pointer = kind(self.loop)
        self.bench = DeviceBench(self.pointer, self.loop, submit_limit=2.0)
        self.bench.control(SetupPacket(0x00, 9, 1, 0, 0), b"")

    def reports(self) -> list[bytes]:
        """The reports that are there now."""
        found: list[bytes] = []
        while True:
            transfer = self.bench.submit(0x81, TransferType.INTERRUPT, 8)
            if transfer.status is None:
                self.bench.cancel(transfer)
                return found
            assert transfer.status is TransferStatus.COMPLETED
            found.append(transfer.data)

    def say(self, *words: str) -> None:
        assert self.pointer.command(words) == ""


@pytest.fixture
def mouse() -> Iterator[Desk]:
    desk = Desk(Mouse)
    yield desk
    desk.bench.close()


@pytest.fixture
def tablet() -> Iterator[Desk]:
    desk = Desk(Tablet)
    yield desk
    desk.bench.close()


# -- the mouse ---------------------------------------------------------------------------------------------------------


def test_a_mouse_moves_by_steps(mouse: Desk) -> None:
    mouse.say("move", "3", "-2")
    assert mouse.reports() == [bytes((0, 3, 0xFE, 0))]


@pytest.mark.parametrize(("x", "y"), [(1000, 1), (-300, 300), (127, -128), (0, 0), (5, -1000), (MOST, MOST)])
def test_a_long_way_is_several_reports_in_a_straight_line(mouse: Desk, x: int, y: int) -> None:
    mouse.pointer.command(("move", str(x), str(y)))
    at_x = at_y = 0
    reports = mouse.reports()
    for number, report in enumerate(reports, 1):
        _, step_x, step_y, _ = unpack("<Bbbb", report)
        at_x, at_y = at_x + step_x, at_y + step_y
        assert abs(at_x - x * number / len(reports)) <= 1
        assert abs(at_y - y * number / len(reports)) <= 1
    assert (at_x, at_y) == (x, y)
    assert len(reports) == -(-max(abs(x), abs(y)) // 127)


def test_buttons_stay_pressed_while_it_moves(mouse: Desk) -> None:
    mouse.say("press", "left", "middle")
    mouse.say("move", "1", "1")
    mouse.say("release", "left")
    mouse.say("release")
    assert [report[0] for report in mouse.reports()] == [5, 5, 4, 0]


def test_a_click(mouse: Desk) -> None:
    mouse.say("click")
    mouse.say("click", "right")
    assert mouse.reports() == [bytes((bits, 0, 0, 0)) for bits in (1, 0, 2, 0)]


def test_the_wheel(mouse: Desk) -> None:
    mouse.say("scroll", "2")
    mouse.say("scroll", "-130")
    assert [unpack("<Bbbb", report)[3] for report in mouse.reports()] == [2, -127, -3]


def test_firmware_reads_the_boot_report(mouse: Desk) -> None:
    interface = mouse.pointer.configurations[0].interfaces[0]
    assert (interface.class_code, interface.subclass, interface.protocol) == (3, 1, 2)


# -- the tablet --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "y", "place"),
    [("0", "0", (0, 0)), ("1", "1", (0x7FFF, 0x7FFF)), ("0.5", "0.25", (16384, 8192)), ("1e-9", "1.0", (0, 0x7FFF))],
)
def test_a_tablet_points_to_a_place(tablet: Desk, x: str, y: str, place: tuple[int, int]) -> None:
    tablet.say("move", x, y)
    assert [unpack("<BHHb", report) for report in tablet.reports()] == [(0, *place, 0)]


def test_it_stays_there(tablet: Desk) -> None:
    tablet.say("move", "1", "0")
    tablet.say("click", "extra")
    tablet.say("scroll", "-1")
    assert [unpack("<BHHb", report) for report in tablet.reports()] == [
        (0, 0x7FFF, 0, 0),
        (16, 0x7FFF, 0, 0),
        (0, 0x7FFF, 0, 0),
        (0, 0x7FFF, 0, -1),
    ]


@pytest.mark.parametrize("place", [("1.01", "0"), ("0", "-0.1"), ("nan", "0"), ("inf", "0")])
def test_places_there_are_not(tablet: Desk, place: tuple[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"the place .* is outside the screen; X and Y are from 0 \(left, top\) to 1"):
        tablet.pointer.command(("move", *place))
    assert tablet.reports() == []


# -- both --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Mouse, Tablet])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("jump",),
            r"Mouse understands: move X Y; click \[BUTTON\]; press \[BUTTON...\]; release .*; scroll LINES$",
        ),
        (("move", "1"), "Mouse understands: move X Y$"),
        (("move", "1", "2", "3"), "Mouse understands: move X Y$"),
        (("move", "left", "2"), "'left' is not a "),
        (("scroll", "1.5"), "'1.5' is not a whole number"),
        (("click", "fourth"), "there is no button 'fourth'; there are left, right, middle, side, extra"),
        (("press", "left", "thumb"), "there is no button 'thumb'"),
        (("scroll", str(MOST + 1)), "too many at once"),
    ],
)
def test_what_it_does_not_understand(kind: type[Pointer], words: tuple[str, ...], message: str) -> None:
    pointer = kind(StepLoop())
    with pytest.raises(ConfigError, match=message.replace("Mouse", pointer.product)):
        pointer.command(words)
    assert pointer.buttons == 0


def test_it_says_what_it_understands() -> None:
    assert Mouse(StepLoop()).command(()).startswith("usbvfiod Mouse understands: move X Y; click [BUTTON]; ")


def test_a_driver_that_does_not_read(mouse: Desk) -> None:
    for _ in range(MAX_REPORTS):
        mouse.say("move", "1", "0")
    actions: list[Callable[[], object]] = [
        lambda: mouse.say("move", "1", "0"),
        lambda: mouse.say("press"),
        lambda: mouse.say("click"),
        lambda: mouse.say("scroll", "1"),
    ]
    for action in actions:
        with pytest.raises(DeviceError, match="reports already wait"):
            action()
    assert isinstance(mouse.pointer, Mouse)
    assert mouse.pointer.buttons == 0


def test_a_button_that_is_held_is_told_to_a_driver_that_begins() -> None:
    loop = StepLoop()
    tablet = Tablet(loop)
    tablet.move(1, 1)
    tablet.press("right")
    bench = DeviceBench(tablet, loop, submit_limit=2.0)
    bench.control(SetupPacket(0x00, 9, 1, 0, 0), b"")
    transfer = bench.submit(0x81, TransferType.INTERRUPT, 8)
    assert unpack("<BHHb", transfer.data) == (2, 0x7FFF, 0x7FFF, 0)
    bench.close()


@pytest.mark.parametrize(("descriptor", "size"), [(MOUSE_REPORT, Mouse.report_length), (TABLET_REPORT, 6)])
def test_the_report_descriptor_describes_the_report(descriptor: bytes, size: int) -> None:
    bits = bits_each = count = depth = place = 0
    while place < len(descriptor):
        item = descriptor[place]
        length = (0, 1, 2, 4)[item & 3]
        value = int.from_bytes(descriptor[place + 1 : place + 1 + length], "little")
        place += 1 + length
        bits_each = value if item & 0xFC == 0x74 else bits_each
        count = value if item & 0xFC == 0x94 else count
        bits += bits_each * count if item & 0xFC == 0x80 else 0
        depth += {0xA0: 1, 0xC0: -1}.get(item & 0xFC, 0)
    assert (bits, depth) == (8 * size, 0)


def test_options() -> None:
    assert open_tablet(from_text(SlowOptions, {"speed": "high", "serial": "T1"}), StepLoop()).serial == "T1"
    with pytest.raises(ConfigError, match="there is no option 'size'"):
        open_tablet(from_text(SlowOptions, {"size": "1"}), StepLoop())
