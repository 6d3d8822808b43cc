"""The records of Linux's usbmon (Documentation/usb/usbmon.rst): one when a transfer is submitted, one when it is back.

Link type 220 (USB_LINUX_MMAPPED) has a header of 64 bytes, behind it the descriptors of isochronous packets, and then
the data. Link type 189 (USB_LINUX) has the first 48 bytes of that header and no descriptors. The fields are in the byte
order of the file. Data of isochronous IN lie at the packets' offsets; the captured length counts the descriptors.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Final, Literal, NamedTuple, overload

from ..errors import CaptureError
from ..usb.requests import SetupPacket
from ..usb.speed import Speed
from ..usb.transfer import TransferStatus, TransferType
from .bulk import uncollected

LINK_TYPE: Final = 220
LINK_TYPE_SHORT: Final = 189
LINK_TYPES: Final = (LINK_TYPE_SHORT, LINK_TYPE)

# The kinds of records.
SUBMIT: Final = ord("S")
COMPLETE: Final = ord("C")
FAILED: Final = ord("E")
"""The submission itself was refused."""

# Data flags other than 0, which says that data follow.
DATA_FOLLOW: Final = 0
DATA_IN_LATER: Final = ord("<")
"""Of a submission: the data come with the completion."""
DATA_OUT_EARLIER: Final = ord(">")
"""Of a completion: the data went with the submission."""

NO_SETUP: Final = ord("-")
MAX_PACKETS: Final = 128
"""As many descriptors of isochronous packets are in a record at most; the kernel cuts the others."""

# Transfer flags of Linux.
SHORT_NOT_OK: Final = 0x0001
ISO_ASAP: Final = 0x0002
ZERO_PACKET: Final = 0x0040
DIRECTION_IN: Final = 0x0200

BITS_A_SECOND: Final = {
    Speed.LOW: 1_500_000,
    Speed.FULL: 12_000_000,
    Speed.HIGH: 480_000_000,
    Speed.SUPER: 5_000_000_000,
    Speed.SUPER_PLUS: 10_000_000_000,
}
"""As files say it of an interface with one device (`Writer.interface`); records say nothing of speeds."""

IN_PROGRESS: Final = -errno.EINPROGRESS
"""The status of a submission."""

#                   id type transfer endpoint device bus setup? data? s us status length captured setup
SHORT_HEADER = {"<": Struct("<QBBBBHBBqiiII8s"), ">": Struct(">QBBBBHBBqiiII8s")}
#                 interval start frame flags descriptors
REST_OF_HEADER = {"<": Struct("<iiII"), ">": Struct(">iiII")}
HEADER: Final = Struct("<QBBBBHBBqiiII8siiII")
ISOCHRONOUS = {"<": Struct("<ii"), ">": Struct(">ii")}
"""In the place of the setup bytes: packets in error, packets."""
#             status offset length (nothing)
DESCRIPTOR = {"<": Struct("<iIII"), ">": Struct(">iIII")}
DESCRIPTOR_SIZE: Final = 16

XFER_TYPES: Final = {
    TransferType.ISOCHRONOUS: 0,
    TransferType.INTERRUPT: 1,
    TransferType.CONTROL: 2,
    TransferType.BULK: 3,
}
TRANSFER_TYPES: Final = {number: type for type, number in XFER_TYPES.items()}

ERRNO: Final = {
    TransferStatus.COMPLETED: 0,
    TransferStatus.STALL: -errno.EPIPE,
    TransferStatus.BABBLE: -errno.EOVERFLOW,
    TransferStatus.ERROR: -errno.EPROTO,
    TransferStatus.CANCELLED: -errno.ENOENT,
    TransferStatus.DISCONNECTED: -errno.ESHUTDOWN,
    TransferStatus.MISSED: -errno.EXDEV,
    TransferStatus.OVERRUN: -errno.ECOMM,
}
"""The status of a completion, as Linux has it (Documentation/driver-api/usb/error-codes.rst)."""

STATUS: Final = {
    **{number: status for status, number in ERRNO.items()},
    -errno.ECONNRESET: TransferStatus.CANCELLED,
    -errno.EILSEQ: TransferStatus.ERROR,
    -errno.ETIME: TransferStatus.ERROR,
    -errno.ENODEV: TransferStatus.DISCONNECTED,
    -errno.ENOSR: TransferStatus.OVERRUN,
    -errno.EREMOTEIO: TransferStatus.COMPLETED,  # shorter than the driver would have it
}
"""What the errors of Linux mean; any other is `TransferStatus.ERROR`."""


class Packet(NamedTuple):
    """One packet of an isochronous transfer."""

    status: int
    """As the record's."""
    offset: int
    """Where its bytes are in the record's data."""
    length: int
    """Bytes asked for (submission of IN), given or moved."""


class Packets(Sequence[Packet]):
    """Those of a record that was read, as its descriptors say; each is made when it is asked for, since a file may have
    millions of them."""

    __slots__ = ("_descriptors", "_order")

    def __init__(self, descriptors: bytes, order: Literal["<", ">"]) -> None:
        self._descriptors = descriptors
        self._order = order

    def __len__(self) -> int:
        return len(self._descriptors) // DESCRIPTOR_SIZE

    @overload
    def __getitem__(self, index: int) -> Packet: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Packet]: ...

    def __getitem__(self, index: int | slice) -> Packet | Sequence[Packet]:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        place = range(len(self))[index] * DESCRIPTOR_SIZE
        return Packet(*DESCRIPTOR[self._order].unpack_from(self._descriptors, place)[:3])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))


@dataclass(slots=True)
class Record:
    """One record of link type 220.

    id        the same for a submission and its completion, and not for any other transfer in flight
    kind      SUBMIT, COMPLETE or FAILED
    endpoint  address as in a descriptor; of a control transfer 0x80 where its data stage goes to the driver
    device    address on its bus
    time      nanoseconds since 1970. The header has microseconds; what brought the record may know better
    status    0 or a negative errno; IN_PROGRESS for a submission
    length    bytes of data asked for (submission) or moved (completion); not those of descriptors
    setup     the setup bytes of a control transfer's submission, else None
    data_flag DATA_FOLLOW, or why no data follow
    data      what was captured of the data. Records that are written leave it empty: see `header`
    interval  of periodic endpoints, in frames or microframes
    packets   of an isochronous transfer; those behind MAX_PACKETS are not written
    errors    isochronous packets in error
    stream    the bulk stream, which the header has no field for: 0 for none, or for one that is not known
    """

    id: int
    kind: int
    type: TransferType
    endpoint: int
    device: int
    bus: int
    time: int
    status: int
    length: int
    setup: bytes | None = None
    data_flag: int = DATA_FOLLOW
    data: bytes | memoryview = b""
    interval: int = 0
    start_frame: int = 0
    flags: int = 0
    packets: Sequence[Packet] = ()
    errors: int = 0
    stream: int = 0

    @property
    def is_in(self) -> bool:
        """Whether the data go to the driver."""
        return self.endpoint >= 0x80

    @property
    def request(self) -> SetupPacket | None:
        """The setup bytes of a control transfer."""
        return SetupPacket.unpack(self.setup) if self.setup is not None else None

    def header(self, captured: int | None = None) -> bytes:
        """The header and the descriptors of packets, little-endian, of a record of link type 220.

        `captured` bytes of data are written behind it; without it, those in `data`.
        """
        described = self.packets[:MAX_PACKETS]
        setup = self.setup
        if setup is None:
            isochronous = self.type is TransferType.ISOCHRONOUS
            setup = ISOCHRONOUS["<"].pack(self.errors, len(self.packets)) if isochronous else bytes(8)
        captured = len(self.data) if captured is None else captured
        seconds, nanoseconds = divmod(self.time, 1_000_000_000)
        header = HEADER.pack(
            self.id,
            self.kind,
            XFER_TYPES[self.type],
            self.endpoint,
            self.device,
            self.bus,
            0 if self.setup is not None else NO_SETUP,
            self.data_flag,
            seconds,
            nanoseconds // 1000,
            self.status,
            self.length,
            captured + DESCRIPTOR_SIZE * len(described),
            setup,
            self.interval,
            self.start_frame,
            self.flags,
            len(described),
        )
        if not described:
            return header
        pack = DESCRIPTOR["<"].pack
        return b"".join([header, *(pack(*each, 0) for each in described)])


def parse(data: bytes | memoryview, link_type: int, order: Literal["<", ">"], time: int | None = None) -> Record:
    """The record in a packet of a file; `time` is the packet's in nanoseconds, if that is to be believed rather than
    the header's.

    The data may be cut: `len(record.data)` is what there is, `record.length` what there was. Raises CaptureError.
    """
    short = SHORT_HEADER[order]
    size = short.size if link_type == LINK_TYPE_SHORT else HEADER.size
    if link_type not in LINK_TYPES:
        raise CaptureError(f"link type {link_type} is not USB as Linux records it ({LINK_TYPE_SHORT} or {LINK_TYPE})")
    if len(data) < size:
        raise CaptureError(f"a record of {len(data)} bytes; its header alone has {size}")
    (
        id,
        kind,
        xfer_type,
        endpoint,
        device,
        bus,
        setup_flag,
        data_flag,
        seconds,
        microseconds,
        status,
        length,
        captured,
        setup,
    ) = short.unpack_from(data)
    if kind not in (SUBMIT, COMPLETE, FAILED) or xfer_type not in TRANSFER_TYPES:
        raise CaptureError(f"a record of kind {kind:#04x} and transfer type {xfer_type}")
    record = Record(
        id,
        kind,
        TRANSFER_TYPES[xfer_type],
        endpoint,
        device,
        bus,
        (seconds * 1_000_000 + microseconds) * 1000 if time is None else time,
        status,
        length,
        bytes(setup) if setup_flag == 0 and xfer_type == XFER_TYPES[TransferType.CONTROL] else None,
        data_flag,
    )
    described = 0
    if link_type == LINK_TYPE:
        record.interval, record.start_frame, record.flags, described = REST_OF_HEADER[order].unpack_from(data, 48)
        if described > MAX_PACKETS or HEADER.size + DESCRIPTOR_SIZE * described > len(data):
            raise CaptureError(f"a record of {len(data)} bytes with {described} descriptors of packets")
    if record.type is TransferType.ISOCHRONOUS:
        record.errors = ISOCHRONOUS[order].unpack(setup)[0]
        if described:
            record.packets = uncollected(Packets(bytes(data[size : size + DESCRIPTOR_SIZE * described]), order))
    start = size + DESCRIPTOR_SIZE * described
    record.data = data[start : start + max(captured - DESCRIPTOR_SIZE * described, 0)]
    return record
