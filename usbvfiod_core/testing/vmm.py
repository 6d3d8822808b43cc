"""How the VMMs that there are use a vfio-user server: what the kit's client and bus do as each of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..vfio_user import wire

__all__ = ["CLOUD_HYPERVISOR", "QEMU", "Vmm"]


@dataclass(frozen=True)
class Vmm:
    """A VMM as the server sees it; take one of those below, or make another from it with `dataclasses.replace`.

    minor, capabilities   what it proposes in VERSION
    posted   it asks for no reply to a register write, and goes on at once; otherwise it waits for each
    maps     it maps what the server lets it map, and reaches that without a message
    """

    name: str
    minor: int
    capabilities: dict[str, Any] = field(hash=False)
    posted: bool
    maps: bool


QEMU = Vmm(
    "QEMU",
    wire.MINOR,
    {
        "max_msg_fds": wire.MAX_MSG_FDS,
        "max_data_xfer_size": wire.MAX_DATA_XFER_SIZE,
        "max_dma_maps": wire.DEFAULT_MAX_DMA_MAPS,
        "pgsizes": wire.DEFAULT_PGSIZES,
    },
    posted=True,
    maps=False,
)
"""QEMU, without migration. It would map areas too; as it stops posting writes then, it is not offered any."""

CLOUD_HYPERVISOR = Vmm(
    "Cloud Hypervisor",
    1,
    {
        "max_msg_fds": 8,
        "max_data_xfer_size": wire.MAX_DATA_XFER_SIZE,
        "migration": {"pgsize": wire.DEFAULT_PGSIZES},
    },
    posted=False,
    maps=True,
)
"""Cloud Hypervisor 54 and its crate `vfio_user`."""
