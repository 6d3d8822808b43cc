"""Filters of usbredir: which devices the guest's side accepts.

A filter is a list of rules, and the first that fits decides; what fits none is refused. A rule has five numbers: class,
vendor, product, version, and whether it is allowed; -1 fits anything. The class is that of the device, unless its
interfaces have their own; then each interface has to be accepted.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from .messages import DeviceConnect, InterfaceInfo
from .spec import ENDPOINTS

_ANY: Final = -1
_BY_INTERFACE: Final = (0x00, 0xEF)
"""bDeviceClass of devices whose interfaces say what they are."""
_HID: Final = 0x03


class Rule(NamedTuple):
    """Numbers, each of them -1 for any."""

    interface_class: int
    vendor_id: int
    product_id: int
    version: int
    allow: bool


_LIMITS: Final = (("class", 0xFF), ("vendor", 0xFFFF), ("product", 0xFFFF), ("version", 0xFFFF))


def parse_filter(text: str) -> list[Rule]:
    """The rules in `text`. Raises ValueError, which says what is wrong."""
    rules = []
    for part in filter(None, text.split("|")):
        words = part.split(",")
        if len(words) != 5:
            raise ValueError(f"{part!r} is not a rule: class,vendor,product,version,allow")
        numbers = []
        for (name, most), word in zip(_LIMITS, words, strict=False):
            number = _number(word)
            if not _ANY <= number <= most:
                raise ValueError(f"{word!r} is not a {name}: -1 for any, or up to {most:#x}")
            numbers.append(number)
        kind, vendor_id, product_id, version = numbers
        rules.append(Rule(kind, vendor_id, product_id, version, _number(words[4]) != 0))
    if not rules:
        raise ValueError("a filter has at least one rule")
    return rules


def accepts(rules: list[Rule], device: DeviceConnect, interfaces: InterfaceInfo) -> bool:
    """Whether a device may be used. Its interfaces beside others that are HID, and no boot devices, decide nothing:
    many devices have one for their buttons."""
    if device.device_class not in _BY_INTERFACE and not _allowed(rules, device.device_class, device):
        return False
    count = min(interfaces.interface_count, ENDPOINTS)
    for index in range(count):
        kind = interfaces.classes[index], interfaces.subclasses[index], interfaces.protocols[index]
        if count > 1 and kind == (_HID, 0, 0):
            continue
        if not _allowed(rules, kind[0], device):
            return False
    return True


def _allowed(rules: list[Rule], interface_class: int, device: DeviceConnect) -> bool:
    it = interface_class, device.vendor_id, device.product_id, device.device_version
    for rule in rules:
        if all(wanted in (_ANY, number) for wanted, number in zip(rule, it, strict=False)):
            return rule.allow
    return False


def _number(word: str) -> int:
    try:
        return int(word, 16 if word[:2].lower() == "0x" else 10)
    except ValueError:
        raise ValueError(f"{word!r} is not a number") from None
