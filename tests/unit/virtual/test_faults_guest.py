"""Faults as a guest's driver meets them: completion codes, recovery, a drive that is reset, a device that is gone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.counted_time import counted_time
from tests.unit.virtual.drive import read_10
from usbvfiod_core.testing.backend import open_device
from usbvfiod_core.testing.driver import DriverError, UsbDevice
from usbvfiod_core.testing.driver.errors import DriverTimeoutError
from usbvfiod_core.testing.driver.isochronous import IsochronousPipe
from usbvfiod_core.testing.guest import Guest
from usbvfiod_core.testing.mass_storage import MassStorage, StorageError
from usbvfiod_core.testing.uas import ABORT_TASK, UasClient, UasCommand
from usbvfiod_core.virtual import VirtualBackend
from usbvfiod_core.virtual.faulty import FaultyDevice
from usbvfiod_core.virtual.loopback import BULK_IN, BULK_OUT, ISOCHRONOUS_IN, ISOCHRONOUS_OUT, SOURCE_SINK
from usbvfiod_core.xhci import spec

Plug = Callable[..., UsbDevice]


@pytest.fixture
def plug_virtual(usb_guest: Guest) -> Plug:
    """Plugs in a virtual device that has faults, by its options."""

    def plug(address: str, fault: str, **options: str) -> UsbDevice:
        device = open_device(VirtualBackend(), address, {**options, "fault": fault}, usb_guest.bus.loop)
        assert isinstance(device, FaultyDevice)
        return usb_guest.plug(device)

    return plug


def loopback(plug_virtual: Plug, fault: str, **options: str) -> UsbDevice:
    return plug_virtual("loopback", fault, pattern="1", speed="high", **options)


def code_of(call: Callable[..., object], *args: object) -> tuple[int, str]:
    with pytest.raises(DriverError) as failure:
        call(*args)
    return failure.value.completion_code, str(failure.value)


PATTERN = bytes(index % 512 % 63 for index in range(4096))


@pytest.mark.parametrize(
    ("kind", "code"), [("stall", spec.CC_STALL), ("babble", spec.CC_BABBLE), ("error", spec.CC_TRANSACTION_ERROR)]
)
@pytest.mark.parametrize("where", ["", "#3", ":6144", "#2:2048"])
def test_what_halts_the_endpoint_in(plug_virtual: Plug, kind: str, code: int, where: str) -> None:
    """The completion code of the specification, the bytes before it, and a pipe that works again after recovery."""
    device = loopback(plug_virtual, f"{kind}@in{where}")
    before = {"": 0, "#3": 2, ":6144": 1, "#2:2048": 1}[where]
    for _ in range(before):
        assert device.bulk_in(BULK_IN, 4096) == PATTERN
    moved = 2048 if ":" in where else 0
    got, message = code_of(device.bulk_in, BULK_IN, 4096)
    assert got == code
    assert f"after {moved} of 4096 bytes" in message
    pipe = device.pipe(BULK_IN)
    assert pipe.state == spec.EP_HALTED
    pipe.recover()
    for _ in range(4):
        assert device.bulk_in(BULK_IN, 4096) == PATTERN


@pytest.mark.parametrize(("kind", "code"), [("stall", spec.CC_STALL), ("error", spec.CC_TRANSACTION_ERROR)])
def test_what_halts_the_endpoint_out(plug_virtual: Plug, kind: str, code: int) -> None:
    device = loopback(plug_virtual, f"{kind}@out:5120")
    device.bulk_out(BULK_OUT, PATTERN)
    got, message = code_of(device.bulk_out, BULK_OUT, PATTERN)
    assert (got, "after 1024 of 4096 bytes" in message) == (code, True)
    device.pipe(BULK_OUT).recover()
    device.bulk_out(BULK_OUT, PATTERN)
    assert device.bulk_in(BULK_IN, 4096) == PATTERN


def test_a_stall_stays_until_the_device_is_told(plug_virtual: Plug) -> None:
    device = loopback(plug_virtual, "stall@81")
    pipe = device.pipe(BULK_IN)
    for _ in range(3):
        assert code_of(device.bulk_in, BULK_IN, 512)[0] == spec.CC_STALL
        pipe.reset()
        pipe.set_dequeue()
        assert device.control_in(0x82, 0, 0, BULK_IN, 2) == b"\1\0"
    device.clear_halt(BULK_IN)
    assert device.control_in(0x82, 0, 0, BULK_IN, 2) == b"\0\0"
    assert device.bulk_in(BULK_IN, 4096) == PATTERN


def test_tds_behind_a_stall_stay_on_the_ring_and_go_on(plug_virtual: Plug) -> None:
    device = loopback(plug_virtual, "stall@in:6000")
    tds = [device.submit_in(BULK_IN, 4096) for _ in range(6)]
    assert tds[0].result() == PATTERN
    assert code_of(tds[1].result)[0] == spec.CC_STALL
    device.pipe(BULK_IN).recover()
    assert [td.result() for td in tds[2:]] == [PATTERN] * 4


def test_a_transaction_error_is_retried(plug_virtual: Plug) -> None:
    """Soft retry (4.6.8.1): the device has not seen the transfer that failed, and answers the next try."""
    device = loopback(plug_virtual, "error@in#1")
    td = device.submit_in(BULK_IN, 4096)
    assert code_of(td.result)[0] == spec.CC_TRANSACTION_ERROR
    device.pipe(BULK_IN).retry()
    assert td.result() == PATTERN


def test_a_short_packet(plug_virtual: Plug) -> None:
    device = loopback(plug_virtual, "short@in:1000")
    td = device.submit_in(BULK_IN, 4096)
    assert td.result() == PATTERN[:1000]
    assert td.completion_code == spec.CC_SHORT_PACKET
    assert device.bulk_in(BULK_IN, 4096) == PATTERN


def test_a_dropped_transfer_times_out_and_is_cancelled(plug_virtual: Plug) -> None:
    device = loopback(plug_virtual, "drop@in:5000")
    assert device.bulk_in(BULK_IN, 4096) == PATTERN
    td = device.submit_in(BULK_IN, 4096)
    with pytest.raises(DriverTimeoutError):
        td.wait(5.0)
    device.pipe(BULK_IN).cancel(td)
    assert td.actual == 5000 - 4096
    assert device.bulk_in(BULK_IN, 4096) == PATTERN


def test_a_delayed_transfer(plug_virtual: Plug, usb_guest: Guest) -> None:
    device = loopback(plug_virtual, "delay=250@out#2")
    clock = usb_guest.bus.clock
    times = []
    for _ in range(3):
        start = clock()
        device.bulk_out(BULK_OUT, PATTERN)
        times.append(round(clock() - start, 2))
    assert times == [0.0, 0.25, 0.0]


def test_control_transfers(plug_virtual: Plug) -> None:
    device = loopback(plug_virtual, "stall@control#40,error@control#50,drop@control#60")
    ends: list[int] = []
    for _ in range(60):
        try:
            ends.append(len(device.control_in(0xC0, 0x5C, 0, 0, 8)))
        except DriverTimeoutError:
            ends.append(-1)
            device.control.flush()
        except DriverError as error:
            ends.append(-error.completion_code)
            if device.control.failed is not None:
                device.control.recover()
    assert ends.count(8) == 57
    assert [end for end in ends if end != 8] == [-spec.CC_STALL, -spec.CC_TRANSACTION_ERROR, -1]


def test_a_disconnect_ends_every_transfer_and_unplugs(plug_virtual: Plug) -> None:
    device = loopback(plug_virtual, "disconnect@out:2000")
    device.control_out(0, 9, 2, 0)  # the loop, in which reading waits
    waiting = [device.submit_in(BULK_IN, 512) for _ in range(6)]
    device.bulk_out(BULK_OUT, PATTERN[:1024])
    waiting = [td for td in waiting if not td.done]
    with counted_time(0):  # the turn in which it goes is enough to report what has ended
        writing = device.submit_out(BULK_OUT, PATTERN)
        device.port.wait_disconnected()
    device.driver.handle_events()
    assert [td.completion_code for td in waiting] == [spec.CC_SUCCESS, spec.CC_SHORT_PACKET, 0, 0]
    assert (writing.completion_code, writing.actual) == (spec.CC_TRANSACTION_ERROR, 2000 - 1024)
    device.disable()
    assert not device.port.connected


# -- drives --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["stall", "error", "babble"])
@pytest.mark.parametrize("place", [100_000, 131_111], ids=["data", "status"])
def test_a_drive_recovers_from_what_goes_wrong_with_its_data(
    plug_virtual: Plug, image: Path, content: bytes, kind: str, place: int
) -> None:
    """Whatever breaks off a read, in the data or in the status: after reset recovery all is well."""
    device = plug_virtual("flash", f"{kind}@in:{place}", image=str(image))
    drive = MassStorage(device)
    good = [read_or_recover(drive, block) == content[block * 512 :][:65536] for block in range(0, 1024, 128)]
    assert good == [index != 1 for index in range(8)]
    assert drive.read(0, 256) == content[: 256 * 512]
    drive.write(0, b"\x5a" * 65536)
    assert drive.read(0, 128) == b"\x5a" * 65536


def read_or_recover(drive: MassStorage, block: int) -> bytes | None:
    try:
        return bytes(drive.read(block, 128))
    except StorageError:  # the client has done reset recovery
        return None
    except DriverTimeoutError:  # the status was lost with the packet that it was in
        drive.reset_recovery()
        return None


@pytest.mark.parametrize("where", ["#2", "#3", ":40", ":70000"])
@pytest.mark.parametrize("kind", ["stall", "error"])
def test_a_drive_recovers_from_what_goes_wrong_with_a_write(
    plug_virtual: Plug, image: Path, kind: str, where: str
) -> None:
    device = plug_virtual("flash", f"{kind}@out{where}", image=str(image))
    drive = MassStorage(device)
    drive.timeout = 1.0
    for _ in range(4):
        try:
            drive.write(0, b"\x5a" * 131072)
        except DriverError:
            drive.reset_recovery()
    assert drive.read(0, 256) == b"\x5a" * 131072


def test_a_drive_that_hangs_is_reset_by_its_driver(plug_virtual: Plug, image: Path, content: bytes) -> None:
    device = plug_virtual("flash", "drop@in:100000", image=str(image))
    drive = MassStorage(device)
    drive.timeout = 1.0
    assert drive.read(0, 128) == content[:65536]
    with pytest.raises(DriverTimeoutError):
        drive.read(128, 128)
    drive.reset_recovery()
    assert drive.read(128, 128) == content[65536:131072]


def uas_drive(plug_virtual: Plug, image: Path, fault: str) -> tuple[UasClient, list[UasCommand]]:
    """A drive with eight reads in flight, with tags 1 to 8."""
    uas = UasClient(plug_virtual("flash", fault, image=str(image), transport="uas"))
    return uas, [uas.submit(read_10(8 * number, 8), 4096, tag=number + 1) for number in range(8)]


@pytest.mark.parametrize(("kind", "code"), [("error", spec.CC_TRANSACTION_ERROR), ("stall", spec.CC_STALL)])
@pytest.mark.parametrize(("where", "moved"), [("", 0), (":2000", 2000)])
def test_an_error_of_one_stream(
    plug_virtual: Plug, image: Path, content: bytes, kind: str, code: int, where: str, moved: int
) -> None:
    """It halts the endpoint under all streams; after recovery the commands on the others go on."""
    uas, commands = uas_drive(plug_virtual, image, f"{kind}@81.5{where}")
    failed = []
    for number, command in enumerate(commands):
        transfer = command.transfer
        assert transfer is not None
        try:
            assert command.result(2.0) == content[4096 * number :][:4096]
        except DriverError:
            failed.append((command.tag, transfer.completion_code, transfer.actual))
            transfer.pipe.recover()
    assert failed == [(5, code, moved)]
    assert uas.command(read_10(0, 8), 4096) == content[:4096]


def test_a_stream_that_hangs(plug_virtual: Plug, image: Path, content: bytes) -> None:
    """The command on it is aborted as a driver does it; those on the others never notice."""
    uas, commands = uas_drive(plug_virtual, image, "drop@81.3")
    others = [command for command in commands if command.tag != 3]
    assert [bytes(command.result(2.0)) for command in others] == [
        content[4096 * (command.tag - 1) :][:4096] for command in others
    ]
    with pytest.raises(DriverTimeoutError):
        commands[2].result(2.0)
    uas.manage(ABORT_TASK, 3).wait(2.0)
    uas.forget(commands[2])
    assert uas.command(read_10(16, 8), 4096, tag=3) == content[8192:][:4096]


# -- isochronous ---------------------------------------------------------------------------------------------------


def isochronous(plug_virtual: Plug, fault: str, address: int, count: int) -> list[tuple[int, int]]:
    """Completion codes and bytes of so many packets."""
    device = loopback(plug_virtual, fault)
    device.set_configuration(SOURCE_SINK)
    device.set_interface(0, 1)
    pipe = device.pipe(address)
    assert isinstance(pipe, IsochronousPipe)
    data = None if address & 0x80 else bytes(index % 63 for index in range(1000))
    tds = [pipe.submit(data, 1000 if data is None else 0) for _ in range(count)]
    for td in tds:
        td.wait()
    assert pipe.state == spec.EP_RUNNING
    return [(td.completion_code, td.actual) for td in tds]


GOOD = (spec.CC_SUCCESS, 1000)


@pytest.mark.parametrize(
    ("fault", "result"),
    [
        ("short@in#3:100", (spec.CC_SHORT_PACKET, 100)),
        ("short@in:2500", (spec.CC_SHORT_PACKET, 500)),
        ("babble@in#3:1000", (spec.CC_BABBLE, 1000)),
        ("error@in:2500", (spec.CC_TRANSACTION_ERROR, 500)),
        ("drop@in#3", (spec.CC_MISSED_SERVICE, 0)),
        ("stall@in#3", (spec.CC_TRANSACTION_ERROR, 0)),
        ("error@out#3", (spec.CC_TRANSACTION_ERROR, 0)),
        ("drop@out#3", (spec.CC_MISSED_SERVICE, 0)),
        ("delay=2@in#3", GOOD),
    ],
)
def test_one_packet_goes_wrong_and_the_stream_goes_on(plug_virtual: Plug, fault: str, result: tuple[int, int]) -> None:
    address = ISOCHRONOUS_IN if "in" in fault.split("@")[1] else ISOCHRONOUS_OUT
    assert isochronous(plug_virtual, fault, address, 6) == [GOOD, GOOD, result, GOOD, GOOD, GOOD]


def test_every_third_packet_is_missed(plug_virtual: Plug) -> None:
    codes = [code for code, _ in isochronous(plug_virtual, "drop@83#3*", ISOCHRONOUS_IN, 12)]
    assert codes == [spec.CC_SUCCESS, spec.CC_SUCCESS, spec.CC_MISSED_SERVICE] * 4
