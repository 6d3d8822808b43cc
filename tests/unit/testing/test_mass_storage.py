"""The mass storage client against a disk that is played by a FakeDevice, so that it can misbehave."""

from __future__ import annotations

from struct import pack, unpack_from

import pytest

from usbvfiod_core.testing.driver import DriverError
from usbvfiod_core.testing.fake_device import Answer, FakeDevice
from usbvfiod_core.testing.guest import Guest
from usbvfiod_core.testing.mass_storage import MassStorage, ScsiError, StorageError
from usbvfiod_core.usb.descriptors import Configuration, Interface, bulk_endpoint
from usbvfiod_core.usb.requests import CLEAR_FEATURE
from usbvfiod_core.usb.speed import Speed
from usbvfiod_core.usb.transfer import Transfer, TransferStatus

IN, OUT = 0x81, 0x02
STALL = TransferStatus.STALL


def sense(key: int, code: int, qualifier: int) -> bytes:
    """Fixed format (SPC-4 4.5.3)."""
    return bytes([0x70, 0, key]) + bytes(9) + bytes([code, qualifier]) + bytes(4)


class Disk(FakeDevice):
    """Answers each command with what `commands` says for its operation code: data for IN, None for no data."""

    def __init__(self) -> None:
        endpoints = (bulk_endpoint(IN, Speed.SUPER), bulk_endpoint(OUT, Speed.SUPER))
        super().__init__(Speed.SUPER, configurations=[Configuration((Interface(0, 8, 6, 0x50, endpoints),))])
        self.commands: dict[int, bytes] = {
            0x25: pack(">II", 0xFF, 512),
            0x03: sense(5, 0x20, 1),
        }
        self.unready: list[int] = []
        """Sense keys with which TEST UNIT READY fails, one a command."""
        self.status = 0
        self.wrappers: list[bytes] = []
        self.stall_data = self.stall_status = False
        self.wrong_tag = 0
        self._expected = 0
        self.answers_request(0x21, 0xFF, TransferStatus.COMPLETED)
        self.answers(OUT, self.take)

    def take(self, transfer: Transfer) -> Answer:
        data = transfer.read()
        if self._expected:
            self._expected = 0
            self.answers(OUT, self.take)
            self.finish_status(0)
            return transfer.length
        self.wrappers.append(data)
        signature, tag, length, flags, _, _, operation = unpack_from("<IIIBBBB", data)
        assert signature == 0x43425355
        self.tag = tag
        if operation == 0x00 and self.unready:
            self.status, self.commands[0x03] = 1, sense(self.unready.pop(0), 0, 0)
        self.answers(OUT, self.take)
        if flags & 0x80:
            content = self.commands.get(operation, b"")[:length]
            if self.stall_data:
                self.stall_data = False
                self.answers(IN, (STALL, content))
            else:
                self.answers(IN, content)
            self.finish_status(length - len(content))
        elif length:
            self._expected = length
        else:
            self.finish_status(0)
        return transfer.length

    def finish_status(self, residue: int) -> None:
        status = pack("<IIIB", 0x53425355, self.tag ^ self.wrong_tag, residue, self.status)
        self.status = self.wrong_tag = 0
        if self.stall_status:
            self.stall_status = False
            self.answers(IN, STALL)
        self.answers(IN, status)

    @property
    def cleared_halts(self) -> list[int]:
        requests = [transfer.setup for transfer in self.submitted if transfer.setup is not None]
        return [setup.index for setup in requests if setup.request == CLEAR_FEATURE]


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture(params=[True, False], ids=["pipelined", "one by one"])
def storage(usb_guest: Guest, disk: Disk, request: pytest.FixtureRequest) -> MassStorage:
    return MassStorage(usb_guest.plug(disk), pipelined=request.param)


def test_capacity(storage: MassStorage, disk: Disk) -> None:
    assert storage.read_capacity() == (256, 512)
    disk.commands[0x25] = pack(">II", 0xFFFF_FFFF, 512)
    disk.commands[0x9E] = pack(">QI", (1 << 33) - 1, 4096) + bytes(20)
    assert storage.read_capacity() == (1 << 33, 4096)


def test_inquiry(storage: MassStorage, disk: Disk) -> None:
    disk.commands[0x12] = bytes([0, 0x80, 6, 2, 31, 0, 0, 0]) + b"VENDOR  PRODUCT         1.0 "
    identity = storage.inquiry()
    assert (identity.vendor, identity.product, identity.revision) == ("VENDOR", "PRODUCT", "1.0")
    assert identity.removable
    disk.commands[0x12] = b"short"
    with pytest.raises(StorageError, match="INQUIRY returned 5 bytes"):
        storage.inquiry()


def test_reading_and_writing(storage: MassStorage, disk: Disk) -> None:
    disk.commands[0x28] = bytes(range(256)) * 4
    assert bytes(storage.read(3, 2)) == bytes(range(256)) * 4
    assert disk.wrappers[-1][15:25] == bytes.fromhex("28 00 00000003 00 0002 00")
    storage.write(5, b"z" * 1024)
    assert disk.received[OUT][-1] == b"z" * 1024
    assert disk.wrappers[-1][15:25] == bytes.fromhex("2a 00 00000005 00 0002 00")
    storage.read(1 << 32, 1)
    assert disk.wrappers[-1][15:31] == bytes.fromhex("88 00 0000000100000000 00000001 00 00")
    with pytest.raises(DriverError, match="not whole blocks of 512"):
        storage.write(0, b"x")
    with pytest.raises(DriverError, match="do not fit the buffer"):
        storage.read(0, 4096)


def test_a_failed_command_has_sense_data(storage: MassStorage, disk: Disk) -> None:
    disk.status = 1
    with pytest.raises(ScsiError, match="0x00 failed: sense 0x5/0x20/0x01") as caught:
        storage.test_unit_ready()
    assert (caught.value.key, caught.value.code, caught.value.qualifier) == (5, 0x20, 1)
    storage.test_unit_ready()


def test_a_drive_is_asked_until_it_is_ready(storage: MassStorage, disk: Disk) -> None:
    disk.unready = [6, 2, 2, 6]
    storage.wait_ready()
    assert [command[15] for command in disk.wrappers] == [0, 3, 0, 3, 0, 3, 0, 3, 0]


def test_a_drive_that_does_not_become_ready(storage: MassStorage, disk: Disk) -> None:
    disk.unready = [2] * 100
    with pytest.raises(ScsiError, match="sense 0x2"):
        storage.wait_ready(0.1)
    assert 1 < 100 - len(disk.unready) < 10
    disk.unready = [6, 4, 6]
    with pytest.raises(ScsiError, match="sense 0x4"):
        storage.wait_ready()
    assert disk.unready == [6]


def test_a_stalled_data_stage(storage: MassStorage, disk: Disk) -> None:
    disk.stall_data = True
    disk.commands[0x12] = b"0123456789"
    assert storage.command(bytes([0x12, 0, 0, 0, 36, 0]), 36) == b"0123456789"
    assert disk.cleared_halts == [IN]
    storage.test_unit_ready()


def test_a_stalled_status_is_asked_for_again(storage: MassStorage, disk: Disk) -> None:
    disk.stall_status = True
    storage.test_unit_ready()
    assert disk.cleared_halts == [IN]


@pytest.mark.parametrize("fault", ["phase error", "wrong tag"])
def test_a_device_that_loses_the_thread_is_reset(storage: MassStorage, disk: Disk, fault: str) -> None:
    if fault == "phase error":
        disk.status = 2
    else:
        disk.wrong_tag = 1
    with pytest.raises(StorageError, match="status wrapper is wrong or says phase error"):
        storage.test_unit_ready()
    resets = [transfer for transfer in disk.submitted if transfer.setup is not None and transfer.setup.request == 0xFF]
    assert len(resets) == 1
    assert disk.cleared_halts == [IN, OUT]
    storage.test_unit_ready()


def test_max_lun(storage: MassStorage, disk: Disk) -> None:
    assert storage.max_lun() == 0
    disk.answers_request(0xA1, 0xFE, b"\3")
    assert storage.max_lun() == 3


def test_many_commands_leave_nothing_behind(storage: MassStorage, disk: Disk) -> None:
    used = storage.device.driver.ram.allocated
    for _ in range(200):
        storage.test_unit_ready()
    assert storage.device.driver.ram.allocated == used
    storage.close()


def test_a_device_without_the_interface(usb_guest: Guest) -> None:
    with pytest.raises(DriverError, match="no bulk-only mass storage interface"):
        MassStorage(usb_guest.plug(FakeDevice()))
