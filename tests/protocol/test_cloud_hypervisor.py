"""Cloud Hypervisor's client, byte for byte (notes: appendix B).

It looks at no header of a reply, only at lengths that it knows: a reply that is shorter leaves it waiting for ever,
a longer one leaves bytes that it takes for the next reply. So every read here is of exactly its length.
"""

from __future__ import annotations

import os
import struct

import pytest

from tests.protocol.fakes import Serving
from tests.protocol.raw import RawClient
from usbvfiod_core.vfio_user import wire

RAM = 1 << 20


class CloudHypervisor:
    def __init__(self, client: RawClient) -> None:
        self.client = client
        self.next_id = 0

    def send(self, command: int, payload: bytes, fds: list[int] | None = None, *, same_id: bool = False) -> None:
        self.next_id += not same_id
        self.client.send(wire.HEADER.pack(self.next_id - 1, command, 16 + len(payload), 0, 0) + payload, fds or [])

    def take(self, count: int, command: int) -> bytes:
        """Read `count` bytes; the header, which it would ignore, is checked on its behalf."""
        data = self.client.receive(count)
        assert wire.HEADER.unpack_from(data) == (self.next_id - 1, command, count, wire.TYPE_REPLY, 0)
        return data[16:]

    def version(self) -> None:
        data = b'{"capabilities":{"max_msg_fds":1,"max_data_xfer_size":1048576,"migration":{"pgsize":4096}}}\0'
        self.send(wire.VERSION, struct.pack("<HH", 0, 1) + data)
        header = self.client.receive(20)
        _, _, size, _, _ = wire.HEADER.unpack_from(header)
        answer = self.client.receive(size - 20)
        assert answer == b'{"capabilities":{"max_data_xfer_size":1048576,"max_msg_fds":16}}\0'

    def device_info(self) -> tuple[int, int, int]:
        self.send(wire.DEVICE_GET_INFO, struct.pack("<IIII", 32, 0, 0, 0))
        _, flags, regions, irqs = struct.unpack("<IIII", self.take(32, wire.DEVICE_GET_INFO))
        return flags, regions, irqs

    def region_info(self, region: int) -> tuple[int, int]:
        self.send(wire.DEVICE_GET_REGION_INFO, struct.pack("<IIIIQQ", 32, 0, region, 0, 0, 0))
        # One recvmsg, which must bring the whole reply.
        reply = self.client.socket.recv(48)
        assert len(reply) == 48
        argsz, flags, index, capabilities, size, offset = struct.unpack_from("<IIIIQQ", reply, 16)
        assert (argsz, index, capabilities, offset) == (32, region, 0, 0)
        return flags, size

    def irq_info(self, index: int) -> int:
        self.send(wire.DEVICE_GET_IRQ_INFO, struct.pack("<IIII", 16, 0, index, 0))
        _, _, answered, count = struct.unpack("<IIII", self.take(32, wire.DEVICE_GET_IRQ_INFO))
        assert answered == index
        return int(count)

    def read(self, region: int, offset: int, count: int) -> bytes:
        access = wire.REGION_ACCESS.pack(offset, region, count)
        self.send(wire.REGION_READ, access)
        answer = self.take(32 + count, wire.REGION_READ)
        assert answer[:16] == access
        return answer[16:]

    def write(self, region: int, offset: int, data: bytes) -> None:
        access = wire.REGION_ACCESS.pack(offset, region, len(data))
        self.send(wire.REGION_WRITE, access + data)
        assert self.take(32, wire.REGION_WRITE) == access

    def dma_map(self, offset: int, address: int, size: int, fd: int) -> None:
        self.send(wire.DMA_MAP, struct.pack("<IIQQQ", 32, 3, offset, address, size), [fd])
        self.take(16, wire.DMA_MAP)

    def dma_unmap(self, address: int, size: int) -> None:
        request = struct.pack("<IIQQ", 24, 0, address, size)
        self.send(wire.DMA_UNMAP, request)
        assert self.take(40, wire.DMA_UNMAP) == request

    def set_irqs(self, flags: int, start: int, count: int, fds: list[int], *, index: int = 2) -> None:
        self.send(wire.DEVICE_SET_IRQS, struct.pack("<IIIII", 20, flags, index, start, count), fds)
        self.take(16, wire.DEVICE_SET_IRQS)

    # -- what it does with them --

    def capabilities(self) -> dict[int, int]:
        """Walk the list as it does at start and again for every access of the guest's: identifier to offset."""
        found = {}
        status = self.read(7, 0x06, 2)
        if status[0] & 0x10:
            at = self.read(7, 0x34, 1)[0]
            while at:
                identifier = self.read(7, at, 1)[0]
                found[identifier] = at
                following = self.read(7, at + 1, 1)[0]
                if following == at:
                    break
                at = following
                assert len(found) < 48
        return found

    def size_of_bars(self) -> dict[int, int]:
        sizes = {}
        bar = 0
        while bar < 6:
            register = 0x10 + 4 * bar
            old = self.read(7, register, 4)
            self.write(7, register, b"\xff" * 4)
            low = int.from_bytes(self.read(7, register, 4), "little")
            if low:
                mask = low & ~0xF
                if old[0] & 0x6 == 0x4:
                    self.write(7, register + 4, b"\xff" * 4)
                    mask |= int.from_bytes(self.read(7, register + 4, 4), "little") << 32
                sizes[bar] = -mask & ((1 << 64) - 1)
                bar += 1
            bar += 1
        self.read(7, 0x30, 4)
        self.write(7, 0x30, struct.pack("<I", 0xFFFFF800))
        assert self.read(7, 0x30, 4) == bytes(4)
        return sizes


@pytest.fixture
def hypervisor(serving: Serving, path: str) -> CloudHypervisor:
    client = RawClient(path, greet=False)
    hypervisor = CloudHypervisor(client)
    hypervisor.version()
    return hypervisor


def start(hypervisor: CloudHypervisor, memfd: int, intx: int) -> None:
    flags, regions, irqs = hypervisor.device_info()
    assert flags & wire.DEVICE_FLAG_PCI
    assert flags & wire.DEVICE_FLAG_RESET  # without it, it resets
    assert (regions, irqs) == (9, 5)
    sizes = {}
    for region in range(regions):
        flags, size = hypervisor.region_info(region)
        assert not flags & (wire.REGION_FLAG_MMAP | wire.REGION_FLAG_CAPS)
        if size:
            sizes[region] = size
    assert sizes == {0: 0x8000, 7: 4096}
    capabilities = hypervisor.capabilities()
    # No PCI Express, no power management; and MSI-X, for which it walks the list all the time, comes first.
    assert list(capabilities.items()) == [(0x11, 0x70), (0x05, 0x80)]
    vectors = hypervisor.irq_info(2)
    control = int.from_bytes(hypervisor.read(7, 0x72, 2), "little")
    assert (control & 0x7FF) + 1 == vectors == 8
    assert hypervisor.read(7, 0x74, 4) == struct.pack("<I", 0x4000)
    assert hypervisor.read(7, 0x78, 4) == struct.pack("<I", 0x5000)
    assert hypervisor.irq_info(1) == 8
    control = int.from_bytes(hypervisor.read(7, 0x82, 2), "little")
    assert control == 0x86  # off, 64-bit, as many as MSI-X has, without masks
    assert hypervisor.irq_info(0) == 1
    hypervisor.set_irqs(0x24, 0, 1, [intx], index=0)
    hypervisor.dma_map(0, 0, RAM // 2, memfd)
    hypervisor.dma_map(RAM // 2, 0x1_0000_0000, RAM // 2, memfd)
    assert hypervisor.size_of_bars() == {0: sizes[0]}


def test_start_run_and_unplug(hypervisor: CloudHypervisor, serving: Serving, memfd: int, eventfds: list[int]) -> None:
    start(hypervisor, memfd, eventfds[15])

    # The BAR stays all ones, for it is never written back; nothing depends on its value.
    assert hypervisor.read(7, 0x10, 8) == struct.pack("<Q", 0xFFFFFFFFFFFF8004)
    hypervisor.write(7, 0x04, bytes.fromhex("0600"))
    assert serving.controller.bus_master
    for size in (1, 2, 4, 8):
        hypervisor.write(0, 0x40, bytes(range(1, size + 1)))
        assert hypervisor.read(0, 0x40, size) == bytes(range(1, size + 1))
    # A guest's read of one configuration register walks the capabilities first.
    assert hypervisor.capabilities()[0x11] == 0x70
    assert hypervisor.read(7, 0x00, 4) == bytes.fromhex("361b0d00")
    # A guest that reads past everything is told so, and it is not kept waiting.
    assert hypervisor.read(0, 0x7FFE, 4) == bytes.fromhex("0000ffff")
    assert hypervisor.read(2, 0, 4) == bytes.fromhex("ffffffff")
    hypervisor.write(2, 0, bytes(4))

    # All entries of the vector table at once, then the enable bit.
    hypervisor.set_irqs(0x21, 0, 0, [], index=0)
    hypervisor.set_irqs(0x24, 0, 8, eventfds[:8])
    hypervisor.write(7, 0x72, bytes.fromhex("0780"))
    serving.interrupt(7)
    assert os.eventfd_read(eventfds[7]) == 1
    # Off, and on again: another set of descriptors.
    hypervisor.set_irqs(0x21, 0, 0, [])
    serving.interrupt(0)
    assert hypervisor.read(0, 0x5000, 8) == bytes([1, 0, 0, 0, 0, 0, 0, 0])
    hypervisor.set_irqs(0x24, 0, 1, [eventfds[15]], index=0)
    hypervisor.write(7, 0x70, struct.pack("<I", 0x00070011))
    assert os.eventfd_read(eventfds[15]) == 1  # it has not been lost on the way
    hypervisor.set_irqs(0x21, 0, 0, [], index=0)
    hypervisor.set_irqs(0x24, 0, 7, eventfds[8:15])
    hypervisor.write(7, 0x72, bytes.fromhex("0780"))
    assert os.eventfd_read(eventfds[8]) == 1
    assert hypervisor.read(0, 0x5000, 8) == bytes(8)

    # Unplugged.
    hypervisor.dma_unmap(0, RAM // 2)
    hypervisor.dma_unmap(0x1_0000_0000, RAM // 2)
    assert serving.memory.regions == ()
    hypervisor.set_irqs(0x21, 0, 0, [])
    hypervisor.client.socket.shutdown(2)
    hypervisor.client.close()


def test_a_guest_without_messages(
    hypervisor: CloudHypervisor, serving: Serving, memfd: int, eventfds: list[int]
) -> None:
    """It takes any access to a BAR for the end of the interrupt: each is followed by an unmasking."""
    told = eventfds[0]
    start(hypervisor, memfd, told)
    hypervisor.write(7, 0x04, bytes.fromhex("0600"))
    for _ in range(3):
        serving.interrupt(0)
        assert os.eventfd_read(told) == 1
        hypervisor.read(0, 0x00, 4)
        hypervisor.set_irqs(0x11, 0, 1, [], index=0)
        assert os.eventfd_read(told) == 1  # not over: told again, which the guest sees as one more of a shared line
        serving.controller.pending_interrupts = 0
        hypervisor.write(0, 0x00, bytes(4))
        for _ in range(3):
            hypervisor.set_irqs(0x11, 0, 1, [], index=0)
    # MSI: the eventfds first, then the enable bit.
    serving.interrupt(2)
    assert os.eventfd_read(told) == 1
    hypervisor.set_irqs(0x21, 0, 0, [], index=0)
    hypervisor.set_irqs(0x24, 0, 1, [eventfds[1]], index=1)
    hypervisor.write(7, 0x82, bytes.fromhex("8700"))
    assert os.eventfd_read(eventfds[1]) == 1
    assert serving.controller.pending_interrupts == 0
    hypervisor.client.close()


def test_reset_is_accepted_though_it_is_advertised(hypervisor: CloudHypervisor, serving: Serving) -> None:
    hypervisor.send(wire.DEVICE_RESET, b"")
    hypervisor.take(16, wire.DEVICE_RESET)
    assert serving.controller.resets == 1
    hypervisor.client.close()


def test_a_killed_process_is_followed_by_the_next(serving: Serving, path: str, memfd: int, eventfds: list[int]) -> None:
    for _ in range(3):
        client = RawClient(path, greet=False)
        hypervisor = CloudHypervisor(client)
        hypervisor.version()
        start(hypervisor, memfd, eventfds[0])
        client.close()
