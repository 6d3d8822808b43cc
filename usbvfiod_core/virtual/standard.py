"""The standard requests of a virtual device, answered from its descriptors (USB 2.0 9.4, USB 3.2 9.4).

What a device is, is typed once, as descriptors; which endpoints exist, which alternate settings can be chosen,
whether remote wake-up can be enabled and what endpoint 0 answers at this speed and at the other follow from them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from ..errors import ConfigError
from ..usb import descriptors, requests
from ..usb.requests import SetupPacket
from ..usb.speed import Speed
from ..usb.transfer import TransferStatus
from .endpoint import VirtualEndpoint

_IN, _OUT = requests.DIRECTION_IN, 0
_DEVICE, _INTERFACE, _ENDPOINT = (
    requests.RECIPIENT_DEVICE,
    requests.RECIPIENT_INTERFACE,
    requests.RECIPIENT_ENDPOINT,
)

_OTHER_SPEED = {Speed.HIGH: Speed.FULL}
_USB2_VERSION = 0x0210  # 2.0 with a BOS descriptor, which says that there is no link power management
_USB3_VERSION = 0x0300

_Handler = Callable[["StandardRequests", SetupPacket, bytes], bytes | None]


class StandardRequests(ABC):
    """Identity, descriptors and configuration of a virtual device.

    A subclass sets the class attributes and writes `describe`. A device is not configured until the driver has sent
    SET_CONFIGURATION; then `endpoints` has those of alternate setting 0 of every interface.
    """

    vendor_id: int = 0x1209
    product_id: int = 0x0001
    device_version: int = 0x0100
    """bcdDevice, binary coded decimal."""
    device_class: tuple[int, int, int] = (0, 0, 0)
    """bDeviceClass, bDeviceSubClass, bDeviceProtocol; zeros leave it to the interfaces."""
    manufacturer: str = "usbvfiod"
    product: str = "Virtual device"
    serial: str = ""
    """Empty: the device has no serial number."""
    ltm_capable: bool = False
    """Whether it offers Latency Tolerance Messages (USB 3.2 9.6.2.2)."""

    speed: Speed

    def __init__(self, speed: Speed) -> None:
        if speed > Speed.SUPER:
            raise ConfigError(f"a virtual device runs at low, full, high or super speed, not {speed.name.lower()}")
        self.speed = speed
        self._strings: list[str] = []
        self.configurations: tuple[descriptors.Configuration, ...] = tuple(self.describe(speed))
        self.configuration: descriptors.Configuration | None = None
        """The chosen one; None while not configured."""
        self.alternates: dict[int, int] = {}
        """Chosen alternate setting of each interface of the configuration."""
        self.endpoints: dict[int, VirtualEndpoint] = {}
        """The endpoints there are now, by address; without endpoint 0."""
        self.remote_wakeup_enabled = False
        self.u1_enabled = False
        self.u2_enabled = False
        self.ltm_enabled = False
        self.exit_latencies = bytes(6)
        """What SET_SEL said: U1 SEL, U1 PEL, U2 SEL, U2 PEL (USB 3.2 9.4.12)."""
        self.isochronous_delay = 0
        """What SET_ISOCH_DELAY said, in nanoseconds."""
        self.device_descriptor = self._device_descriptor(speed)

    # -- for subclasses ----------------------------------------------------------------------------------------------

    @abstractmethod
    def describe(self, speed: Speed) -> Sequence[descriptors.Configuration]:
        """The configurations at `speed`: the device's own speed, or the other one it tells about (USB 2.0 9.2.6.6).

        Called by the constructor, and again for the other speed; `string` gives indices for names.
        """

    def restart(self, endpoints: Sequence[VirtualEndpoint]) -> None:
        """These endpoints are new: not halted, nothing queued. Called after SET_CONFIGURATION and SET_INTERFACE;
        with none after a reset or when the device is unconfigured. Forget what belonged to the old ones."""
        return

    def clear_halt(self, endpoint: VirtualEndpoint) -> None:
        """The driver clears a halt (CLEAR_FEATURE). A device that must stay halted (bulk-only 6.6.1) overrides this."""
        endpoint.halted = False

    def string(self, text: str) -> int:
        """The index of the string descriptor for `text`; 0 for the empty text."""
        if not text:
            return 0
        if text not in self._strings:
            self._strings.append(text)
        return self._strings.index(text) + 1

    @property
    def strings(self) -> Sequence[str]:
        """The texts that there are string descriptors for, from index 1 on."""
        return self._strings

    # -- for VirtualDevice -------------------------------------------------------------------------------------------

    def standard_request(self, setup: SetupPacket, data: bytes) -> bytes | None:
        """Answer a standard request: the data stage for the driver, empty if there is none, or None for a STALL."""
        handler = _HANDLERS.get((setup.request_type, setup.request))
        return None if handler is None else handler(self, setup, data)

    @property
    def control_packet_size(self) -> int:
        """Bytes of a packet of endpoint 0, as the device descriptor says it."""
        return 64 if self.speed == Speed.FULL else self.speed.control_max_packet_size

    def unconfigure(self) -> None:
        """Back to the default state, as after power-on or a reset of the port (USB 2.0 9.1.1.3)."""
        self.u1_enabled = self.u2_enabled = self.ltm_enabled = False
        self._configure(None)

    # -- descriptors -------------------------------------------------------------------------------------------------

    def _device_descriptor(self, speed: Speed) -> descriptors.DeviceDescriptor:
        size = speed.control_max_packet_size
        return descriptors.DeviceDescriptor(
            _USB3_VERSION if speed.is_usb3 else _USB2_VERSION,
            *self.device_class,
            9 if speed.is_usb3 else 64 if speed == Speed.FULL else size,
            self.vendor_id,
            self.product_id,
            self.device_version,
            self.string(self.manufacturer),
            self.string(self.product),
            self.string(self.serial),
            len(self.configurations),
        )

    def _get_descriptor(self, setup: SetupPacket, _: bytes) -> bytes | None:
        kind, index = setup.value >> 8, setup.value & 0xFF
        if kind == descriptors.DEVICE and index == 0:
            return self.device_descriptor.pack()
        if kind == descriptors.CONFIGURATION and index < len(self.configurations):
            return self.configurations[index].pack()
        if kind == descriptors.STRING:
            return self._string_descriptor(index, setup.index)
        if kind == descriptors.BOS and index == 0:
            return self._bos_descriptor()
        other = _OTHER_SPEED.get(self.speed)  # a device of one speed, or of SuperSpeed now, has no other (9.6.2)
        if other is not None:
            if kind == descriptors.DEVICE_QUALIFIER and index == 0:
                return self._device_descriptor(other).qualifier()
            if kind == descriptors.OTHER_SPEED_CONFIGURATION:
                configurations = self.describe(other)
                if index < len(configurations):
                    return configurations[index].pack(descriptors.OTHER_SPEED_CONFIGURATION)
        return None

    def _string_descriptor(self, index: int, language: int) -> bytes | None:
        if index == 0:
            return descriptors.language_descriptor(descriptors.LANGUAGE_ENGLISH_US)
        # Firmware asks for language 0, and some drivers for one we do not have: any gets the one text there is.
        if index <= len(self._strings):
            return descriptors.string_descriptor(self._strings[index - 1])
        return None

    def _bos_descriptor(self) -> bytes:
        extension = descriptors.usb2_extension()
        if not self.speed.is_usb3:
            return descriptors.bos_descriptor(extension)
        return descriptors.bos_descriptor(extension, descriptors.superspeed_capability(ltm=self.ltm_capable))

    # -- configuration and alternate settings ------------------------------------------------------------------------

    def _get_configuration(self, setup: SetupPacket, _: bytes) -> bytes | None:
        return bytes((0 if self.configuration is None else self.configuration.value,))

    def _set_configuration(self, setup: SetupPacket, _: bytes) -> bytes | None:
        for configuration in self.configurations:
            if configuration.value == setup.value:  # which may be 0
                self._configure(configuration)
                return b""
        if setup.value == 0:
            self._configure(None)
            return b""
        return None

    def _configure(self, configuration: descriptors.Configuration | None) -> None:
        old = list(self.endpoints.values())
        interfaces = configuration.interfaces if configuration else ()
        self.configuration = configuration
        self.remote_wakeup_enabled = False
        self.alternates = configuration.first_settings if configuration else {}
        new = [
            VirtualEndpoint(item)
            for interface in interfaces
            if interface.alternate == self.alternates[interface.number]
            for item in interface.endpoints
        ]
        self.endpoints = {endpoint.address: endpoint for endpoint in new}
        self._replaced(old, new)

    def begin_configured(
        self,
        configuration: descriptors.Configuration,
        alternates: dict[int, int],
        endpoints: Sequence[VirtualEndpoint],
    ) -> None:
        """Of a new device: it has been configured like this in another process."""
        self.configuration, self.alternates = configuration, alternates
        self.endpoints = {endpoint.address: endpoint for endpoint in endpoints}
        self._replaced([], list(endpoints))

    def _get_interface(self, setup: SetupPacket, _: bytes) -> bytes | None:
        alternate = self.alternates.get(setup.index)
        return None if alternate is None else bytes((alternate,))

    def _set_interface(self, setup: SetupPacket, _: bytes) -> bytes | None:
        chosen = self._interface(setup.index, setup.value)
        if chosen is None:
            return None
        current = self._interface(setup.index, self.alternates[setup.index])
        old = [self.endpoints.pop(item.address) for item in current.endpoints] if current else []
        new = [VirtualEndpoint(item) for item in chosen.endpoints]
        self.alternates[setup.index] = setup.value
        self.endpoints.update((endpoint.address, endpoint) for endpoint in new)
        self._replaced(old, new)
        return b""

    def _interface(self, number: int, alternate: int) -> descriptors.Interface | None:
        for interface in self.configuration.interfaces if self.configuration else ():
            if interface.number == number and interface.alternate == alternate:
                return interface
        return None

    def _replaced(self, old: list[VirtualEndpoint], new: list[VirtualEndpoint]) -> None:
        self.restart(new)
        for endpoint in old:
            endpoint.flush(TransferStatus.ERROR)  # nobody answers there any more

    # -- status and features -----------------------------------------------------------------------------------------

    def _status_of_device(self, setup: SetupPacket, _: bytes) -> bytes | None:
        attributes = (self.configuration or self.configurations[0]).attributes
        status = 1 if attributes & descriptors.ATTRIBUTE_SELF_POWERED else 0
        if self.speed.is_usb3:
            status |= self.u1_enabled << 2 | self.u2_enabled << 3 | self.ltm_enabled << 4
        else:
            status |= self.remote_wakeup_enabled << 1
        return bytes((status, 0))

    def _status_of_interface(self, setup: SetupPacket, _: bytes) -> bytes | None:
        number = setup.index & 0xFF
        if number not in self.alternates:
            return None
        status = 0
        if self.speed.is_usb3 and self._can_wake and number == min(self.alternates):
            status = 1 | self.remote_wakeup_enabled << 1  # function remote wake-up (USB 3.2 9.4.5)
        return bytes((status, 0))

    def _status_of_endpoint(self, setup: SetupPacket, _: bytes) -> bytes | None:
        if not setup.index & 0x7F:
            return bytes(2)
        endpoint = self.endpoints.get(setup.index)
        return None if endpoint is None else bytes((endpoint.halted, 0))

    @property
    def _can_wake(self) -> bool:
        attributes = (self.configuration or self.configurations[0]).attributes
        return bool(attributes & descriptors.ATTRIBUTE_REMOTE_WAKEUP)

    def _feature_of_device(self, setup: SetupPacket, _: bytes) -> bytes | None:
        on = setup.request == requests.SET_FEATURE
        feature = setup.value
        if feature == requests.FEATURE_DEVICE_REMOTE_WAKEUP and not self.speed.is_usb3 and self._can_wake:
            self.remote_wakeup_enabled = on
        elif not self.speed.is_usb3 or self.configuration is None:
            return None
        elif feature == requests.FEATURE_U1_ENABLE:
            self.u1_enabled = on
        elif feature == requests.FEATURE_U2_ENABLE:
            self.u2_enabled = on
        elif feature == requests.FEATURE_LTM_ENABLE and self.ltm_capable:
            self.ltm_enabled = on
        else:
            return None
        return b""

    def _feature_of_interface(self, setup: SetupPacket, _: bytes) -> bytes | None:
        if setup.value != requests.FEATURE_FUNCTION_SUSPEND or not self.speed.is_usb3:
            return None
        if setup.index & 0xFF not in self.alternates:
            return None
        wake = setup.request == requests.SET_FEATURE and bool(setup.index >> 8 & 2)  # USB 3.2 table 9-9
        self.remote_wakeup_enabled = wake and self._can_wake
        return b""

    def _feature_of_endpoint(self, setup: SetupPacket, _: bytes) -> bytes | None:
        if setup.value != requests.FEATURE_ENDPOINT_HALT:
            return None
        on = setup.request == requests.SET_FEATURE
        if not setup.index & 0x7F:
            return None if on else b""  # endpoint 0 never halts: the next setup packet ends its STALL
        endpoint = self.endpoints.get(setup.index)
        if endpoint is None:
            return None
        if on:
            endpoint.halt()
        else:
            self.clear_halt(endpoint)
        return b""

    # -- USB 3 only --------------------------------------------------------------------------------------------------

    def _set_sel(self, setup: SetupPacket, data: bytes) -> bytes | None:
        if not self.speed.is_usb3 or len(data) != 6 or setup.value or setup.index:
            return None
        self.exit_latencies = data
        return b""

    def _set_isoch_delay(self, setup: SetupPacket, _: bytes) -> bytes | None:
        if not self.speed.is_usb3 or setup.index or setup.length:
            return None
        self.isochronous_delay = setup.value
        return b""


_R = StandardRequests
_HANDLERS: dict[tuple[int, int], _Handler] = {
    (_IN | _DEVICE, requests.GET_DESCRIPTOR): _R._get_descriptor,
    (_IN | _DEVICE, requests.GET_CONFIGURATION): _R._get_configuration,
    (_OUT | _DEVICE, requests.SET_CONFIGURATION): _R._set_configuration,
    (_IN | _INTERFACE, requests.GET_INTERFACE): _R._get_interface,
    (_OUT | _INTERFACE, requests.SET_INTERFACE): _R._set_interface,
    (_IN | _DEVICE, requests.GET_STATUS): _R._status_of_device,
    (_IN | _INTERFACE, requests.GET_STATUS): _R._status_of_interface,
    (_IN | _ENDPOINT, requests.GET_STATUS): _R._status_of_endpoint,
    (_OUT | _DEVICE, requests.SET_FEATURE): _R._feature_of_device,
    (_OUT | _DEVICE, requests.CLEAR_FEATURE): _R._feature_of_device,
    (_OUT | _INTERFACE, requests.SET_FEATURE): _R._feature_of_interface,
    (_OUT | _INTERFACE, requests.CLEAR_FEATURE): _R._feature_of_interface,
    (_OUT | _ENDPOINT, requests.SET_FEATURE): _R._feature_of_endpoint,
    (_OUT | _ENDPOINT, requests.CLEAR_FEATURE): _R._feature_of_endpoint,
    (_OUT | _DEVICE, requests.SET_SEL): _R._set_sel,
    (_OUT | _DEVICE, requests.SET_ISOCH_DELAY): _R._set_isoch_delay,
}
