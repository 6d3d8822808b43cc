"""What QEMU 11.1 sends, in its order, and byte for byte what it gets (notes: realize sequence)."""

from __future__ import annotations

import os
import select
import struct

from tests.protocol.fakes import Serving
from tests.protocol.raw import RawClient
from usbvfiod_core.testing.limits import PATIENCE, eventually
from usbvfiod_core.vfio_user import wire

VERSION_DATA = (
    b'{"capabilities": {"migration": {"max_bitmap_size": 268435456, "pgsize": 4096}, "max_msg_fds": 16, '
    b'"max_data_xfer_size": 1048576, "write_multiple": true, "pgsizes": 4096, "max_dma_maps": 65535}}\0'
)
LOW_RAM = 0x20000


class Qemu:
    """One counter of message ids; replies are matched by id, and must fit the buffer of the request."""

    def __init__(self, client: RawClient) -> None:
        self.client = client
        self.next_id = 0

    def send(self, command: int, payload: bytes, fds: list[int], flags: int = 0) -> int:
        message_id = self.next_id
        self.next_id += 1
        self.client.send(wire.HEADER.pack(message_id, command, 16 + len(payload), flags, 0) + payload, fds)
        return message_id

    def expect(self, message_id: int, command: int, payload: bytes) -> None:
        header = wire.HEADER.pack(message_id, command, 16 + len(payload), wire.TYPE_REPLY, 0)
        assert self.client.receive(16 + len(payload)) == header + payload

    def ask(self, command: int, payload: bytes, answer: bytes, *fds: int) -> None:
        self.expect(self.send(command, payload, list(fds)), command, answer)

    def read(self, region: int, offset: int, data: bytes) -> None:
        access = wire.REGION_ACCESS.pack(offset, region, len(data))
        self.ask(wire.REGION_READ, access, access + data)

    def write(self, region: int, offset: int, data: bytes) -> None:
        access = wire.REGION_ACCESS.pack(offset, region, len(data))
        self.ask(wire.REGION_WRITE, access + data, access)

    def post(self, region: int, offset: int, data: bytes) -> None:
        access = wire.REGION_ACCESS.pack(offset, region, len(data))
        self.send(wire.REGION_WRITE, access + data, [], wire.NO_REPLY)

    def map(self, flags: int, offset: int, address: int, size: int, *fds: int) -> None:
        self.ask(wire.DMA_MAP, struct.pack("<IIQQQ", 32, flags, offset, address, size), b"", *fds)

    def unmap(self, address: int, size: int) -> None:
        request = struct.pack("<IIQQ", 24, 0, address, size)
        self.ask(wire.DMA_UNMAP, request, request)

    def irqs(self, flags: int, index: int, start: int, count: int, *fds: int) -> None:
        self.ask(wire.DEVICE_SET_IRQS, struct.pack("<IIIII", 20, flags, index, start, count), b"", *fds)


def config() -> bytes:
    """The whole configuration space at power-on."""
    space = bytearray(4096)
    space[0x00:0x0C] = bytes.fromhex("361b0d00 00001000 0130030c")
    space[0x10:0x14] = bytes.fromhex("04000000")
    space[0x2C:0x30] = bytes.fromhex("f41a0011")
    space[0x34] = 0x70
    space[0x3D] = 1
    space[0x60:0x62] = bytes.fromhex("3020")
    space[0x70:0x7C] = bytes.fromhex("11800700 00400000 00500000")
    space[0x80:0x84] = bytes.fromhex("05008600")
    return bytes(space)


def realize(qemu: Qemu, memfd: int, eventfd: int) -> None:
    version = wire.VERSION_FIELDS.pack(0, 0)
    answer = version + (
        b'{"capabilities":{"max_dma_maps":65535,"pgsizes":4096,"max_data_xfer_size":1048576,"max_msg_fds":16}}\0'
    )
    assert len(version + VERSION_DATA) + 16 == 20 + 194
    qemu.ask(wire.VERSION, version + VERSION_DATA, answer)
    # Both maps of one memory transaction are sent before either reply is read.
    ram = qemu.send(wire.DMA_MAP, struct.pack("<IIQQQ", 32, 3, 0, 0, LOW_RAM), [memfd])
    rom = qemu.send(wire.DMA_MAP, struct.pack("<IIQQQ", 32, 1, 0, 0xFFFC0000, 0x40000), [])
    qemu.expect(ram, wire.DMA_MAP, b"")
    qemu.expect(rom, wire.DMA_MAP, b"")
    qemu.ask(wire.DEVICE_GET_INFO, struct.pack("<IIII", 16, 0, 0, 0), struct.pack("<IIII", 16, 3, 9, 5))
    for region in (0, 1, 2, 3, 4, 5, 7):
        size = {0: 0x8000, 7: 4096}.get(region, 0)
        qemu.ask(
            wire.DEVICE_GET_REGION_INFO,
            struct.pack("<IIIIQQ", 32, 0, region, 0, 0, 0),
            struct.pack("<IIIIQQ", 32, 3 if size else 0, region, 0, size, 0),
        )
    qemu.ask(wire.DEVICE_GET_IRQ_INFO, struct.pack("<IIII", 16, 0, 3, 0), struct.pack("<IIII", 16, 0, 3, 0))
    qemu.read(7, 0, config())
    qemu.read(7, 0x30, bytes(4))
    qemu.write(7, 0x30, bytes.fromhex("00f8ffff"))
    qemu.read(7, 0x30, bytes(4))
    qemu.write(7, 0x30, bytes(4))
    qemu.read(7, 0x10, bytes.fromhex("04000000"))
    qemu.read(7, 0x72, bytes.fromhex("0700"))
    qemu.read(7, 0x74, bytes.fromhex("00400000"))
    qemu.read(7, 0x78, bytes.fromhex("00500000"))
    qemu.ask(wire.DEVICE_GET_IRQ_INFO, struct.pack("<IIII", 16, 0, 2, 0), struct.pack("<IIII", 16, 1, 2, 8))
    irq_info(qemu, 1, 1, 8)
    intx(qemu, eventfd)


def irq_info(qemu: Qemu, index: int, flags: int, count: int) -> None:
    answer = struct.pack("<IIII", 16, flags, index, count)
    qemu.ask(wire.DEVICE_GET_IRQ_INFO, struct.pack("<IIII", 16, 0, index, 0), answer)


def intx(qemu: Qemu, eventfd: int) -> None:
    qemu.read(7, 0x3D, b"\1")
    qemu.irqs(0x24, 0, 0, 1, eventfd)


def machine_reset(qemu: Qemu, command: bytes, eventfd: int) -> None:
    qemu.irqs(0x21, 0, 0, 0)
    qemu.read(7, 0x04, command)
    qemu.write(7, 0x04, bytes(2))
    qemu.ask(wire.DEVICE_RESET, b"", b"")
    intx(qemu, eventfd)
    for register in range(0x10, 0x28, 4):
        qemu.write(7, register, bytes(4))


def firmware(qemu: Qemu, memfd: int) -> None:
    """SeaBIOS: memory is split and joined around the shadowed ROMs, BARs are sized, and xHCI is driven."""
    qemu.unmap(0, LOW_RAM)
    for _ in range(4):
        qemu.map(3, 0, 0, 0xC000, memfd)
        qemu.map(1, 0, 0xC000, 0x2000)
        qemu.map(1, 0xE000, 0xE000, 0x2000, memfd)
        qemu.map(3, 0x10000, 0x10000, 0x10000, memfd)
        qemu.unmap(0, LOW_RAM)
    qemu.map(3, 0, 0, LOW_RAM, memfd)
    for register, data in ((0x00, "361b"), (0x0A, "030c"), (0x0E, "00"), (0x00, "361b0d00"), (0x08, "0130030c")):
        qemu.read(7, register, bytes.fromhex(data))
    qemu.write(7, 0x10, bytes.fromhex("ffffffff"))
    qemu.read(7, 0x10, bytes.fromhex("0480ffff"))
    qemu.write(7, 0x14, bytes.fromhex("ffffffff"))
    qemu.read(7, 0x14, bytes.fromhex("ffffffff"))
    qemu.write(7, 0x10, bytes.fromhex("0000befe"))
    qemu.write(7, 0x14, bytes(4))
    qemu.read(7, 0x10, bytes.fromhex("0400befe"))
    qemu.write(7, 0x3C, b"\x0b")
    qemu.write(7, 0x04, bytes.fromhex("0301"))
    qemu.write(7, 0x04, bytes.fromhex("0701"))
    qemu.read(0, 0x00, b"\x40")
    qemu.read(0, 0x14, bytes(4))
    qemu.post(0, 0x20, bytes.fromhex("02000000"))
    qemu.read(0, 0x20, bytes.fromhex("02000000"))


def linux(qemu: Qemu, serving: Serving, eventfds: list[int]) -> None:
    """xhci_hcd: interrupts are enabled in the configuration first, then assigned, one message for each vector."""
    for command in ("0507", "0107"):
        qemu.write(7, 0x04, bytes.fromhex(command))
    qemu.write(7, 0x0D, b"\x40")
    qemu.write(7, 0x0C, b"\x10")
    qemu.write(7, 0x04, bytes.fromhex("1701"))
    qemu.write(7, 0x72, bytes.fromhex("07c0"))
    qemu.irqs(0x21, 0, 0, 0)
    qemu.irqs(0x24, 2, 0, 1)
    qemu.write(7, 0x04, bytes.fromhex("1705"))
    qemu.write(7, 0x72, bytes.fromhex("0780"))
    qemu.read(7, 0x72, bytes.fromhex("0780"))
    for vector in range(3):
        qemu.irqs(0x24, 2, vector, 1, eventfds[vector])
    serving.interrupt(1)
    assert os.eventfd_read(eventfds[1]) == 1
    qemu.read(0, 0x5000, bytes(8))


def unbind(qemu: Qemu, eventfd: int) -> None:
    qemu.write(7, 0x72, bytes.fromhex("0700"))
    qemu.irqs(0x21, 2, 0, 0)
    intx(qemu, eventfd)
    qemu.write(7, 0x04, bytes.fromhex("1701"))


def test_a_machine_starts_boots_reboots_and_ends(serving: Serving, path: str, memfd: int, eventfds: list[int]) -> None:
    serving.controller.registers[0] = 0x40
    with RawClient(path, greet=False) as client:
        qemu = Qemu(client)
        realize(qemu, memfd, eventfds[15])
        facts = serving.server.client
        assert facts is not None
        assert facts.name == "QEMU"
        machine_reset(qemu, bytes(2), eventfds[15])
        firmware(qemu, memfd)
        assert serving.controller.bus_master
        linux(qemu, serving, eventfds)
        assert serving.controller.writes == [(0x20, 2, 4)]
        unbind(qemu, eventfds[15])
        assert serving.controller.bus_master
        machine_reset(qemu, bytes.fromhex("1701"), eventfds[15])
        assert not serving.controller.bus_master
        assert [(region.start, region.end) for region in serving.memory.regions] == [
            (0, LOW_RAM),
            (0xFFFC0000, 0x100000000),
        ]
        firmware(qemu, memfd)
        # device_del without MSI-X: every map is taken back before the connection ends.
        unbind(qemu, eventfds[15])
        qemu.unmap(0, LOW_RAM)
        qemu.unmap(0xFFFC0000, 0x40000)
        assert serving.memory.regions == ()


def test_a_guest_without_messages(serving: Serving, path: str, memfd: int, eventfds: list[int]) -> None:
    """Emulated processors: QEMU ends the interrupt at the guest's next access to a BAR, and unmasks."""
    told, later = eventfds[0], eventfds[1]
    with RawClient(path, greet=False) as client:
        qemu = Qemu(client)
        realize(qemu, memfd, told)
        machine_reset(qemu, bytes(2), told)
        qemu.write(7, 0x04, bytes.fromhex("0600"))
        serving.interrupt(0)
        assert os.eventfd_read(told) == 1
        qemu.read(7, 0x06, bytes.fromhex("1800"))
        qemu.read(0, 0x00, bytes(4))
        qemu.irqs(0x11, 0, 0, 1)
        assert os.eventfd_read(told) == 1, "the guest has not cleared IMAN.IP yet"
        serving.controller.pending_interrupts = 0
        qemu.read(0, 0x00, bytes(4))
        qemu.irqs(0x11, 0, 0, 1)
        qemu.read(7, 0x06, bytes.fromhex("1000"))
        serving.interrupt(3)
        assert os.eventfd_read(told) == 1
        # The guest goes over to MSI and back, with an interrupt that it has not seen to.
        qemu.write(7, 0x82, bytes.fromhex("8700"))
        qemu.irqs(0x21, 0, 0, 0)
        qemu.irqs(0x24, 1, 0, 1, later)
        assert os.eventfd_read(later) == 1
        assert not serving.controller.pending_interrupts
        qemu.write(7, 0x82, bytes.fromhex("8600"))
        serving.interrupt(0)
        qemu.irqs(0x21, 1, 0, 0)
        intx(qemu, told)
        assert os.eventfd_read(told) == 1


def test_a_guest_without_messages_under_kvm(serving: Serving, path: str, memfd: int, eventfds: list[int]) -> None:
    """KVM signals an eventfd of its own when the guest has ended the interrupt."""
    told, ended = eventfds[0], eventfds[1]
    with RawClient(path, greet=False) as client:
        qemu = Qemu(client)
        realize(qemu, memfd, told)
        qemu.write(7, 0x04, bytes.fromhex("0600"))
        for _ in range(3):
            qemu.irqs(0x09, 0, 0, 1)
            qemu.irqs(0x14, 0, 0, 1, ended)
            qemu.irqs(0x11, 0, 0, 1)
            serving.interrupt(0)
            for _ in range(3):
                assert poll(told)
                os.eventfd_write(ended, 1)
            assert poll(told)
            serving.controller.pending_interrupts = 0
            os.eventfd_write(ended, 1)
            assert eventually(lambda: not select.select([ended], [], [], 0)[0])
            serving.interrupt(1)
            assert poll(told)
            serving.controller.pending_interrupts = 0
        qemu.irqs(0x21, 0, 0, 0)
        os.eventfd_write(ended, 1)
        assert client.alive()
        assert os.eventfd_read(ended) == 1, "nobody listens any more"


def poll(eventfd: int) -> bool:
    """Wait for a signal, which must be one alone."""
    assert select.select([eventfd], [], [], PATIENCE)[0]
    assert os.eventfd_read(eventfd) == 1
    return True


def test_virtual_iommu_unmaps_what_was_never_mapped(client: RawClient, memfd: int, serving: Serving) -> None:
    qemu = Qemu(client)
    for page in range(16):
        qemu.map(3, page << 12, 0xFFFF0000 + (page << 12), 0x1000, memfd)
    qemu.unmap(0xFFFF1000, 0x1000)
    assert len(serving.memory.regions) == 15
    # On reset: power-of-two ranges that cover everything, up to 2^64.
    qemu.unmap(0, 0x80000000)
    qemu.unmap(0x80000000, 0x40000000)
    qemu.unmap(0xFEF00000, 0xFFFFFFFF01100000)
    assert serving.memory.regions == ()
