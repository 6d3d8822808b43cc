"""Where a device's mass storage is: its interfaces, their alternate settings and endpoints, by its configurations."""

from __future__ import annotations

from dataclasses import dataclass

from usbvfiod_core import SetupPacket, TransferType
from usbvfiod_core.usb.descriptors import Configuration, Interface
from usbvfiod_core.usb.recipients import interface_of

from .information_units import COMMAND_PIPE, DATA_IN_PIPE, DATA_OUT_PIPE, PIPE_USAGE, STATUS_PIPE

MASS_STORAGE = 0x08
BULK_ONLY = 0x50
UAS = 0x62

_VENDOR_SPECIFIC = 0xFF
_SCSI = 0x06


@dataclass(frozen=True)
class Setting:
    """One alternate setting of a mass-storage interface. `pipes` are the addresses of its endpoints by bPipeID of UAS;
    those of bulk-only are its data pipes. They are empty for a transport that is not known here."""

    interface: int
    alternate: int
    transport: int
    """bInterfaceProtocol."""
    pipes: dict[int, int]


class Layout:
    """What the configurations say.

    settings  those of mass storage, by bConfigurationValue, bInterfaceNumber and bAlternateSetting
    storage   addresses of all endpoints of mass storage, in any configuration; `others` those of other interfaces
    """

    def __init__(self) -> None:
        self.settings: dict[tuple[int, int, int], Setting] = {}
        self.storage: set[int] = set()
        self.others: set[int] = set()
        self._interfaces: dict[tuple[int, int], int] = {}
        self._configurations: dict[int, Configuration] = {}

    def add(self, raw: bytes, hidden: bytes = b"") -> None:
        """Take what a configuration descriptor says, with all that belongs to it; `hidden` is the same with what the
        guest does not see, whose endpoints are there all the same. Raises DescriptorError."""
        configuration = Configuration.unpack(raw)
        is_first = configuration.value not in self._configurations  # of two with one value it is chosen
        whole = Configuration.unpack(hidden) if hidden else configuration
        for interface in whole.interfaces:
            addresses = {endpoint.address for endpoint in interface.endpoints}
            if is_mass_storage(interface):
                self.storage |= addresses
            else:
                self.others |= addresses
        if not is_first:
            return
        self._configurations[configuration.value] = configuration
        for interface in filter(is_mass_storage, configuration.interfaces):
            key = (configuration.value, interface.number)
            setting = Setting(interface.number, interface.alternate, interface.protocol, _pipes(interface))
            self.settings[*key, interface.alternate] = setting
            self._interfaces[key] = sum(1 for known in self.settings if known[:2] == key)

    def has(self, configuration: int) -> bool:
        """Whether there is a configuration of this value, which may be 0."""
        return configuration in self._configurations

    def is_storage(self, configuration: int | None, interface: int) -> bool:
        """Whether an interface is one of mass storage."""
        return configuration is not None and (configuration, interface) in self._interfaces

    def alternates(self, configuration: int, interface: int) -> int:
        """How many settings an interface of mass storage has."""
        return self._interfaces.get((configuration, interface), 0)

    def interface_count(self, configuration: int) -> int:
        """How many interfaces a configuration has."""
        found = self._configurations.get(configuration)
        return 0 if found is None else len({interface.number for interface in found.interfaces})

    def interface_of(self, configuration: int | None, setup: SetupPacket) -> int:
        """The number of the interface that a request to an interface is for."""
        return interface_of(setup, None if configuration is None else self._configurations.get(configuration))

    def first_settings(self, configuration: int) -> list[Setting]:
        """The settings that hold when a configuration has been chosen (USB 2.0 9.2.3)."""
        return [
            setting
            for (value, _, alternate), setting in self.settings.items()
            if (value, alternate) == (configuration, 0)
        ]


def is_mass_storage(interface: Interface) -> bool:
    """Whether it is of that class, or speaks its protocols under a vendor's."""
    if interface.class_code == MASS_STORAGE:
        return True
    disguised = (interface.class_code, interface.subclass) == (_VENDOR_SPECIFIC, _SCSI)
    return disguised and interface.protocol in (BULK_ONLY, UAS)


def without_uas(raw: bytes) -> bytes:
    """A configuration descriptor without its UAS settings, where the interface has another one."""
    configuration = Configuration.unpack(raw)
    kept = {each.number for each in configuration.interfaces if each.alternate == 0 and not is_uas(each)}
    interfaces = tuple(each for each in configuration.interfaces if not (is_uas(each) and each.number in kept))
    if len(interfaces) == len(configuration.interfaces):
        return raw
    return Configuration(
        interfaces,
        configuration.value,
        configuration.name,
        configuration.attributes,
        configuration.max_power,
        configuration.extra,
        configuration.trailing,
    ).pack(raw[1])


def is_uas(interface: Interface) -> bool:
    """Whether a setting is UAS."""
    return is_mass_storage(interface) and interface.protocol == UAS


def _pipes(interface: Interface) -> dict[int, int]:
    bulk = [endpoint for endpoint in interface.endpoints if endpoint.type is TransferType.BULK]
    pipes: dict[int, int] = {}
    if interface.protocol == BULK_ONLY:
        for endpoint in bulk:
            pipes.setdefault(DATA_IN_PIPE if endpoint.is_in else DATA_OUT_PIPE, endpoint.address)
        return pipes if len(pipes) == 2 else {}
    if interface.protocol == UAS:
        ways = {COMMAND_PIPE: False, STATUS_PIPE: True, DATA_IN_PIPE: True, DATA_OUT_PIPE: False}
        for endpoint in bulk:
            usage = endpoint.extra
            if len(usage) >= 3 and usage[1] == PIPE_USAGE and ways.get(usage[2]) is endpoint.is_in:
                pipes[usage[2]] = endpoint.address
        return pipes if len(pipes) == 4 else {}
    return {}
