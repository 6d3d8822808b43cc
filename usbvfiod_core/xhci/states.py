"""The two state machines of the xHC as tables: slots (4.5.3) and endpoints (4.8.3).

A pair that is not in its table is not allowed in that state: the command completes with a Context State Error, a
doorbell is ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ..state import StateError
from .spec import (
    EP_DISABLED,
    EP_ERROR,
    EP_HALTED,
    EP_RUNNING,
    EP_STOPPED,
    SLOT_ADDRESSED,
    SLOT_CONFIGURED,
    SLOT_DEFAULT,
    SLOT_DISABLED,
    SLOT_ENABLED,
)

# What happens to a slot.
ENABLE: Final = "Enable Slot"
DISABLE: Final = "Disable Slot"
ADDRESS: Final = "Address Device"
ADDRESS_BSR: Final = "Address Device, BSR=1"
CONFIGURE: Final = "Configure Endpoint"
DECONFIGURE: Final = "Configure Endpoint, DC=1"
EVALUATE: Final = "Evaluate Context"
RESET_DEVICE: Final = "Reset Device"

SLOT: Final[dict[tuple[int, str], int]] = {
    (SLOT_DISABLED, ENABLE): SLOT_ENABLED,
    (SLOT_ENABLED, DISABLE): SLOT_DISABLED,
    (SLOT_DEFAULT, DISABLE): SLOT_DISABLED,
    (SLOT_ADDRESSED, DISABLE): SLOT_DISABLED,
    (SLOT_CONFIGURED, DISABLE): SLOT_DISABLED,
    (SLOT_ENABLED, ADDRESS_BSR): SLOT_DEFAULT,
    (SLOT_ENABLED, ADDRESS): SLOT_ADDRESSED,
    (SLOT_DEFAULT, ADDRESS): SLOT_ADDRESSED,
    (SLOT_ADDRESSED, CONFIGURE): SLOT_CONFIGURED,
    (SLOT_CONFIGURED, CONFIGURE): SLOT_CONFIGURED,
    (SLOT_ADDRESSED, DECONFIGURE): SLOT_ADDRESSED,
    (SLOT_CONFIGURED, DECONFIGURE): SLOT_ADDRESSED,
    (SLOT_ENABLED, EVALUATE): SLOT_ENABLED,
    (SLOT_DEFAULT, EVALUATE): SLOT_DEFAULT,
    (SLOT_ADDRESSED, EVALUATE): SLOT_ADDRESSED,
    (SLOT_CONFIGURED, EVALUATE): SLOT_CONFIGURED,
    (SLOT_ADDRESSED, RESET_DEVICE): SLOT_DEFAULT,
    (SLOT_CONFIGURED, RESET_DEVICE): SLOT_DEFAULT,
}

SLOT_STATES: Final = {
    SLOT_DISABLED: "Disabled",
    SLOT_ENABLED: "Enabled",
    SLOT_DEFAULT: "Default",
    SLOT_ADDRESSED: "Addressed",
    SLOT_CONFIGURED: "Configured",
}
"""Names of the slot states, for people."""

# What happens to an endpoint.
DOORBELL: Final = "doorbell"
HALT: Final = "halt"
TRB_FAULT: Final = "TRB error"
STOP: Final = "Stop Endpoint"
RESET: Final = "Reset Endpoint"
SET_DEQUEUE: Final = "Set TR Dequeue Pointer"

ENDPOINT: Final[dict[tuple[int, str], int]] = {
    (EP_RUNNING, DOORBELL): EP_RUNNING,
    (EP_STOPPED, DOORBELL): EP_RUNNING,
    (EP_RUNNING, HALT): EP_HALTED,
    (EP_RUNNING, TRB_FAULT): EP_ERROR,
    (EP_RUNNING, STOP): EP_STOPPED,
    (EP_HALTED, RESET): EP_STOPPED,
    (EP_STOPPED, SET_DEQUEUE): EP_STOPPED,
    (EP_ERROR, SET_DEQUEUE): EP_STOPPED,
}

ENDPOINT_STATES: Final = {
    EP_DISABLED: "Disabled",
    EP_RUNNING: "Running",
    EP_HALTED: "Halted",
    EP_STOPPED: "Stopped",
    EP_ERROR: "Error",
}
"""Names of the endpoint states, for people."""


def named(names: Mapping[int, str], name: str, path: str) -> int:
    """The state of one of these names. Raises StateError, for the state of a controller at `path`."""
    for number, known in names.items():
        if known == name:
            return number
    raise StateError(f"{path}: there is no state {name!r} (there are: {', '.join(names.values())})")
