"""What a server says of itself to whoever asks for its status."""

from __future__ import annotations

import os
import time
from typing import Any, Protocol

from ..compiled import BUILD
from ..memory import GuestMemory
from ..vfio_user.transport import Server as Transport
from ..xhci.controller import Controller
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
    controller: Controller
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
    return {
        "server": {
            "pid": os.getpid(),
            "usbvfiod": server.version,
            "build": BUILD,
            "name": server.steering.called,
            "started": started(server),
            "seconds": round(server.loop.time() - server.started[0], 3),
            "cpu_seconds": cpu_seconds(),
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
        "memory": memory(server),
    }


def started(server: Asked) -> float:
    """When it was started, as `time.time`."""
    return round(server.started[1], 3)


def cpu_seconds() -> float:
    """Processor time that it has taken."""
    return round(time.process_time(), 6)


def memory(server: Asked) -> dict[str, int]:
    """Bytes that the client has mapped."""
    regions = server.memory.regions
    shared = sum(region.end - region.start for region in regions if region.view is not None)
    return {"shared": shared, "unshared": sum(region.end - region.start for region in regions) - shared}
