"""Taking out of a configuration's descriptors what a guest cannot use. All functions take and give raw bytes.

A configuration is edited descriptor by descriptor, so whatever a device sent beside the parts that are edited stays as
it was. What cannot be parsed is given back unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ..usb.descriptors import (
    ATTRIBUTE_REMOTE_WAKEUP,
    CONFIGURATION,
    ENDPOINT,
    INTERFACE,
    INTERFACE_ASSOCIATION,
    SUPERSPEED_ENDPOINT_COMPANION,
    walk,
)

CLASS_MASS_STORAGE = 0x08
PROTOCOL_UAS = 0x62

_BULK_ENDPOINT = 2
_MAX_STREAMS = 0x1F
"""bmAttributes of a bulk endpoint's companion (USB 3.2 table 9-28)."""


def without_remote_wakeup(configuration: bytes) -> bytes:
    """The configuration with the remote wake-up bit of bmAttributes cleared (USB 2.0 table 9-10)."""
    if len(configuration) < 9 or configuration[1] != CONFIGURATION:
        return configuration
    return configuration[:7] + bytes([configuration[7] & ~ATTRIBUTE_REMOTE_WAKEUP]) + configuration[8:]


def without_streams(configuration: bytes) -> bytes:
    """The configuration with no bulk streams, and without UAS where it would need them.

    A UAS setting that is the only one of its interface stays: then its driver says what it misses.
    """
    settings = {}
    for interface, has_streams in _settings(configuration):
        needs = interface[5] == CLASS_MASS_STORAGE and interface[7] == PROTOCOL_UAS and has_streams
        settings[interface[2], interface[3]] = needs
    kept = {number for (number, _), needs in settings.items() if not needs}
    hidden = {(number, alternate) for (number, alternate), needs in settings.items() if needs and number in kept}
    return _edited(without_settings(configuration, lambda *key: key in hidden), _without_max_streams)


def without_settings(configuration: bytes, unwanted: Callable[[int, int], bool]) -> bytes:
    """The configuration without the settings `unwanted(interface, alternate)`, and their endpoints and class parts.
    An association, which is about the interfaces behind it, is not part of a setting."""
    parts, dropping = [], False
    for kind, part in walk(configuration):
        if kind == INTERFACE and len(part) >= 9:
            dropping = unwanted(part[2], part[3])
        if not dropping or kind == INTERFACE_ASSOCIATION:
            parts.append(part)
    return _joined(configuration, parts)


def _settings(configuration: bytes) -> Iterable[tuple[bytes, bool]]:
    """(interface descriptor, whether an endpoint of it has streams) of each alternate setting."""
    found: list[list[bytes]] = []
    for kind, part in walk(configuration):
        if kind == INTERFACE and len(part) >= 9:
            found.append([part])
        elif found:
            found[-1].append(part)
    for parts in found:
        yield parts[0], any(_without_max_streams(before, part) != part for before, part in _pairs(parts))


def _pairs(parts: list[bytes]) -> Iterable[tuple[bytes, bytes]]:
    return zip([b"", *parts], parts, strict=False)


def _without_max_streams(before: bytes, part: bytes) -> bytes:
    is_bulk = len(before) >= 7 and before[1] == ENDPOINT and before[3] & 3 == _BULK_ENDPOINT
    if is_bulk and len(part) >= 6 and part[1] == SUPERSPEED_ENDPOINT_COMPANION:
        return part[:3] + bytes([part[3] & ~_MAX_STREAMS]) + part[4:]
    return part


def _edited(configuration: bytes, edit: Callable[[bytes, bytes], bytes]) -> bytes:
    parts = [part for _, part in walk(configuration)]
    return _joined(configuration, [edit(before, part) for before, part in _pairs(parts)])


def _joined(configuration: bytes, parts: list[bytes]) -> bytes:
    """The parts with their total length at the start (USB 2.0 9.6.3); what `walk` could not read is left out. Where
    nothing is left out, the total length stays the device's, right or wrong."""
    if not parts or len(parts[0]) < 9 or parts[0][1] != CONFIGURATION:
        return configuration
    joined = b"".join(parts)
    if len(joined) == len(configuration):
        return joined
    return joined[:2] + len(joined).to_bytes(2, "little") + joined[4:]
