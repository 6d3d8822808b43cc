"""Hides interfaces of a composite device from the guest: a headset without its buttons, a modem without its disk.

`interface-mask.hide=0,2` hides these interfaces, `interface-mask.show=1` all but these. A hidden interface keeps its
number; `interface-mask.style` says whether it is one of the class vendor-specific without endpoints (`vendor`), or is
left out of the configuration (`remove`). Its requests are refused, its endpoints never reached.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from usbvfiod_core import (
    ConfigError,
    InterceptedTransfer,
    Interceptor,
    RegisterOptions,
    SetupPacket,
    Transfer,
    TransferStatus,
    TransferType,
    hookimpl,
)
from usbvfiod_core.usb import requests
from usbvfiod_core.usb.descriptors import CONFIGURATION, DEVICE, INTERFACE_ASSOCIATION, Configuration, Interface, walk
from usbvfiod_core.usb.recipients import interface_of

usbvfiod_requires = ">=1,<2"

log = logging.getLogger(__name__)

_GET_DESCRIPTOR = (requests.DIRECTION_IN, requests.GET_DESCRIPTOR)
_SET_CONFIGURATION = (requests.RECIPIENT_DEVICE, requests.SET_CONFIGURATION)


@dataclass(frozen=True)
class Options:
    """What is hidden of one device; with neither `hide` nor `show` nothing is."""

    hide: tuple[int, ...] = ()
    show: tuple[int, ...] = ()
    style: Literal["vendor", "remove"] = "vendor"

    def __post_init__(self) -> None:
        if self.hide and self.show:
            raise ConfigError("give either hide or show")

    def hides(self, interface: int) -> bool:
        """Whether the guest does not see an interface."""
        return interface in self.hide if self.hide else bool(self.show) and interface not in self.show


class InterfaceMask(Interceptor):
    """The mask of one device.

    hidden_endpoints   addresses of endpoints that only hidden interfaces have, by configuration value
    configuration      the value of the configuration the guest has selected, None for none
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.hidden_endpoints: dict[int, frozenset[int]] = {}
        self.configuration: int | None = None
        self._configurations: dict[int | None, Configuration] = {}

    # -- the device's life -------------------------------------------------------------------------------------------

    def attached(self) -> None:
        """Learn which endpoints are hidden, before the guest can ask for any: it may never read a descriptor."""
        self._get_descriptor(DEVICE, 0, 18, self._learn_device)

    def was_reset(self) -> None:
        self.configuration = None

    def _learn_device(self, transfer: Transfer) -> None:
        raw = transfer.read()[: transfer.actual]
        for index in range(raw[17] if len(raw) == 18 else 0):
            self._get_descriptor(CONFIGURATION, index, 9, self._learn_length)

    def _learn_length(self, transfer: Transfer) -> None:
        head = transfer.read()[: transfer.actual]
        if len(head) == 9 and transfer.setup is not None:
            index, total = transfer.setup.value & 0xFF, int.from_bytes(head[2:4], "little")
            self._get_descriptor(CONFIGURATION, index, total, self._learn_configuration)

    def _learn_configuration(self, transfer: Transfer) -> None:
        configuration = Configuration.unpack(transfer.read()[: transfer.actual])
        hidden, seen = set[int](), set[int]()
        for interface in configuration.interfaces:
            addresses = hidden if self.options.hides(interface.number) else seen
            addresses.update(endpoint.address for endpoint in interface.endpoints)
        self.hidden_endpoints.setdefault(configuration.value, frozenset(hidden - seen))
        self._configurations.setdefault(configuration.value, configuration)
        numbers = {interface.number for interface in configuration.interfaces}
        for number in {*self.options.hide, *self.options.show} - numbers:
            log.warning("%s: configuration %d has no interface %d", self.device.name, configuration.value, number)

    def _get_descriptor(self, kind: int, index: int, length: int, then: Callable[[Transfer], object]) -> None:
        self.control_request(SetupPacket(*_GET_DESCRIPTOR, kind << 8 | index, 0, length), then)

    # -- what the guest sees -----------------------------------------------------------------------------------------

    def configuration_descriptor(self, raw: bytes) -> bytes:
        configuration = Configuration.unpack(raw)
        interfaces = tuple(
            self._masked(interface) if self.options.hides(interface.number) else self._shown(interface)
            for interface in configuration.interfaces
            if not self.options.hides(interface.number) or (self.options.style == "vendor" and not interface.alternate)
        )
        return replace(configuration, interfaces=interfaces).pack(raw[1])

    def _masked(self, interface: Interface) -> Interface:
        before = self._associations(interface.before)
        return Interface(interface.number, 0xFF, 0xFF, 0xFF, before=before)

    def _shown(self, interface: Interface) -> Interface:
        return replace(interface, before=self._associations(interface.before))

    def _associations(self, before: bytes) -> bytes:
        """What stands in front of an interface, without associations that a hidden interface belongs to: a driver
        would look for the whole function."""
        kept = b""
        for kind, data in walk(before):
            group = range(data[2], data[2] + data[3]) if kind == INTERFACE_ASSOCIATION and len(data) >= 4 else ()
            if not any(self.options.hides(number) for number in group):
                kept += data
        return kept

    # -- what it can reach -------------------------------------------------------------------------------------------

    def intercepts(self, endpoint: int, type: TransferType) -> bool:
        """Endpoints that are in no hidden interface cost nothing. The guest configures endpoints before it selects
        the configuration, so each is asked about for all of them."""
        known = self.hidden_endpoints.values()
        return type is TransferType.CONTROL or not known or any(endpoint in hidden for hidden in known)

    def control(self, transfer: InterceptedTransfer) -> None:
        setup = transfer.setup
        if setup is not None and self._is_hidden(setup):
            transfer.refuse()

    def control_completed(self, transfer: InterceptedTransfer) -> None:
        setup = transfer.setup
        if setup is None or (setup.request_type, setup.request) != _SET_CONFIGURATION:
            return
        if transfer.status is TransferStatus.COMPLETED:
            known = setup.value in self.hidden_endpoints  # 0 is a value of some, and of the others none at all
            self.configuration = setup.value if known else None

    def bulk(self, transfer: InterceptedTransfer) -> None:
        if self._hides(transfer.endpoint):
            transfer.refuse(TransferStatus.ERROR)  # as an endpoint that is not there: nobody answers

    interrupt = isochronous = bulk

    def _is_hidden(self, setup: SetupPacket) -> bool:
        if setup.recipient == requests.RECIPIENT_INTERFACE:
            return self.options.hides(interface_of(setup, self._configurations.get(self.configuration)))
        number = setup.index & 0xFF
        return setup.recipient == requests.RECIPIENT_ENDPOINT and bool(number & 0x7F) and self._hides(number)

    def _hides(self, endpoint: int) -> bool:
        """Whether an endpoint is hidden in the current configuration; in one that is not known, all are."""
        hidden = None if self.configuration is None else self.hidden_endpoints.get(self.configuration)
        return hidden is None or endpoint in hidden


@hookimpl
def usbvfiod_register_options(register: RegisterOptions) -> None:
    """The options of this plugin: `interface-mask.hide=0,2` in a device specification."""
    register(device=Options)


@hookimpl
def usbvfiod_intercept_device(options: Options) -> Interceptor | None:
    """Mask a device for which there are options."""
    return InterfaceMask(options) if options.hide or options.show else None
