"""Descriptors of device classes: what stands in the `before` and `extra` of interfaces and endpoints.

Interface associations (USB 3.2 9.6.4), communications devices (CDC 1.2, PSTN 1.2, ECM 1.2, NCM 1.0) and audio devices
(Audio 1.0). Those of HID are in `descriptors`. Each function returns the bytes of one descriptor; join them with `+`:

    functional = cdc_header() + cdc_call_management(DATA) + cdc_acm(0x02) + cdc_union(CONTROL, DATA)
    Interface(CONTROL, 0x02, 0x02, 0x01, endpoints=(notify,), extra=functional)

A value that does not fit into its field raises ValueError, OverflowError or `struct.error`.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import pack

from .descriptors import INTERFACE_ASSOCIATION

CS_INTERFACE = 0x24
"""bDescriptorType of what a class says of an interface."""
CS_ENDPOINT = 0x25
"""bDescriptorType of what a class says of an endpoint."""

ASSOCIATION_DEVICE_CLASS = (0xEF, 0x02, 0x01)
"""bDeviceClass, subclass and protocol of a device with interface associations (USB 3.2 9.6.1)."""

PCM = 0x0001
"""wFormatTag of samples as they are (Frmts 1.0 A.1.1)."""
LEFT_FRONT, RIGHT_FRONT = 0x0001, 0x0002
"""Bits of wChannelConfig (Audio 1.0 3.7.2.3)."""


def class_specific(body: bytes, *, kind: int = CS_INTERFACE) -> bytes:
    """A class-specific descriptor of type `kind`; `body` starts with bDescriptorSubtype."""
    return bytes((2 + len(body), kind)) + body


def interface_association(
    first: int, count: int, class_code: int, subclass: int = 0, protocol: int = 0, *, name: int = 0
) -> bytes:
    """Interfaces `first` to `first + count - 1` are one function of this class; it stands before the first of them.

    The device's own class is then ASSOCIATION_DEVICE_CLASS. `name` is the index of a string.
    """
    return bytes((8, INTERFACE_ASSOCIATION, first, count, class_code, subclass, protocol, name))


# -- communications devices --------------------------------------------------------------------------------------------


def cdc_header(version: int = 0x0110) -> bytes:
    """Header, the first of the functional descriptors (CDC 1.2 5.2.3.1); `version` is bcdCDC."""
    return class_specific(pack("<BH", 0x00, version))


def cdc_call_management(data_interface: int, capabilities: int = 0) -> bytes:
    """Call Management (PSTN 1.2 5.3.1). Without `capabilities` the device does not handle calls."""
    return class_specific(bytes((0x01, capabilities, data_interface)))


def cdc_acm(capabilities: int) -> bytes:
    """Abstract Control Management (PSTN 1.2 5.3.2). Bits of bmCapabilities: 0x01 communication features, 0x02 line
    coding and control line state, 0x04 break, 0x08 the notification of a network connection."""
    return class_specific(bytes((0x02, capabilities)))


def cdc_union(control: int, *subordinates: int) -> bytes:
    """Union: the interface that controls others (CDC 1.2 5.2.3.2)."""
    return class_specific(bytes((0x06, control, *subordinates)))


def cdc_ethernet(
    mac_address: int,
    *,
    max_segment: int = 1514,
    statistics: int = 0,
    multicast_filters: int = 0,
    power_filters: int = 0,
) -> bytes:
    """Ethernet Networking (ECM 1.2 5.4). `mac_address` is the index of a string of twelve hexadecimal digits."""
    return class_specific(pack("<BBIHHB", 0x0F, mac_address, statistics, max_segment, multicast_filters, power_filters))


def cdc_ncm(capabilities: int, version: int = 0x0100) -> bytes:
    """NCM (NCM 1.0 5.2.1): bcdNcmVersion and bmNetworkCapabilities."""
    return class_specific(pack("<BHB", 0x1A, version, capabilities))


# -- audio devices -----------------------------------------------------------------------------------------------------


def audio_header(entities: bytes, streaming: Sequence[int], *, version: int = 0x0100) -> bytes:
    """The header of the control interface (Audio 1.0 4.3.2), followed by `entities`: the descriptors of all terminals
    and units. `streaming` are the numbers of the streaming interfaces that belong to it."""
    size = 8 + len(streaming) + len(entities)
    return class_specific(pack("<BHHB", 0x01, version, size, len(streaming)) + bytes(streaming)) + entities


def audio_input_terminal(
    entity: int, kind: int, *, channels: int, layout: int, associated: int = 0, name: int = 0
) -> bytes:
    """Input Terminal (Audio 1.0 4.3.2.1): where sound comes into the function. `kind` is wTerminalType (0x0101 the
    USB stream, 0x0201 a microphone), `layout` wChannelConfig, `associated` the terminal that belongs to it."""
    return class_specific(pack("<BBHBBHBB", 0x02, entity, kind, associated, channels, layout, 0, name))


def audio_output_terminal(entity: int, kind: int, source: int, *, associated: int = 0, name: int = 0) -> bytes:
    """Output Terminal (Audio 1.0 4.3.2.2): where sound from the entity `source` leaves the function. `kind` is
    wTerminalType: 0x0101 the USB stream, 0x0301 a loudspeaker."""
    return class_specific(pack("<BBHBBB", 0x03, entity, kind, associated, source, name))


def audio_feature_unit(entity: int, source: int, controls: Sequence[int], *, name: int = 0) -> bytes:
    """Feature Unit (Audio 1.0 4.3.2.5). `controls` are bmaControls, of one byte each: of all channels together first,
    then of each channel. Bit 0 is mute, bit 1 volume."""
    return class_specific(bytes((0x06, entity, source, 1, *controls, name)))


def audio_stream(terminal: int, *, delay: int = 1, format: int = PCM) -> bytes:
    """The general descriptor of a streaming interface (Audio 1.0 4.5.2): its terminal, the delay in frames of a
    millisecond, and wFormatTag."""
    return class_specific(pack("<BBBH", 0x01, terminal, delay, format))


def audio_format_type_i(rates: Sequence[int], *, channels: int, sample_size: int, bits: int) -> bytes:
    """Format Type I (Frmts 1.0 2.2.5): samples of `sample_size` bytes of which `bits` are used, at each of the discrete
    `rates` in Hz."""
    if not rates:
        raise ValueError("a format has one or more sampling rates")
    head = bytes((0x02, 0x01, channels, sample_size, bits, len(rates)))
    return class_specific(head + b"".join(rate.to_bytes(3, "little") for rate in rates))


def audio_endpoint(attributes: int = 0, *, lock_delay_units: int = 0, lock_delay: int = 0) -> bytes:
    """What the class says of an isochronous data endpoint (Audio 1.0 4.6.1.2). Bit 0 of `attributes`: the sampling
    rate can be set; bit 1: the pitch can."""
    return class_specific(pack("<BBBH", 0x01, attributes, lock_delay_units, lock_delay), kind=CS_ENDPOINT)
