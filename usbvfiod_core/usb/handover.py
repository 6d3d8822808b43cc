"""What a device hands over to the process that takes its server's place, while the guest goes on using it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..errors import DeviceError


class CannotHandOver(DeviceError):
    """A device that only its process can go on with; the message names it and says why."""


class NotSettled(CannotHandOver):
    """A device that cannot be handed over now, and can be soon."""


@dataclass
class Handover:
    """All that another process needs to go on with a device.

    state         plain values, as `json.dumps` takes them: what the device must not forget
    descriptors   open file descriptors by a name that the backend chooses; they stay the device's, and the other
                  process gets copies of the same open files, with their locks
    """

    state: dict[str, Any] = field(default_factory=dict)
    descriptors: dict[str, int] = field(default_factory=dict)
