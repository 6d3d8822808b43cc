"""What is asked of a transfer of the guest."""

from __future__ import annotations

from usbvfiod_core import InterceptedTransfer


def in_flight(transfer: InterceptedTransfer) -> bool:
    """Whether the guest still waits for it, however far it has come."""
    return transfer.outer.status is None
