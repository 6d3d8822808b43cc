"""What a driver learns from the capability registers before it touches anything else (5.3, 7)."""

from __future__ import annotations

from dataclasses import dataclass

from ...xhci import spec
from ..bus import Bus
from .errors import ProtocolError

_XECP_LIMIT = 64


@dataclass(frozen=True)
class SupportedProtocol:
    """A Supported Protocol Capability (7.2): `ports` ports from `first_port` on speak USB `major`.`minor` (BCD)."""

    major: int
    minor: int
    first_port: int
    ports: int
    slot_type: int


@dataclass(frozen=True)
class Capabilities:
    """The capability registers. Offsets are in BAR0."""

    version: int
    operational_offset: int
    runtime_offset: int
    doorbell_offset: int
    max_slots: int
    max_interrupters: int
    max_ports: int
    erst_max: int
    scratchpads: int
    context_size: int
    page_size: int
    hccparams1: int
    protocols: tuple[SupportedProtocol, ...]

    @property
    def addresses_64_bits(self) -> bool:
        """AC64: whether pointers above 4 GiB are allowed."""
        return bool(self.hccparams1 & spec.HCC1_AC64)

    @property
    def max_streams(self) -> int:
        """Streams that an endpoint can have in a primary array (MaxPSASize); entry 0 is none. 0: no streams."""
        exponent = self.hccparams1 >> spec.HCC1_MAXPSASIZE_SHIFT & 0xF
        return (2 << exponent) - 1 if exponent else 0

    def major_of(self, port_id: int) -> int:
        """2 or 3: the protocol of a port. Raises ProtocolError for a port that no capability names."""
        for protocol in self.protocols:
            if protocol.first_port <= port_id < protocol.first_port + protocol.ports:
                return protocol.major
        raise ProtocolError(f"port {port_id} is in no Supported Protocol Capability")


def read_capabilities(bus: Bus) -> Capabilities:
    """Read and check them. Raises ProtocolError for what no controller may say."""
    length = bus.read(spec.CAPLENGTH, 1)
    structural1 = bus.read(spec.HCSPARAMS1)
    structural2 = bus.read(spec.HCSPARAMS2)
    capability1 = bus.read(spec.HCCPARAMS1)
    pages = bus.read(length + spec.PAGESIZE) & 0xFFFF
    if not length or structural1 == 0xFFFF_FFFF or not pages:
        raise ProtocolError(f"no controller here: CAPLENGTH {length:#x}, HCSPARAMS1 {structural1:#x}")
    found = Capabilities(
        version=bus.read(spec.HCIVERSION, 2),
        operational_offset=length,
        runtime_offset=bus.read(spec.RTSOFF) & ~0x1F,
        doorbell_offset=bus.read(spec.DBOFF) & ~0x3,
        max_slots=structural1 & 0xFF,
        max_interrupters=structural1 >> 8 & 0x7FF,
        max_ports=structural1 >> 24,
        erst_max=1 << (structural2 >> 4 & 0xF),
        scratchpads=(structural2 >> 21 & 0x1F) << 5 | structural2 >> 27,
        context_size=64 if capability1 & spec.HCC1_CSZ else 32,
        page_size=(pages & -pages) << 12,
        hccparams1=capability1,
        protocols=_read_protocols(bus, (capability1 >> spec.HCC1_XECP_SHIFT) * 4),
    )
    for port_id in range(1, found.max_ports + 1):
        found.major_of(port_id)
    return found


def _read_protocols(bus: Bus, offset: int) -> tuple[SupportedProtocol, ...]:
    protocols: list[SupportedProtocol] = []
    for _ in range(_XECP_LIMIT):
        if not offset:
            return tuple(protocols)
        header = bus.read(offset)
        if header & 0xFF == spec.XCAP_SUPPORTED_PROTOCOL:
            if bus.read(offset + 4) != spec.PROTOCOL_NAME_USB:
                raise ProtocolError(f"the Supported Protocol Capability at {offset:#x} is not named 'USB '")
            ports = bus.read(offset + 8)
            protocols.append(
                SupportedProtocol(
                    header >> 24, header >> 16 & 0xFF, ports & 0xFF, ports >> 8 & 0xFF, bus.read(offset + 12) & 0x1F
                )
            )
        step = header >> 8 & 0xFF
        offset = offset + step * 4 if step else 0
    raise ProtocolError("the extended capabilities do not end")
