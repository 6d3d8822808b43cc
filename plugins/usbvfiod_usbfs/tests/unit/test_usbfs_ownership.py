"""What the kernel answers once the host has taken an interface back, and what is not done then."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from fake_usbfs import ONE_INTERFACE, UAS, FakeKernel, Submitted, sysfs_device
from usbvfiod_usbfs.device import open_device

from usbvfiod_core.host.options import HostOptions, ResetPolicy
from usbvfiod_core.testing.device_bench import DeviceBench, WatchedTransfer
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb.descriptors import Configuration, Endpoint, Interface
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.transfer import TransferStatus, TransferType

TYPES = Configuration(
    (
        Interface(0, 255, endpoints=(Endpoint(0x81, 2, 512), Endpoint(0x82, 3, 64, 4))),
        Interface(1, 255),
        Interface(1, 255, alternate=1, endpoints=(Endpoint(0x83, 1, 192, 4),)),
    )
)
OTHER = Configuration((Interface(0, 255), Interface(1, 255), Interface(2, 255)), value=2)
SET_CONFIGURATION = SetupPacket(0, 9, 1, 0, 0)
SET_INTERFACE = SetupPacket(1, 11, 0, 0, 0)
CLEAR_HALT = SetupPacket(2, 1, 0, 0x81, 0)
OF_DEVICE, OF_INTERFACE, OF_ENDPOINT = (
    SetupPacket(kind, 1, 0, index, 0) for kind, index in ((0x40, 0), (0x21, 1), (0x22, 0x81))
)
CLASS_REQUEST_ELSEWHERE = SetupPacket(0x21, 1, 0, 7, 0)


class Case:
    """A configured device on a bench, of a kernel that has let nobody have it yet."""

    def __init__(self, kernel: FakeKernel, *configurations: Configuration, **more: object) -> None:
        options = HostOptions(**more.pop("options", {}))  # type: ignore[arg-type]
        self.kernel = kernel
        self.loop = StepLoop()
        sysfs = sysfs_device(*(configurations or (TYPES, OTHER)), **more)  # type: ignore[arg-type]
        self.device = open_device(self.loop, kernel.handle(), sysfs, options)
        self.bench = DeviceBench(self.device, self.loop)
        kernel.calls.clear()

    @property
    def lost(self) -> bool:
        """Whether the guest was told that the device is gone, as the host has it."""
        self.loop.run_ready()
        assert self.bench.events.disconnections in (0, 1)
        return self.bench.events.disconnections == 1 and "the host has taken" in self.device.why_gone()

    def names(self) -> list[str]:
        calls, self.kernel.calls = self.kernel.calls, []
        return [name for name, _ in calls]


def start(case: Case, what: str) -> WatchedTransfer:
    """One transfer of a kind, whatever becomes of it."""
    if what == "isochronous":
        case.bench.control(SetupPacket(1, 11, 1, 1, 0))
        transfer = case.bench.submit_packets(0x83, [192])
        case.loop.advance(0.01)
        return transfer
    if what == "control of the interface":
        return case.bench.submit(0, TransferType.CONTROL, b"", setup=OF_INTERFACE)
    if what == "control of the endpoint":
        return case.bench.submit(0, TransferType.CONTROL, b"", setup=OF_ENDPOINT)
    kind = TransferType.BULK if what == "bulk" else TransferType.INTERRUPT
    return case.bench.submit(0x81 if what == "bulk" else 0x82, kind, 64)


KINDS = ["bulk", "interrupt", "isochronous", "control of the interface", "control of the endpoint"]


@pytest.mark.parametrize("what", KINDS)
def test_a_transfer_that_finds_its_interface_taken(kernel: FakeKernel, what: str) -> None:
    case = Case(kernel)
    case.bench.control(SET_CONFIGURATION)
    kernel.submit_errors.extend([-errno.EBUSY] * 3)
    transfer = start(case, what)
    assert case.lost
    assert transfer.status is TransferStatus.ERROR
    case.names()
    late = case.bench.submit(0x81, TransferType.BULK, 64)
    vendor = case.bench.submit(0, TransferType.CONTROL, b"", setup=OF_DEVICE)
    assert (late.status, vendor.status) == (TransferStatus.DISCONNECTED, TransferStatus.DISCONNECTED)
    assert kernel.submitted == []
    case.bench.reset()
    assert case.names() == []
    case.bench.close()


@pytest.mark.parametrize(("what", "lost"), [("bulk", True), ("interrupt", True), ("control of the interface", False)])
def test_an_endpoint_that_has_gone_from_the_host(kernel: FakeKernel, what: str, lost: bool) -> None:
    """The host has unconfigured the device. A class request to an interface that is not there is the guest's affair."""
    case = Case(kernel)
    case.bench.control(SET_CONFIGURATION)
    kernel.submit_errors.append(-errno.ENOENT)
    transfer = start(case, what)
    assert case.lost == lost
    assert transfer.status is (TransferStatus.ERROR if lost else TransferStatus.STALL)
    case.bench.close()


@pytest.mark.parametrize("code", [-errno.ENOENT, -errno.EBUSY])
def test_what_was_never_claimed_is_not_lost(kernel: FakeKernel, code: int) -> None:
    case = Case(kernel)
    case.bench.control(SET_CONFIGURATION)
    kernel.submit_errors.append(code)
    transfer = case.bench.control(CLASS_REQUEST_ELSEWHERE)
    assert transfer.status in (TransferStatus.STALL, TransferStatus.ERROR)
    case.loop.run_ready()
    assert case.bench.events.disconnections == 0
    case.bench.close()


def test_a_printer_that_is_taken_and_asked_for_its_device_id(kernel: FakeKernel) -> None:
    """The low byte of wIndex, 1, is a setting: the interface of that number is still ours."""
    printers = Configuration((Interface(0, 7), Interface(0, 7, alternate=1), Interface(1, 255)))
    case = Case(kernel, printers)
    case.bench.control(SET_CONFIGURATION)
    kernel.submit_errors.append(-errno.EBUSY)
    case.bench.control(SetupPacket(0xA1, 0, 0, 0x0001, 0))
    assert case.lost
    assert "interface 0" in case.device.why_gone()
    case.bench.close()


@pytest.mark.parametrize(
    ("request_", "code", "name"),
    [
        (SET_INTERFACE, -errno.EBUSY, "SETINTERFACE"),
        (SET_INTERFACE, -errno.ENOENT, "SETINTERFACE"),
        (CLEAR_HALT, -errno.EBUSY, "CLEAR_HALT"),
    ],
)
def test_an_operation_that_finds_its_interface_taken(
    kernel: FakeKernel, request_: SetupPacket, code: int, name: str
) -> None:
    case = Case(kernel)
    case.bench.control(SET_CONFIGURATION)
    kernel.answers[name].append(code)
    assert case.bench.control(request_).status is TransferStatus.STALL
    assert case.lost
    case.names()
    case.bench.close()
    assert case.names() == ["RELEASEINTERFACE", "RELEASEINTERFACE", "CONNECT", "CONNECT"]


@pytest.mark.parametrize("code", [-errno.EINVAL, -errno.ENOENT])
@pytest.mark.parametrize("what", ["reset", "soft reset", "configuration"])
def test_the_whole_device_is_left_alone_if_a_part_is_taken(kernel: FakeKernel, what: str, code: int) -> None:
    """Linux says of no reset that the device is somebody else's; but it knows what was claimed."""
    policy = ResetPolicy.NEVER if what == "soft reset" else ResetPolicy.AUTO
    case = Case(kernel, options={"reset": policy})
    kernel.respond = kernel.finish
    case.bench.control(SET_CONFIGURATION)
    case.bench.wait(case.bench.submit(0x81, TransferType.BULK, 64))
    case.names()
    kernel.answers["RELEASEINTERFACE"].extend([0, code])
    if what == "configuration":
        assert case.bench.control(SetupPacket(0, 9, 2, 0, 0)).status is TransferStatus.STALL
    else:
        case.bench.reset()
    assert case.lost
    assert case.names() == ["RELEASEINTERFACE", "RELEASEINTERFACE"]
    case.bench.close()
    assert kernel.calls == [("CONNECT", (0,))], "the other one is the host's, and not even reset"


def test_a_device_that_was_taken_is_not_reset_at_the_end(kernel: FakeKernel) -> None:
    case = Case(kernel, ONE_INTERFACE)
    kernel.respond = kernel.finish
    case.bench.control(SET_CONFIGURATION)
    case.bench.wait(case.bench.submit(0x81, TransferType.BULK, 64))
    kernel.submit_errors.append(-errno.EBUSY)
    case.bench.wait(case.bench.submit(0x81, TransferType.BULK, 64))
    assert case.lost
    case.names()
    kernel.answers["RELEASEINTERFACE"].append(-errno.EINVAL)
    case.bench.close()
    assert case.names() == ["RELEASEINTERFACE"]


def test_a_reset_that_linux_does_not_try_leaves_the_claims(kernel: FakeKernel) -> None:
    """As it says EINPROGRESS while it resets the device for another reason."""
    case = Case(kernel, ONE_INTERFACE, options={"reset": ResetPolicy.ALWAYS})
    kernel.answers["RESET"].append(-errno.EINPROGRESS)
    case.names()
    case.bench.reset()
    assert case.names() == ["RELEASEINTERFACE", "RESET", "DISCONNECT_CLAIM"]
    assert not case.lost
    assert case.device.handle.claimed == [0]
    case.bench.close()


def test_another_program_that_is_faster_after_a_reset(kernel: FakeKernel) -> None:
    case = Case(kernel, ONE_INTERFACE, options={"reset": ResetPolicy.ALWAYS})
    kernel.answers["DISCONNECT_CLAIM"].extend([-errno.EBUSY] * 100)
    case.bench.reset()
    assert case.lost
    assert case.device.why_gone() == "another program on the host has taken interface 0"
    case.bench.close()


def test_streams_of_an_interface_that_is_taken(kernel: FakeKernel) -> None:
    case = Case(kernel, UAS)
    case.bench.control(SET_CONFIGURATION)
    case.bench.control(SetupPacket(1, 11, 1, 0, 0))
    kernel.answers["ALLOC_STREAMS"].append(-errno.EBUSY)
    transfer = case.bench.submit(0x82, TransferType.BULK, 512, stream_id=1)
    case.bench.wait(transfer)
    assert transfer.status is TransferStatus.ERROR
    assert case.lost
    case.bench.close()


# -- what looks like it, and is not ------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [-errno.ESHUTDOWN, -errno.ENODEV, -errno.ENOENT, -errno.ECONNRESET])
def test_transfers_that_the_kernel_takes_back_are_a_reason_to_look(kernel: FakeKernel, status: int) -> None:
    case = Case(kernel)
    case.bench.control(SET_CONFIGURATION)
    looked: list[int] = []
    case.device.urbs.ended_early = lambda: looked.append(1)
    transfers = [case.bench.submit(0x81, TransferType.BULK, 64) for _ in range(2)]
    kernel.finish(kernel.inflight[0], status, 0)
    case.bench.wait(transfers[0])
    assert looked == [1]
    case.bench.cancel(transfers[1])
    case.bench.wait(transfers[1])
    assert looked == [1], "that one was the guest's wish"
    case.bench.close()


def again(case: Case) -> None:
    case.bench.submit(0x81, TransferType.BULK, 64)


def test_nothing_is_sent_once_a_transfer_was_taken_back(kernel: FakeKernel, tmp_path: Path) -> None:
    """The guest sends the next one when the last is back: Linux would claim an interface for it that nobody has."""
    (tmp_path / "2-1" / "2-1:1.0").mkdir(parents=True)
    driver = tmp_path / "2-1" / "2-1:1.0" / "driver"
    driver.symlink_to("../../usbfs")
    case = Case(kernel, ONE_INTERFACE, directory=tmp_path / "2-1")
    case.bench.control(SET_CONFIGURATION)
    reading = case.bench.submit(0x81, TransferType.BULK, 64)
    reading.on_complete = lambda transfer: again(case)
    kernel.submitted.clear()
    driver.unlink()
    kernel.finish(kernel.inflight[0], -errno.ESHUTDOWN, 0)
    case.bench.wait(reading)
    assert case.lost
    assert kernel.submitted == []
    case.bench.close()


def test_unplugging_stays_unplugging(kernel: FakeKernel) -> None:
    case = Case(kernel)
    case.bench.control(SET_CONFIGURATION)
    transfer = case.bench.submit(0x81, TransferType.BULK, 64)
    kernel.unplug()
    case.bench.wait(transfer)
    assert not case.lost
    assert (case.bench.events.disconnections, case.device.why_gone()) == (1, "")
    case.bench.close()


@pytest.mark.parametrize("code", [-errno.EINVAL, -errno.EPIPE, -errno.ENOSPC, -errno.EFAULT])
def test_other_refusals_are_the_transfers_own(kernel: FakeKernel, code: int) -> None:
    case = Case(kernel)
    case.bench.control(SET_CONFIGURATION)
    kernel.submit_errors.append(code)
    case.bench.wait(case.bench.submit(0x81, TransferType.BULK, 64))
    case.loop.run_ready()
    assert case.bench.events.disconnections == 0
    case.bench.close()


# -- configured by the host after it was attached ----------------------------------------------------------------------


class Configured:
    """The host configures the device: SETCONFIGURATION is refused as long as its drivers have interfaces, which those
    that are claimed are taken from."""

    def __init__(self, kernel: FakeKernel, bound: set[int]) -> None:
        self._ioctl, self._bound = kernel.ioctl, bound
        self._kernel = kernel

    def ioctl(self, fd: int, request: int, argument: int) -> int:
        code = self._ioctl(fd, request, argument)
        name, values = self._kernel.calls[-1] if self._kernel.calls else ("", ())
        if name == "DISCONNECT_CLAIM":
            self._bound.discard(values[0])
        elif name == "SETCONFIGURATION" and self._bound:
            return -errno.EBUSY
        return code


@pytest.mark.parametrize("wanted", [1, 2])
def test_a_device_that_the_host_configures_after_it_was_attached(kernel: FakeKernel, wanted: int) -> None:
    case = Case(kernel, configuration=None)
    assert case.device.handle.claimed == []
    case.device.handle.ioctl = Configured(kernel, {0, 1}).ioctl
    assert case.bench.control(SetupPacket(0, 9, wanted, 0, 0)).status is TransferStatus.COMPLETED
    assert case.device.handle.claimed == ([0, 1] if wanted == 1 else [0, 1, 2])
    assert case.names()[:2] == ["SETCONFIGURATION", "DISCONNECT_CLAIM"]
    kernel.respond = kernel.finish
    if wanted == 1:
        reading = case.bench.submit(0x81, TransferType.BULK, 64)
        case.bench.wait(reading)
        assert reading.status is TransferStatus.COMPLETED
    assert case.bench.events.disconnections == 0
    case.bench.close()


def test_a_device_that_is_not_configured_yet_cannot_be_lost(kernel: FakeKernel) -> None:
    """The host has configured it meanwhile, and what the guest asks of an endpoint before it does so is refused."""
    case = Case(kernel, configuration=None)
    for request in (CLEAR_HALT, OF_INTERFACE, OF_ENDPOINT):
        kernel.submit_errors.append(-errno.EBUSY)
        assert case.bench.control(request).status is TransferStatus.ERROR
    case.loop.run_ready()
    assert case.bench.events.disconnections == 0
    case.bench.close()


def test_a_host_that_is_faster_each_time(kernel: FakeKernel, caplog: pytest.LogCaptureFixture) -> None:
    case = Case(kernel, configuration=None)
    kernel.answers["SETCONFIGURATION"].extend([-errno.EBUSY] * 6)
    for _ in range(2):
        assert case.bench.control(SET_CONFIGURATION).status is TransferStatus.STALL
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "Fake: configuration 1, which the guest wants, is not set: the host's drivers took it again each time"
    ]
    assert case.bench.control(SET_CONFIGURATION).status is TransferStatus.COMPLETED
    case.bench.close()


def test_another_program_that_has_it_by_then(kernel: FakeKernel) -> None:
    case = Case(kernel, configuration=None)
    kernel.answers["SETCONFIGURATION"].append(-errno.EBUSY)
    kernel.answers["DISCONNECT_CLAIM"].extend([-errno.EBUSY] * 100)
    assert case.bench.control(SET_CONFIGURATION).status is TransferStatus.STALL
    assert case.lost
    case.bench.close()


def test_a_driver_that_was_faster_between_two_configurations(kernel: FakeKernel) -> None:
    case = Case(kernel)
    kernel.answers["SETCONFIGURATION"].append(-errno.EBUSY)
    assert case.bench.control(SetupPacket(0, 9, 2, 0, 0)).status is TransferStatus.COMPLETED
    assert case.device.handle.claimed == [0, 1, 2]
    case.bench.close()


def test_nothing_is_left_in_flight(kernel: FakeKernel) -> None:
    """A loss in the middle of transfers: what the kernel has taken back ends, and the rest with the device."""
    case = Case(kernel)
    case.bench.control(SET_CONFIGURATION)
    transfers = [case.bench.submit(0x81, TransferType.BULK, 64) for _ in range(4)]
    taken: list[Submitted] = kernel.inflight[:2]
    for urb in taken:
        kernel.finish(urb, -errno.ESHUTDOWN, 0)
    kernel.submit_errors.append(-errno.EBUSY)
    case.bench.submit(0x82, TransferType.INTERRUPT, 8)
    assert case.lost
    case.bench.close_device()
    case.bench.wait(*transfers)
    assert {each.status for each in transfers} == {TransferStatus.DISCONNECTED}
    case.bench.close()
