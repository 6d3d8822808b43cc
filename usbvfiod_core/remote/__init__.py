"""What backends of remote devices share: where the other end is, the way there, and a connection on the loop.

Plugins import from here; the core itself needs none of it.

1. In a thread, `connect(parse_place(...), options)` makes a `Link`: TCP, TLS, a Unix socket or a command. What has to
   be said before there is a device is said there, by `Link.send_all` and `Link.receive_exactly`, with a `Patience`.
2. The device, an `EnumeratedDevice`, puts a `Channel` on the link: what comes goes where its `Reader` wants it, what is
   sent waits in order.

A device that cannot be had now is a `DeviceAway`: its attachment waits, and tries again by its back-off.
"""

from ..vfio_user.listener import Adopted, ListenerState
from .channel import MESSAGES, Channel, Outgoing, PeerError, Reader
from .connecting import connect
from .handed_over import link_taken_over
from .link import Link, LinkLost
from .listener import ACCEPT_PAUSE, Listener
from .needs import register_remote_needs
from .options import RemoteOptions
from .patience import Patience
from .place import Place, parse_place
from .unwanted import Unwanted

__all__ = [
    "ACCEPT_PAUSE",
    "MESSAGES",
    "Adopted",
    "Channel",
    "Link",
    "LinkLost",
    "Listener",
    "ListenerState",
    "Outgoing",
    "Patience",
    "PeerError",
    "Place",
    "Reader",
    "RemoteOptions",
    "Unwanted",
    "connect",
    "link_taken_over",
    "parse_place",
    "register_remote_needs",
]
