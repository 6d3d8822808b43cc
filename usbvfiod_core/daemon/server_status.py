"""What a server says of itself to whoever asks for its status."""

from __future__ import annotations

import os
import time
from typing import Any, Protocol

from ..compiled import BUILD
from ..memory import GuestMemory
from ..vfio_user.transport import Server as Transport
from .attachments import Attachments
from .config import Config
from .confinement import Confinement
from .lateness import Lateness
from .loop import ServerLoop
from .quiescing import Quiescing
from .steering import Steering


class Asked(Protocol):
    """What this needs of a server. `started` is when, by the loop's clock and by that of `time.time`."""

    loop: ServerLoop
    transport: Transport
    memory: GuestMemory
    attachments: Attachments
    confinement: Confinement
    steering: Steering
    quiescing: Quiescing
    lateness: Lateness
    started: tuple[float, float]
    serving: bool
    version: str

    @property
    def config(self) -> Config: ...


def server_status(server: Asked) -> dict[str, Any]:
    """The server itself, its client, and the memory that this has mapped, in bytes."""
    client, settings = server.transport.client, server.config.server
    regions = server.memory.regions
    shared = sum(region.end - region.start for region in regions if region.view is not None)
    mapped = sum(region.end - region.start for region in regions)
    return {
        "server": {
            "pid": os.getpid(),
            "usbvfiod": server.version,
            "build": BUILD,
            "name": server.steering.called,
            "started": round(server.started[1], 3),
            "seconds": round(server.loop.time() - server.started[0], 3),
            "cpu_seconds": round(time.process_time(), 6),
            "lateness": server.lateness.look(),
            "socket": "" if server.config.socket_path is None else str(server.config.socket_path),
            "usb2_ports": settings.usb2_ports,
            "usb3_ports": settings.usb3_ports,
            "serving": server.serving,
            "missing": [str(attachment) for attachment in server.attachments.missing],
            "sandbox": server.confinement.report,
            "quiesced": None if server.quiescing.seconds is None else round(server.quiescing.seconds, 3),
        },
        "client": None if client is None else client._asdict(),
        "memory": {"shared": shared, "unshared": mapped - shared},
    }
