"""A guest-side xHCI driver in Python, in the words of the xHCI specification (sections in parentheses are xHCI 1.2).

`GuestDriver(bus).start()` brings a controller up; `enumerate` gives a `UsbDevice` with `control_in`, `bulk_out` and
so on. Below that everything is open, so that tests can be illegal on purpose: `driver.command(trb)`,
`pipe.submit_trbs`, `ring.push`, `driver.next_event`.
"""

from .capabilities import Capabilities, SupportedProtocol
from .commands import Command, Commands
from .contexts import DeviceContext, InputContext, endpoint_dwords, slot_dwords
from .device import UsbDevice
from .driver import GuestDriver
from .errors import DriverError, DriverTimeoutError, ProtocolError
from .isochronous import IsochronousPipe
from .pipe import Pipe
from .ports import Port
from .rings import EventRing, ProducerRing
from .streams import Stream, StreamPipe
from .td import Td, TdOptions, cut
from .trb import Event, Trb

__all__ = [
    "Capabilities",
    "Command",
    "Commands",
    "DeviceContext",
    "DriverError",
    "DriverTimeoutError",
    "Event",
    "EventRing",
    "GuestDriver",
    "InputContext",
    "IsochronousPipe",
    "Pipe",
    "Port",
    "ProducerRing",
    "ProtocolError",
    "Stream",
    "StreamPipe",
    "SupportedProtocol",
    "Td",
    "TdOptions",
    "Trb",
    "UsbDevice",
    "cut",
    "endpoint_dwords",
    "slot_dwords",
]
