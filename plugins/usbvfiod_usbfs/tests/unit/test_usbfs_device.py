"""What is done to the kernel's side of a device, in which order, and what a failure means."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import pytest
from fake_usbfs import UAS, FakeKernel, sysfs_device
from usbvfiod_usbfs import ioctl as usbfs
from usbvfiod_usbfs.device import UsbfsDevice, open_device
from usbvfiod_usbfs.lane import bulk_cut

from usbvfiod_core import DeviceError
from usbvfiod_core.host import programs
from usbvfiod_core.host.options import HostOptions, ResetPolicy
from usbvfiod_core.testing.device_bench import DeviceBench, WatchedTransfer
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb.descriptors import Configuration, Endpoint, Interface
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.speed import Speed
from usbvfiod_core.usb.transfer import TransferStatus, TransferType

COMPLETED, STALL = TransferStatus.COMPLETED, TransferStatus.STALL
ONE = Configuration((Interface(0, class_code=255, endpoints=(Endpoint(0x81, 2, 512), Endpoint(0x02, 2, 512))),))
TWO = Configuration((Interface(0, class_code=255), Interface(1, class_code=255)), value=2)

Calls = list[tuple[str, tuple[int, ...]]]


def answered(kernel: FakeKernel) -> None:
    """Let URBs end at once, well."""
    kernel.respond = kernel.finish


class Case:
    """A device on a bench."""

    def __init__(self, kernel: FakeKernel, *configurations: Configuration, **more: object) -> None:
        options = HostOptions(**more.pop("options", {}))  # type: ignore[arg-type]
        self.kernel = kernel
        self.loop = StepLoop()
        self.sysfs = sysfs_device(*configurations, **more)  # type: ignore[arg-type]
        self.device: UsbfsDevice = open_device(self.loop, kernel.handle(), self.sysfs, options)
        self.bench = DeviceBench(self.device, self.loop)
        answered(kernel)

    def calls(self) -> Calls:
        """What was called since the last time."""
        calls, self.kernel.calls = self.kernel.calls, []
        return calls

    def request(self, request_type: int, request: int, value: int = 0, index: int = 0) -> WatchedTransfer:
        return self.bench.control(SetupPacket(request_type, request, value, index, 0))

    def configure(self, value: int = 1) -> WatchedTransfer:
        return self.request(0, 9, value)

    def move(self, endpoint: int, data: bytes | int, stream_id: int = 0) -> WatchedTransfer:
        transfer = self.bench.submit(endpoint, TransferType.BULK, data, stream_id=stream_id)
        self.bench.wait(transfer)
        return transfer


# -- opening and giving back -----------------------------------------------------------------------------------------


def test_all_interfaces_are_taken_from_their_drivers_and_given_back(kernel: FakeKernel) -> None:
    case = Case(kernel, TWO)
    assert case.calls() == [("DISCONNECT_CLAIM", (0,)), ("DISCONNECT_CLAIM", (1,))]
    case.bench.close()
    assert case.calls() == [
        ("RELEASEINTERFACE", (0,)),
        ("RELEASEINTERFACE", (1,)),
        ("CONNECT", (0,)),
        ("CONNECT", (1,)),
    ]
    assert case.device.handle.fd == -1


def test_a_device_that_was_used_is_reset_before_the_drivers_get_it(kernel: FakeKernel) -> None:
    case = Case(kernel, ONE)
    case.configure()
    case.move(0x81, 512)
    case.calls()
    case.bench.close()
    assert [name for name, _ in case.calls()] == ["RELEASEINTERFACE", "RESET", "CONNECT"]


@pytest.mark.parametrize("more", [{"options": {"reset": ResetPolicy.NEVER}}, {"reset_quirk": True}])
def test_one_that_loses_itself_is_not_reset(kernel: FakeKernel, more: dict[str, object]) -> None:
    case = Case(kernel, ONE, **more)
    case.configure()
    case.move(0x81, 512)
    case.calls()
    case.bench.close()
    assert [name for name, _ in case.calls()] == ["RELEASEINTERFACE", "CONNECT"]


def test_without_reattach_drivers_are_left_alone(kernel: FakeKernel) -> None:
    case = Case(kernel, ONE, options={"reattach": False})
    case.calls()
    case.bench.close()
    assert case.calls() == [("RELEASEINTERFACE", (0,))]


@pytest.mark.parametrize(
    ("code", "words"),
    [(-errno.EBUSY, "interface 1 is in use by another program"), (-errno.ENODEV, "unplugged"), (-errno.EIO, "claimed")],
)
def test_what_cannot_be_claimed_is_left_as_it_was(kernel: FakeKernel, code: int, words: str) -> None:
    kernel.answers["DISCONNECT_CLAIM"].extend([0, code])
    with pytest.raises(DeviceError, match=words):
        Case(kernel, TWO)
    assert kernel.calls[-2:] == [("RELEASEINTERFACE", (0,)), ("CONNECT", (0,))]


def test_who_has_claimed_it_is_named(kernel: FakeKernel, tmp_path: Path) -> None:
    (tmp_path / "uevent").write_text("DEVTYPE=usb_device\nDEVNAME=bus/usb/002/003\n")
    kernel.answers["DISCONNECT_CLAIM"].append(-errno.EBUSY)
    programs.look_by(lambda: [("812", "pcscd", "/dev/bus/usb/002/003"), ("813", "cat", "/dev/bus/usb/002/004")])
    try:
        with pytest.raises(DeviceError, match=r"through usbfs \(its node is open in pcscd \(812\)\); end that"):
            Case(kernel, ONE, directory=tmp_path)
    finally:
        programs.look_by(None)


@pytest.mark.parametrize("endpoint", [0x84, 0x81])
def test_a_bus_without_bandwidth_is_told_once(
    kernel: FakeKernel, caplog: pytest.LogCaptureFixture, endpoint: int
) -> None:
    case = Case(kernel, UAS)
    case.configure()
    kernel.submit_errors.extend([-errno.ENOSPC] * 3)
    for _ in range(3):
        transfer = (
            case.bench.submit_packets(endpoint, [192])
            if endpoint == 0x84
            else case.bench.submit(endpoint, TransferType.INTERRUPT, 8)
        )
        case.bench.wait(transfer)
        assert transfer.status is TransferStatus.ERROR
    [line] = [each.getMessage() for each in caplog.records]
    assert line.startswith(f"Fake: the host's bus has no bandwidth left for endpoint {endpoint:#04x}; ")


def test_a_setting_for_which_the_bus_has_no_bandwidth(kernel: FakeKernel, caplog: pytest.LogCaptureFixture) -> None:
    case = Case(kernel, UAS)
    case.configure()
    kernel.answers["SETINTERFACE"].extend([-errno.ENOSPC] * 2)
    for _ in range(2):
        assert case.request(1, 11, 1, 0).status is STALL
    assert [each.getMessage() for each in caplog.records] == [
        "Fake: setting 1 of interface 0, which the guest wants, is not set: setting 1 of interface 0 is refused: "
        "the host's bus has no bandwidth left for it"
    ]
    assert case.request(1, 11, 1, 0).status is COMPLETED


def test_a_descriptor_without_privileges_takes_what_is_free(kernel: FakeKernel) -> None:
    kernel.answers["DISCONNECT_CLAIM"].extend([-errno.EACCES, -errno.EACCES])
    kernel.answers["CLAIMINTERFACE"].extend([0, -errno.EBUSY])
    with pytest.raises(DeviceError, match="interface 1"):
        Case(kernel, TWO)
    assert ("CLAIMINTERFACE", (0,)) in kernel.calls


@pytest.mark.parametrize("answers", [[0, -errno.EINVAL], [0, -errno.ENOENT]])
def test_an_interface_that_linux_has_left_out_is_left_out(kernel: FakeKernel, answers: list[int]) -> None:
    kernel.answers["DISCONNECT_CLAIM"].extend(answers)
    case = Case(kernel, TWO)
    assert case.device.handle.claimed == [0]
    assert case.bench.events.notes == ["without interface 1, which the host cannot give"]
    kernel.answers["DISCONNECT_CLAIM"].extend(answers)
    case.configure(2)
    assert case.bench.submit(1, TransferType.CONTROL, b"", setup=SetupPacket(0x21, 0, 0, 1, 0)).status is STALL
    case.bench.close()


def test_a_descriptor_without_privileges_goes_without_as_well(kernel: FakeKernel) -> None:
    kernel.answers["DISCONNECT_CLAIM"].extend([-errno.EACCES, -errno.EACCES])
    kernel.answers["CLAIMINTERFACE"].extend([0, -errno.ENOENT])
    case = Case(kernel, TWO)
    assert case.device.handle.claimed == [0]
    case.bench.close()


def test_a_number_that_usbfs_has_not_is_only_taken_from_its_driver(kernel: FakeKernel) -> None:
    numbers = (0, 31, 32, 63, 64, 255)
    many = Configuration(
        tuple(Interface(each, 255, endpoints=(Endpoint(0x81 + at, 2, 512),)) for at, each in enumerate(numbers))
    )
    case = Case(kernel, many)
    assert case.device.handle.claimed == [0, 31, 32, 63]
    assert case.calls()[-2:] == [("DISCONNECT", (64,)), ("DISCONNECT", (255,))]
    case.configure()
    assert [case.move(0x81 + at, 8).status for at in range(6)] == [COMPLETED] * 4 + [TransferStatus.ERROR] * 2
    case.bench.close()


def test_a_device_of_which_linux_has_nothing_is_not_opened(kernel: FakeKernel) -> None:
    kernel.answers["DISCONNECT_CLAIM"].extend([-errno.EINVAL] * 2)
    with pytest.raises(DeviceError, match="Linux has none of its interfaces"):
        Case(kernel, TWO)


def test_an_unconfigured_device_is_opened(kernel: FakeKernel) -> None:
    case = Case(kernel, ONE, configuration=None)
    assert case.calls() == []
    assert case.configure().status is COMPLETED
    assert case.calls() == [("SETCONFIGURATION", (1,)), ("DISCONNECT_CLAIM", (0,))]
    case.bench.close()


def test_a_configuration_of_value_0_is_one(kernel: FakeKernel) -> None:
    zero = Configuration(
        (Interface(0, class_code=255), *(replace(each, alternate=1) for each in ONE.interfaces)), value=0
    )
    case = Case(kernel, zero, TWO)
    assert case.calls() == [("DISCONNECT_CLAIM", (0,))]
    assert case.configure(0).status is COMPLETED
    assert case.request(1, 11, 1, 0).status is COMPLETED
    assert case.configure(2).status is COMPLETED
    assert case.configure(0).status is COMPLETED
    sets = [call for call in case.calls() if call[0].startswith("SET")]
    assert sets == [("SETINTERFACE", (0, 1)), ("SETCONFIGURATION", (2,)), ("SETCONFIGURATION", (0,))]
    assert case.device.handle.claimed == [0]
    case.bench.close()


def test_how_far_transfers_are_cut_depends_on_the_controller_and_the_endpoint(kernel: FakeKernel) -> None:
    odd = Configuration((Interface(0, 255, endpoints=(Endpoint(0x81, 2, 512), Endpoint(0x02, 2, 48))),))
    for configuration, packet_size in ((ONE, 512), (odd, 48)):
        for kernel.capabilities in (usbfs.CAP_BULK_SCATTER_GATHER, 0):
            case = Case(kernel, configuration)
            kernel.respond = None
            case.bench.submit(0x02, TransferType.BULK, bytes(2 << 20))
            cut = bulk_cut(kernel.capabilities, packet_size)
            assert kernel.inflight[0].length == cut - cut % packet_size
            for urb in list(kernel.inflight):
                kernel.finish(urb)
            case.loop.run_ready()


@pytest.mark.parametrize(
    ("number", "speed"), [(1, Speed.LOW), (2, Speed.FULL), (3, Speed.HIGH), (5, Speed.SUPER), (6, Speed.SUPER_PLUS)]
)
def test_the_speed_is_the_kernels(kernel: FakeKernel, number: int, speed: Speed) -> None:
    kernel.speed = number
    assert Case(kernel, ONE).device.speed is speed
    kernel.speed = -errno.ENOTTY
    assert Case(kernel, ONE, speed=Speed.FULL).device.speed is Speed.FULL


# -- operations -------------------------------------------------------------------------------------------------------


def test_another_configuration_needs_everything_released(kernel: FakeKernel) -> None:
    case = Case(kernel, ONE, TWO)
    case.configure(1)
    case.calls()
    assert case.configure(2).status is COMPLETED
    assert case.calls() == [
        ("RELEASEINTERFACE", (0,)),
        ("SETCONFIGURATION", (2,)),
        ("DISCONNECT_CLAIM", (0,)),
        ("DISCONNECT_CLAIM", (1,)),
    ]
    kernel.answers["SETCONFIGURATION"].append(-errno.EPIPE)
    assert case.configure(1).status is STALL
    assert case.device.handle.claimed == [0, 1]


def test_a_lost_race_for_an_interface_is_run_again(kernel: FakeKernel) -> None:
    case = Case(kernel, ONE, TWO)
    kernel.answers["DISCONNECT_CLAIM"].extend([-errno.EBUSY, -errno.EBUSY, 0])
    assert case.configure(2).status is COMPLETED
    assert case.device.handle.claimed == [0, 1]


def test_a_race_that_is_lost_for_good_stalls_the_request(kernel: FakeKernel) -> None:
    case = Case(kernel, ONE, TWO)
    kernel.answers["DISCONNECT_CLAIM"].extend([-errno.EBUSY] * 20)
    assert case.configure(2).status is STALL


def test_the_same_configuration_again_resets_the_endpoints(kernel: FakeKernel) -> None:
    case = Case(kernel, ONE)
    case.configure()
    case.calls()
    case.configure()
    assert case.calls() == []
    case.move(0x81, 512)
    case.configure()
    assert case.calls() == [("RELEASEINTERFACE", (0,)), ("SETCONFIGURATION", (1,)), ("DISCONNECT_CLAIM", (0,))]


def test_a_halt_is_cleared_by_the_kernel(kernel: FakeKernel) -> None:
    case = Case(kernel, ONE)
    case.configure()
    case.calls()
    submitted = len(kernel.submitted)
    assert case.request(2, 1, 0, 0x81).status is COMPLETED
    assert case.calls() == [("CLEAR_HALT", (0x81,))]
    assert len(kernel.submitted) == submitted
    kernel.answers["CLEAR_HALT"].append(-errno.EPIPE)
    assert case.request(2, 1, 0, 0x81).status is STALL


def test_a_reset_of_the_port_releases_first(kernel: FakeKernel) -> None:
    case = Case(kernel, ONE)
    case.configure()
    case.move(0x02, b"x")
    case.calls()
    case.bench.reset()
    assert case.calls() == [("RELEASEINTERFACE", (0,)), ("RESET", ()), ("DISCONNECT_CLAIM", (0,))]
    case.configure()
    assert case.move(0x81, 512).status is COMPLETED


def test_a_device_that_comes_back_as_another_is_gone(kernel: FakeKernel) -> None:
    case = Case(kernel, ONE)
    case.configure()
    case.move(0x02, b"x")
    kernel.answers["RESET"].append(-errno.ENODEV)
    case.bench.reset()
    assert case.bench.events.disconnections == 1
    assert case.move(0x02, b"x").status is TransferStatus.DISCONNECTED


def test_unplugging_is_noticed_while_nothing_is_in_flight(kernel: FakeKernel) -> None:
    case = Case(kernel, ONE)
    kernel.unplug()
    case.loop.run_ready()
    assert case.bench.events.disconnections == 1
    case.bench.close()


def test_closing_ends_what_is_in_flight(kernel: FakeKernel) -> None:
    case = Case(kernel, ONE)
    case.configure()
    kernel.respond = None
    kernel.limit = 3000
    transfers = [case.bench.submit(0x81, TransferType.BULK, 1024) for _ in range(6)]
    case.bench.close_device()
    case.loop.run_ready()
    assert {each.status for each in transfers} == {TransferStatus.DISCONNECTED}
    case.bench.close()


# -- streams ----------------------------------------------------------------------------------------------------------


def test_the_streams_of_the_host_are_counted(kernel: FakeKernel) -> None:
    case = Case(kernel, UAS)
    assert case.device.max_streams == 16
    assert case.calls()[2:] == [
        ("SETINTERFACE", (0, 1)),
        ("ALLOC_STREAMS", (16, 0x82, 0x83)),
        ("FREE_STREAMS", (0, 0x82, 0x83)),
        ("SETINTERFACE", (0, 0)),
    ]
    kernel.answers["ALLOC_STREAMS"].append(15)
    assert Case(kernel, UAS).device.max_streams == 15


def test_a_host_without_streams_hides_them(kernel: FakeKernel) -> None:
    kernel.answers["ALLOC_STREAMS"].append(-errno.EINVAL)
    case = Case(kernel, UAS)
    assert case.device.max_streams == 0
    assert case.calls()[-1] == ("SETINTERFACE", (0, 0)), "where the guest expects it"


def test_an_interface_that_refuses_its_setting_has_no_streams(kernel: FakeKernel) -> None:
    kernel.answers["SETINTERFACE"].append(-errno.EPIPE)
    case = Case(kernel, UAS)
    assert case.device.max_streams == 0
    assert "ALLOC_STREAMS" not in [name for name, _ in case.calls()]


def test_of_two_configurations_with_one_value_the_first_is_meant(kernel: FakeKernel) -> None:
    def numbered(*numbers: int) -> Configuration:
        return Configuration(tuple(Interface(number, class_code=255) for number in numbers), value=2)

    case = Case(kernel, ONE, numbered(0, 1), numbered(4))
    case.calls()
    case.request(0, 9, 2, 0)
    assert [values for name, values in case.calls() if name == "DISCONNECT_CLAIM"] == [(0,), (1,)]


def test_streams_are_allocated_before_the_first_transfer_and_freed_with_the_setting(kernel: FakeKernel) -> None:
    case = Case(kernel, UAS)
    case.configure()
    case.request(1, 11, 1, 0)
    case.calls()
    transfers = [case.bench.submit(0x82, TransferType.BULK, 512, stream_id=each) for each in (1, 2, 3)]
    case.bench.wait(*transfers)
    assert {each.status for each in transfers} == {COMPLETED}
    assert [urb.number for urb in kernel.submitted[-3:]] == [1, 2, 3]
    assert case.move(0x83, 512, stream_id=16).status is COMPLETED
    assert case.calls() == [("ALLOC_STREAMS", (16, 0x82, 0x83))]
    case.request(1, 11, 0, 0)
    assert case.calls() == [("FREE_STREAMS", (0, 0x82, 0x83)), ("SETINTERFACE", (0, 0))]


def test_streams_are_freed_before_a_transfer_without_one(kernel: FakeKernel) -> None:
    case = Case(kernel, UAS)
    case.configure()
    case.request(1, 11, 1, 0)
    case.move(0x82, 512, stream_id=1)
    case.calls()
    assert case.move(0x82, 512).status is COMPLETED
    assert case.calls() == [("FREE_STREAMS", (0, 0x82, 0x83))]


@pytest.mark.parametrize("endpoint", [0x01, 0x85])
def test_an_endpoint_without_streams_has_none(kernel: FakeKernel, endpoint: int) -> None:
    case = Case(kernel, UAS)
    case.configure()
    case.request(1, 11, 1, 0)
    data: bytes | int = 512 if endpoint & 0x80 else b"x"
    assert case.move(endpoint, data, stream_id=1).status is TransferStatus.ERROR
    kernel.answers["ALLOC_STREAMS"].append(-errno.ENOMEM)
    assert case.move(0x82, 512, stream_id=1).status is TransferStatus.ERROR
    assert case.move(0x82, 512, stream_id=1).status is COMPLETED


def test_isochronous_transfers_take_their_interval_from_the_descriptor(kernel: FakeKernel) -> None:
    case = Case(kernel, UAS)
    case.configure()
    kernel.respond = None
    transfer = case.bench.submit_packets(0x84, [192, 192])
    case.loop.run_ready()
    assert [len(urb.packets) for urb in kernel.inflight] == [1, 1], "a packet each millisecond"
    for urb in list(kernel.inflight):
        kernel.finish_packets(urb, [(192, 0)])
    case.bench.wait(transfer)
    assert (transfer.status, transfer.actual) == (COMPLETED, 384)
