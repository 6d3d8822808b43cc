"""A device that ignores a cancellation answers late: what it writes then does not reach the guest's memory."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.xhci.kit import BULK_IN, USBCMD, USBSTS, Rig, codes, of_type, reg, spec
from usbvfiod_core.testing.client import VfioUserClient
from usbvfiod_core.testing.driver import GuestDriver
from usbvfiod_core.testing.fake_device import INTERRUPT_IN, FakeDevice
from usbvfiod_core.testing.limits import PATIENCE
from usbvfiod_core.testing.memory import GuestRam
from usbvfiod_core.testing.served import ServedController
from usbvfiod_core.usb.transfer import Transfer, TransferStatus
from usbvfiod_core.xhci.controller import HALT_SECONDS
from usbvfiod_core.xhci.engine import CANCEL_TIMEOUT
from usbvfiod_core.xhci.remapping import REMAP_SECONDS

LENGTH = 5000
OWN = b"the guest's" * 500


def command(type: int, **rest: int) -> Callable[[Rig], Callable[[], bool]]:
    def begin(rig: Rig) -> Callable[[], bool]:
        dci = rig.bulk_in.dci if type == spec.TRB_STOP_ENDPOINT else 0
        rig.submit_command(type, dci=dci, **rest)

        def answered() -> bool:
            return any(
                each.completion_code == spec.CC_SUCCESS for each in of_type(rig.events(), spec.TRB_COMMAND_COMPLETION)
            )

        return answered

    return begin


def unplug(rig: Rig) -> Callable[[], bool]:
    rig.bus.unplug(rig.port_id)
    return command(spec.TRB_DISABLE_SLOT)(rig)


def hcrst(rig: Rig) -> Callable[[], bool]:
    rig.bus.write(USBCMD, spec.USBCMD_HCRST)
    return lambda: not rig.usbsts & spec.USBSTS_CNR


def halt(rig: Rig) -> Callable[[], bool]:
    rig.bus.write(USBCMD, spec.USBCMD_INTE)
    rig.bus.pause(HALT_SECONDS)
    assert rig.usbsts & spec.USBSTS_HCH
    return lambda: True


def host_system_error(rig: Rig) -> Callable[[], bool]:
    rig.bus.write(reg.OPERATIONAL_BASE + spec.DCBAAP, 0xDEAD_0000, 8)
    rig.submit_command(spec.TRB_EVALUATE_CONTEXT)
    assert rig.bus.read(USBSTS) & spec.USBSTS_HSE
    return lambda: True


def device_reset(rig: Rig) -> Callable[[], bool]:
    done: list[bool] = []
    rig.controller.reset(lambda: done.append(True))
    return lambda: bool(done)


def dma_unmap(rig: Rig) -> Callable[[], bool]:
    done: list[bool] = []
    rig.controller.quiesce(0, 1 << 64, lambda: done.append(True))
    return lambda: bool(done)


def failing_neighbour(rig: Rig) -> Callable[[], bool]:
    """The TD in front of it fails: the endpoint halts."""
    rig.device.answers(BULK_IN, TransferStatus.STALL)
    return lambda: spec.CC_STALL in codes(rig.events())


WAYS = {
    "Stop Endpoint": command(spec.TRB_STOP_ENDPOINT),
    "Configure Endpoint": command(spec.TRB_CONFIGURE_ENDPOINT, flags=spec.TRB_DC),
    "Disable Slot": command(spec.TRB_DISABLE_SLOT),
    "Reset Device": command(spec.TRB_RESET_DEVICE),
    "unplugged": unplug,
    "halt by an error": failing_neighbour,
    "RS=0": halt,
    "HSE": host_system_error,
    "HCRST": hcrst,
    "DEVICE_RESET": device_reset,
    "DMA_UNMAP": dma_unmap,
}


class Late:
    """Everything with which a device can still write to its windows: slices, their addresses, the kernel."""

    def __init__(self, transfer: Transfer) -> None:
        self.transfer = transfer
        self.slices = [window[1:] for window in transfer.windows]
        self.pins = [ctypes.c_char.from_buffer(window) for window in transfer.windows]
        self.file = os.memfd_create("late")
        os.write(self.file, b"L" * LENGTH)

    def write(self) -> None:
        os.preadv(self.file, self.transfer.windows, 0)
        for window in self.slices:
            window[:] = b"M" * len(window)
        for pin in self.pins:
            ctypes.memset(ctypes.addressof(pin), ord("N"), 1)
        self.transfer.write(b"O" * LENGTH)
        self.transfer.complete(TransferStatus.COMPLETED, LENGTH)

    def close(self) -> None:
        os.close(self.file)


class Kept:
    """A transfer that the device keeps, with a buffer that begins and ends in the middle of pages."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        rig.device.cancels = False
        self.pages = rig.ram.allocate(3 * 4096, align=4096)
        self.buffer = self.pages + 2000
        rig.bulk_in.submit(length=8)  # another one in front
        rig.bulk_in.submit(length=LENGTH, buffer=self.buffer)
        self.late = Late(rig.device.held[BULK_IN][1])

    def close(self) -> None:
        self.late.close()


@pytest.fixture
def kept(rig: Rig) -> Iterator[Kept]:
    kept = Kept(rig)
    yield kept
    kept.close()


@pytest.mark.parametrize("way", WAYS)
def test_a_late_answer_is_lost(rig: Rig, kept: Kept, way: str) -> None:
    rig.events()
    answered = WAYS[way](rig)
    rig.bus.pause(CANCEL_TIMEOUT * 1.1)
    assert answered()
    rig.ram.write(kept.buffer, OWN[:LENGTH])  # the guest's again
    kept.late.write()
    rig.bus.run()
    assert rig.ram.read(kept.buffer, LENGTH) == OWN[:LENGTH]


@pytest.mark.parametrize("way", [way for way in WAYS if way not in ("RS=0", "HSE")])
def test_until_it_is_answered_the_device_may_write(rig: Rig, kept: Kept, way: str) -> None:
    """What is in time arrives: nothing is taken away earlier than it has to be. Of RS=0 and HSE the guest is told at
    once, or nearly."""
    rig.events()
    answered = WAYS[way](rig)
    rig.bus.pause(CANCEL_TIMEOUT * 0.9)
    assert not answered()
    kept.late.write()
    assert rig.ram.read(kept.buffer, LENGTH) == b"O" * LENGTH


def test_what_another_endpoint_has_in_the_same_page_is_not_lost(rig: Rig, kept: Kept) -> None:
    neighbour = kept.buffer + LENGTH
    pipe = rig.usb.pipe(INTERRUPT_IN)
    td = pipe.submit(length=8, buffer=neighbour)
    rig.device.cancels = True
    rig.device.cancel = _all_but(rig, kept.late.transfer)  # type: ignore[method-assign,assignment]
    answered = WAYS["Stop Endpoint"](rig)
    rig.bus.pause(CANCEL_TIMEOUT * 1.1)
    assert answered()
    rig.ram.write(kept.buffer, OWN[:LENGTH])
    kept.late.write()
    rig.device.answers(INTERRUPT_IN, b"in time")
    rig.handle()
    assert rig.ram.read(neighbour, 7) == b"in time"
    assert codes(td.events) == [spec.CC_SHORT_PACKET]
    assert rig.ram.read(kept.buffer, LENGTH) == OWN[:LENGTH]


def test_a_device_that_forgets_its_windows(rig: Rig, kept: Kept) -> None:
    """What it was given is known without it."""
    kept.late.transfer.windows.clear()
    kept.late.transfer.actual = 1 << 40
    answered = WAYS["Stop Endpoint"](rig)
    rig.bus.pause(CANCEL_TIMEOUT * 1.1)
    assert answered()
    rig.ram.write(kept.buffer, OWN[:LENGTH])
    kept.late.write()
    assert rig.ram.read(kept.buffer, LENGTH) == OWN[:LENGTH]


def test_a_device_that_has_released_a_window(rig: Rig, kept: Kept) -> None:
    """A `with` over it is enough. The other transfers of the page are taken back and go on."""
    pipe = rig.usb.pipe(INTERRUPT_IN)
    td = pipe.submit(length=8, buffer=kept.buffer + LENGTH)
    rig.device.cancels = True
    rig.device.cancel = _all_but(rig, kept.late.transfer)  # type: ignore[method-assign,assignment]
    rig.device.held[INTERRUPT_IN][0].windows[0].release()
    answered = WAYS["Stop Endpoint"](rig)
    rig.bus.pause(CANCEL_TIMEOUT * 1.1)
    assert answered()
    rig.device.cancelled.clear()
    kept.late.write()
    rig.usb.pipe(INTERRUPT_IN).submit(length=8, buffer=kept.buffer + LENGTH + 8)
    rig.device.held[INTERRUPT_IN][0].complete(TransferStatus.COMPLETED, 8)
    rig.handle()
    assert codes(td.events) == [spec.CC_SUCCESS]


def test_two_that_are_kept_in_the_same_page(rig: Rig, kept: Kept) -> None:
    """The neighbour's transfer is asked for, and kept as well: both are answered, one after the other."""
    neighbour = kept.buffer + LENGTH
    rig.usb.pipe(INTERRUPT_IN).submit(length=8, buffer=neighbour)
    other = rig.device.held[INTERRUPT_IN][0]
    answered = WAYS["Stop Endpoint"](rig)
    unmapped = WAYS["DMA_UNMAP"](rig)
    rig.bus.pause(CANCEL_TIMEOUT * 1.1)
    rig.bus.pause(CANCEL_TIMEOUT * 1.1)
    assert unmapped()
    assert answered()
    rig.ram.write(kept.buffer, OWN[: LENGTH + 8])
    kept.late.write()
    other.windows[0][:] = b"too late"
    assert rig.ram.read(kept.buffer, LENGTH + 8) == OWN[: LENGTH + 8]


def test_the_device_is_usable_afterwards(rig: Rig, kept: Kept) -> None:
    for _ in range(3):
        answered = WAYS["Stop Endpoint"](rig)
        rig.bus.pause(CANCEL_TIMEOUT * 1.1)
        assert answered()
        rig.bulk_in.queue.clear()
        rig.driver.commands.queue.clear()
        rig.driver.commands.set_dequeue(rig.slot_id, rig.bulk_in.dci, *rig.bulk_in.ring.position)
        rig.bulk_in.submit(length=LENGTH, buffer=kept.buffer)
        kept.late.write()
    rig.device.cancels = True
    WAYS["Stop Endpoint"](rig)
    rig.bus.pause(CANCEL_TIMEOUT * 1.1)
    rig.events()
    rig.bulk_in.queue.clear()
    rig.driver.commands.queue.clear()
    rig.driver.commands.set_dequeue(rig.slot_id, rig.bulk_in.dci, *rig.bulk_in.ring.position)
    rig.device.held[BULK_IN].clear()
    rig.works()


def test_the_memory_is_unmapped_before_it_is_answered_at_most_a_little_later(rig: Rig, kept: Kept) -> None:
    """Reused by the client for something else, at the same address: nothing of before reaches it."""
    answered = WAYS["DMA_UNMAP"](rig)
    rig.bus.pause(CANCEL_TIMEOUT * 1.1)
    assert answered()
    rig.bus.memory.unmap_all()
    rig.bus.memory.settle()
    rig.bus.map_ram()
    rig.bus.pause(REMAP_SECONDS * 2)
    rig.ram.write(kept.buffer, OWN[:LENGTH])
    kept.late.write()
    assert rig.ram.read(kept.buffer, LENGTH) == OWN[:LENGTH]


def _all_but(rig: Rig, exception: Transfer) -> Callable[[Transfer], None]:
    honest = type(rig.device).cancel

    def cancel(transfer: Transfer) -> None:
        if transfer is not exception:
            honest(rig.device, transfer)

    return cancel


def test_a_client_that_has_gone(tmp_path: Path) -> None:
    """When the next one is served, nothing of the device's reaches the memory of the last guest, which may live on."""
    device = FakeDevice()
    device.cancels = False
    ram = GuestRam()
    with ServedController(tmp_path / "socket") as served:
        served.plug(device)
        bus = served.connect(ram=ram)
        driver = GuestDriver(bus)
        usb = driver.start().enumerate(driver.wait_for_port().port_id)
        buffer = ram.allocate(LENGTH)
        usb.pipe(BULK_IN).submit(length=LENGTH, buffer=buffer)
        served.wait_until(lambda: bool(device.held[BULK_IN]))
        late = Late(device.held[BULK_IN][0])
        bus.client.close()
        with VfioUserClient.connect(served.path, wait=PATIENCE):
            ram.write(buffer, OWN[:LENGTH])
            served.call(late.write)
            assert ram.read(buffer, LENGTH) == OWN[:LENGTH]
    late.close()
