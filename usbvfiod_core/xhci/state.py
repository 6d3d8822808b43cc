"""The state of a controller that goes on in another process: all of it that is not in the guest's memory.

It is taken while the controller is quiet (`quiescence`): nothing is in flight, no command, reset or halt is under way,
and each ring stands at the first TD that the driver has not been told of. Addresses are the guest's. Numbers are those
of the registers and contexts that the specification describes; what has names there has them here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from ..state import U8, U16, U32, U64, Range
from ..usb.transfer import TransferType

Nanoseconds = Annotated[int, Range(0, (1 << 63) - 1)]
PortId = Annotated[int, Range(1, 255)]


@dataclass
class MovedState:
    """A TD of which a part was moved before it was taken back: it goes on behind that part (4.6.9).

    address   its first TRB
    length    its bytes
    moved     how many of them were moved
    partial   the driver has not written the rest of the TD yet
    """

    address: U64
    length: U32
    moved: U32
    partial: bool


@dataclass
class RingState:
    """A transfer ring (4.9).

    dequeue     TR Dequeue Pointer: the address of the next TRB, and its cycle bit (6.2.3)
    stream_id   0 without streams
    moved       what is known of the TD there, if a part of it was moved
    skipping    it stands in a TD that a short packet has ended before the driver had written all of it
    ahead       data of IN transfers behind a failed one, for its retry
    begun       it stands in a TD of which a part has moved data
    """

    dequeue: U64
    stream_id: U16 = 0
    moved: MovedState | None = None
    skipping: bool = False
    ahead: list[bytes] = field(default_factory=list)
    begun: bool = False


@dataclass
class StreamsState:
    """What an endpoint with streams has beyond its rings (4.12).

    array     the Stream Context Array
    count     its entries, of which the first is not one
    rung      streams whose doorbell was rung and not answered yet
    invalid   a doorbell of a stream that there is not was rung, and not answered yet
    """

    array: U64
    count: U32
    rung: list[U16] = field(default_factory=list)
    invalid: bool = False


@dataclass
class EndpointState:
    """An endpoint that is not Disabled (4.8).

    dci        Device Context Index, 1 to 31
    type       CONTROL, ISOCHRONOUS, BULK or INTERRUPT
    state      "Running", "Halted", "Stopped" or "Error"
    context    its Endpoint Context
    rings      its rings; of one with streams those that were ever rung
    connected  its transfers go to the device at the slot's port; not after that was unplugged, or the controller failed
    rung       its doorbell was rung and not answered yet
    flowing    isochronous: transfers come one after the other, so that an empty ring is to be reported
    streams    None without streams
    """

    dci: Annotated[int, Range(1, 31)]
    type: TransferType
    state: str
    context: U64
    rings: list[RingState]
    connected: bool = True
    rung: bool = False
    flowing: bool = False
    streams: StreamsState | None = None


@dataclass
class SlotState:
    """A device slot that is enabled (4.5.3).

    slot_id      1 to 255
    state        "Enabled", "Default", "Addressed" or "Configured"
    port_id      the root hub port of its device; 0 before Address Device
    interrupter  Interrupter Target of the slot context
    connected    the device that was addressed is still at the port
    """

    slot_id: Annotated[int, Range(1, 255)]
    state: str
    port_id: U8 = 0
    interrupter: U16 = 0
    connected: bool = False
    endpoints: list[EndpointState] = field(default_factory=list)


@dataclass
class CountersState:
    """What an endpoint of a device has done since it was plugged in; see `EndpointStatistics`.

    address      as in the endpoint's descriptor
    errors       by completion code
    latency      TDs by the bit length of their nanoseconds, up to the last that is not 0
    """

    address: U8
    type: TransferType
    bytes: Annotated[int, Range(0, (1 << 127) - 1)] = 0
    missed: U64 = 0
    errors: dict[str, U64] = field(default_factory=dict)
    latency: list[U64] = field(default_factory=list)
    nanoseconds: Annotated[int, Range(0, (1 << 127) - 1)] = 0


@dataclass
class PortState:
    """A root hub port at which there is a device, or of which something has to be told; PORTSC is among the registers.

    occupied   there is a device
    event_due  a Port Status Change Event has to be published (4.19.2)
    reset_due  the change bits of PORTSC of a reset that the driver has asked for and that has not begun; else 0
    wakeup     the device wants to wake the port as soon as it is suspended, unless it has ended more transfers by then
               than this; None if it does not
    counters   those of each endpoint
    withheld   the driver sees an empty port (`usbvfiod quiesce`)
    """

    port_id: PortId
    occupied: bool
    event_due: bool = False
    reset_due: U32 = 0
    wakeup: U64 | None = None
    counters: list[CountersState] = field(default_factory=list)
    withheld: bool = False


@dataclass
class EventState:
    """An event that was not published, because its ring is full; `control` has no cycle bit (6.4.2)."""

    parameter: U64
    status: U32
    control: U32


@dataclass
class SegmentState:
    """A segment of an event ring: its address, and its entries."""

    address: U64
    size: U16


@dataclass
class EventRingState:
    """An event ring (4.9.4); positions are entries counted from the start of the first segment.

    segments   as the segment table had them when it was read; none before
    enqueue    where the next event goes, with the cycle bit `cycle`
    dequeue    what the driver has said last
    held       events that found the ring full, or no ring
    """

    segments: list[SegmentState] = field(default_factory=list)
    enqueue: U32 = 0
    cycle: Annotated[int, Range(0, 1)] = 1
    dequeue: U32 = 0
    held: list[EventState] = field(default_factory=list)


@dataclass
class SavedRingState:
    """What Save State has kept of an interrupter (4.23.2): its ring, without what was held, and IPE."""

    ring: EventRingState
    pending: bool


@dataclass
class MappedState:
    """What an interrupter whose registers the client has mapped knows of them; see `shared_interrupter`.

    interrupt   IP
    restored    Restore State was the last that the driver has asked for
    table       ERSTBA as it was looked at last, and ERSTSZ in `segments`
    dequeue     ERDP, as it was looked at last
    """

    interrupt: bool = False
    restored: bool = False
    table: U64 = 0
    segments: U16 = 0
    dequeue: U64 = 0


@dataclass
class InterrupterState:
    """An interrupter (4.17); its registers are among the registers.

    pending    IPE: there is an event that wants an interrupt
    new_table  ERSTBA was written, and the table has not been read yet
    moved      ERDP was written, and not looked at yet
    wait       nanoseconds until the moderation interval is over
    saved      None unless the driver has saved the controller's state
    mapped     None unless the client may map the registers
    """

    ring: EventRingState
    pending: bool = False
    new_table: bool = False
    moved: bool = False
    wait: Nanoseconds = 0
    saved: SavedRingState | None = None
    mapped: MappedState | None = None


@dataclass
class CommandRingState:
    """The command ring (4.6.1, 4.9.3).

    dequeue    address of the next command, and its cycle bit
    pointer    CRCR as the driver has written it last, in two halves
    rung       the doorbell was rung, and not all of the ring has been read since
    stopping   CRCR.CS and CRCR.CA, if they were written and not answered yet
    ignored    an upper half of CRCR that is written next belongs to a lower half that was ignored
    """

    dequeue: U64 = 1
    pointer: U64 = 0
    rung: bool = False
    stopping: U32 = 0
    ignored: bool = False


@dataclass
class ControllerState:
    """A controller.

    usb2_ports, usb3_ports, context_size   those of the controller that goes on have to be the same
    interrupters   all of them, in order
    registers      those that do not have their value after a reset, by name: "USBCMD", "PORTSC3", "IMAN0". Those of
                   the interrupters are missing if `shared`
    shared         the client may map the interrupters' registers: they lie in a file of their own, which goes on
    saved          the driver has saved the controller's state (USBCMD.CSS)
    failed         a Host System Error or Host Controller Error waits for a reset
    untouched      no driver has written USBCMD since power-on
    withholding    the driver sees all ports empty, whatever is plugged in (`usbvfiod quiesce`)
    clock          the loop's clock when the state was taken, in nanoseconds: what counts time goes on from there
    microframe     MFINDEX at that time
    remapping      nanoseconds that unmapped memory may still take to come back
    ports          those of which there is something to say
    slots          those that are enabled
    """

    usb2_ports: Annotated[int, Range(1, 254)]
    usb3_ports: Annotated[int, Range(1, 254)]
    context_size: Annotated[int, Range(32, 64)]
    registers: dict[str, U32]
    command_ring: CommandRingState
    interrupters: list[InterrupterState]
    shared: bool = False
    saved: bool = False
    failed: bool = False
    untouched: bool = False
    withholding: bool = False
    clock: Nanoseconds = 0
    microframe: U16 = 0
    remapping: Nanoseconds = 0
    ports: list[PortState] = field(default_factory=list)
    slots: list[SlotState] = field(default_factory=list)
