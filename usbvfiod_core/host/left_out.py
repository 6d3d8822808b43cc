"""Interfaces of a device that the host cannot give away, while the others are the guest's.

A device may have interfaces that its descriptors show and that nobody on the host can claim: Linux keeps the first 32
of a configuration, and fewer of some devices, usbfs has numbers below the bits of a long, and libusb those below 32.
The guest sees them, as their descriptors are the device's. At their endpoints nobody answers, and requests to them are
refused; the kernel is not asked, as its answers would be taken for those of a device that has gone.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from ..usb import requests
from ..usb.descriptors import Configuration
from ..usb.recipients import interface_of
from ..usb.transfer import Transfer, TransferStatus

log = logging.getLogger(__name__)

BY_LINUX = "Linux has left it out"
"""Why an interface cannot be claimed that the kernel says is not there."""


def above(limit: int, what: str) -> str:
    """Why an interface cannot be claimed whose number is too large."""
    return f"{what} has numbers below {limit} only"


class LeftOut:
    """Those of one device, in its present configuration. `note` is what people are told while there are any."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._named: set[tuple[int | None, int]] = set()
        self._reasons: dict[int, str] = {}
        self._configuration: Configuration | None = None
        self._endpoints: frozenset[int] = frozenset()

    def __bool__(self) -> bool:
        return bool(self._reasons)

    @property
    def note(self) -> str:
        """For `DeviceEvents.note`; empty where nothing is left out."""
        if not self._reasons:
            return ""
        numbers = ", ".join(map(str, self._reasons))
        return f"without interface{'s' * (len(self._reasons) > 1)} {numbers}, which the host cannot give"

    def update(self, configuration: Configuration | None, reasons: Mapping[int, str]) -> bool:
        """Take what of `configuration` is left out now, and why; each interface is named in the log once. Returns
        whether `note` has changed."""
        if reasons == self._reasons and configuration is self._configuration:
            return False
        before = self.note
        self._configuration = configuration
        self._reasons = dict(sorted(reasons.items()))
        interfaces = () if configuration is None else configuration.interfaces
        given = {each.address for part in interfaces if part.number not in reasons for each in part.endpoints}
        kept = {each.address for part in interfaces if part.number in reasons for each in part.endpoints}
        self._endpoints = frozenset(kept - given)
        self._say(None if configuration is None else configuration.value)
        return self.note != before

    def refusal(self, transfer: Transfer) -> TransferStatus | None:
        """What a transfer to something that is left out ends with; None for any other."""
        setup = transfer.setup
        if setup is None:
            return TransferStatus.ERROR if transfer.endpoint in self._endpoints else None
        if setup.kind == requests.TYPE_VENDOR:
            return None  # whatever it is for, Linux passes it on
        if setup.recipient == requests.RECIPIENT_INTERFACE:
            refused = interface_of(setup, self._configuration) in self._reasons
        else:
            refused = setup.recipient == requests.RECIPIENT_ENDPOINT and setup.index & 0xFF in self._endpoints
        return TransferStatus.STALL if refused else None

    def _say(self, value: int | None) -> None:
        by_reason: dict[str, list[int]] = {}
        for number, reason in self._reasons.items():
            if (value, number) not in self._named:
                self._named.add((value, number))
                by_reason.setdefault(reason, []).append(number)
        for reason, numbers in by_reason.items():
            what = f"interface{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"
            log.warning("%s: the guest gets it without %s: %s", self._name, what, reason)
