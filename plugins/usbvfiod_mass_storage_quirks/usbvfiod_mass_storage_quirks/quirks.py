"""Quirks of drives, in the letters of the Linux kernel's parameter `usb-storage.quirks`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum

from usbvfiod_core import ConfigError

from . import scsi
from .scsi import Sense
from .table import TABLE


class Quirk(Enum):
    """What a drive needs done; the value is the kernel's letter."""

    BAD_SENSE = "b"
    FIX_CAPACITY = "c"
    NO_READ_DISC_INFO = "d"
    NO_READ_CAPACITY_16 = "e"
    NO_REPORT_OPCODES = "f"
    MAX_SECTORS_240 = "g"
    CAPACITY_HEURISTICS = "h"
    IGNORE_DEVICE = "i"
    NO_REPORT_LUNS = "j"
    NO_SAME = "k"
    NOT_LOCKABLE = "l"
    MAX_SECTORS_64 = "m"
    IGNORE_RESIDUE = "r"
    SINGLE_LUN = "s"
    NO_ATA_1X = "t"
    IGNORE_UAS = "u"
    NO_WP_DETECT = "w"


GUESTS_OWN = frozenset("anopy")
"""Letters for what only the guest's own driver can do (how much sense it asks for, whether it reads block 0 twice or
believes a capacity, when it flushes). They are accepted, so that a line for the kernel can be used as it is."""

REFUSED_BY = {
    Quirk.NO_READ_DISC_INFO: ((scsi.READ_DISC_INFORMATION, None),),
    Quirk.NO_READ_CAPACITY_16: ((scsi.SERVICE_ACTION_IN_16, scsi.READ_CAPACITY_16),),
    Quirk.NO_REPORT_OPCODES: ((scsi.MAINTENANCE_IN, scsi.REPORT_SUPPORTED_OPERATION_CODES),),
    Quirk.NO_REPORT_LUNS: ((scsi.REPORT_LUNS, None),),
    Quirk.NO_SAME: ((scsi.WRITE_SAME_10, None), (scsi.WRITE_SAME_16, None)),
    Quirk.NO_ATA_1X: ((scsi.ATA_PASS_THROUGH_12, None), (scsi.ATA_PASS_THROUGH_16, None)),
}
"""Commands, by operation code and service action, that a drive with the quirk must not get: it would answer wrongly or
hang. The guest is told that there is no such command."""

Quirks = frozenset[Quirk]

_ENTRY = re.compile(r"([0-9a-fA-F]{4}):([0-9a-fA-F]{4}):([a-zA-Z]*)")


def parse_letters(text: str) -> Quirks:
    """The quirks in `text`, letters with or without commas between. Raises ConfigError."""
    found = set()
    for letter in text.replace(",", "").replace(" ", ""):
        try:
            found.add(Quirk(letter))
        except ValueError:
            if letter not in GUESTS_OWN:
                known = "".join(sorted({quirk.value for quirk in Quirk} | GUESTS_OWN))
                raise ConfigError(f"{letter!r} is not a mass-storage quirk; the letters are {known}") from None
    return frozenset(found)


def parse_entries(text: str) -> dict[tuple[int, int], Quirks]:
    """Entries `VID:PID:letters` with commas between, as the kernel's parameter has them. Raises ConfigError."""
    entries = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        match = _ENTRY.fullmatch(entry)
        if match is None:
            raise ConfigError(f"{entry!r} is not VID:PID:letters with four hexadecimal digits each, like 0419:aaf5:rl")
        entries[int(match[1], 16), int(match[2], 16)] = parse_letters(match[3])
    return entries


def find(
    vendor_id: int,
    product_id: int,
    letters: str | None = None,
    entries: Mapping[tuple[int, int], Quirks] | None = None,
) -> Quirks:
    """The quirks of a device. The first of these that says something about it decides alone, as in the kernel: the
    device's own option `letters` (empty: no quirks), the configuration's `entries`, the built-in table."""
    if letters is not None:
        return parse_letters(letters)
    key = (vendor_id, product_id)
    if entries and key in entries:
        return entries[key]
    return parse_letters(TABLE.get(key, ""))


def refused(quirks: Quirks, cdb: bytes) -> Sense | None:
    """Whether a quirk forbids a command."""
    for quirk, commands in REFUSED_BY.items():
        if quirk in quirks:
            for code, action in commands:
                if cdb[0] == code and (action is None or cdb[1] & 0x1F == action):
                    return scsi.INVALID_COMMAND_OPERATION_CODE
    return None
