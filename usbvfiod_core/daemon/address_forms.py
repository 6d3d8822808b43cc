"""The forms in which people write down a device, and the one of them that is compared: see `canonical`."""

from __future__ import annotations

import re
from typing import Final

_IDENTITY: Final = r"(0[xX])?([0-9A-Fa-f]{1,4}):(0[xX])?([0-9A-Fa-f]{1,4})"
_HEXADECIMAL: Final = re.compile(rf"{_IDENTITY}(:.*)?", re.DOTALL)
_LISTED: Final = re.compile(r"Bus 0*(\d{1,3}) Device 0*(\d{1,3}):?(?:\s+ID ([0-9A-Fa-f]{4}:[0-9A-Fa-f]{4})(?:\s.*)?)?")
_LISTED_ID: Final = re.compile(r"ID ([0-9A-Fa-f]{4}:[0-9A-Fa-f]{4})(?:\s.*)?")
_NUMBERS: Final = re.compile(r"(\d{3}):(\d{3})|usb:0*(\d{1,3}),0*(\d{1,3})")
_NODE: Final = re.compile(r"/dev/bus/usb/0*(\d{1,3})/0*(\d{1,3})")
_PORT_PATH: Final = re.compile(r"(\d+-\d+(?:\.\d+)*)(?::\d+\.\d+)?")
_LEADING_ZEROS: Final = re.compile(r"\b0+(?=\d)")
_LOOSE_NUMBERS: Final = re.compile(r"(\d{1,3})[:. /](\d{1,3})")
_SHORT_ID: Final = re.compile(r"([0-9A-Fa-f]{1,4}):([0-9A-Fa-f]{1,4})(?::.*)?")
_LOOSE_ID: Final = re.compile(
    r"(?:.*(?:\bvid|vendor(?:id)?)[_=: ]*)?(?:0x)?([0-9a-f]{4})"
    r"[^0-9a-z]*(?:(?:pid|(?:id)?product(?:id)?)[_=: ]*)?(?:0x)?([0-9a-f]{4})(?![0-9a-z]).*",
    re.IGNORECASE,
)
_ASSIGNMENT: Final = re.compile(r"(hostbus|hostaddr|hostport|hostdevice|vendorid|productid|busid|host)=([^,]+)")
_BESIDE: Final = re.compile(r"(?:id|bus|port|usb3|pipeline|guest-reset|guest-resets-all|suppress-remote-wake)=[^,]*")
"""What stands beside an address in QEMU's and Proxmox's settings."""
_PLACES: Final = ("/dev", "/dev/input", "/dev/snd", "/dev/*/by-*", "/sys/bus/usb/devices", "/sys/class/*")
"""Where what people call by its bare name is: ttyUSB0, event3, usb-Maker_Stick-if00, eth1, hci0. Best places first."""
_SLOT: Final = re.compile(r"usb\d+:\s*")


def canonical(address: str) -> str:
    """`address` in one of the forms that `matching` compares; as it is where it is in one, or in none.

    | `0x046d:0xc52b` | as printed by programs; the zeros in front may be missing then |
    | `Bus 001 Device 004: ID 046d:c52b Logitech` | a line of lsusb, or its beginning, or from `ID` on |
    | `001:004` | bus and device as `lsusb -s` and `usbvfiod` of Rust have them, three digits each |
    | `usb:001,004` | the same as gphoto2 prints it |
    | `1-1.4:1.0` | an interface, as in sysfs and the kernel's log |
    | `001-04` | a port path with zeros in front |
    | `/dev/bus/usb/1/4` | a node without the zeros |
    | `hostbus=1,hostaddr=4`, `hostbus=1,hostport=1.4`, `vendorid=0x046d,productid=0xc52b` | QEMU's usb-host |
    | `busid=1-1.4` | of usbip |
    | `usb0: host=1-1.4,usb3=1`, `host=046d:c52b` | a line of a VM's settings in Proxmox |
    """
    address = address.strip()
    match = _HEXADECIMAL.fullmatch(address)
    if match is not None and (match[1] or match[3]):
        return f"{match[2]:0>4}:{match[4]:0>4}{match[5] or ''}"
    match = _LISTED.fullmatch(address)
    if match is not None:
        return address if match[3] else _node(match[1], match[2])
    match = _LISTED_ID.fullmatch(address)
    if match is not None:
        return match[1]
    match = _NUMBERS.fullmatch(address) or _NODE.fullmatch(address)
    if match is not None:
        bus, device = [number for number in match.groups() if number is not None]
        return _node(bus, device)
    match = _PORT_PATH.fullmatch(address)
    if match is not None:
        return _LEADING_ZEROS.sub("", match[1])
    return _assigned(address) if "=" in address else address


def listed(address: str) -> tuple[str, str] | None:
    """The node and the identity in a whole line of lsusb; None for anything else."""
    match = _LISTED.fullmatch(address.strip())
    return None if match is None or not match[3] else (_node(match[1], match[2]), match[3].lower())


def meant(address: str) -> str:
    """A hint for what is nearly an address of a device of the host, to be put behind a message; else nothing."""
    match = _LOOSE_NUMBERS.fullmatch(address)
    if match is not None:
        return f"; if it is bus and device number, write {int(match[1]):03d}:{int(match[2]):03d}"
    match = _SHORT_ID.fullmatch(address) or _LOOSE_ID.fullmatch(address)
    if match is not None and not address.startswith(f"{match[1]:0>4}:{match[2]:0>4}"):
        return f"; if it is vendor and product ID, write {match[1].lower():0>4}:{match[2].lower():0>4}"
    if re.fullmatch(r"\w[\w./-]*", address):
        from glob import glob  # which only mistakes need

        for place in _PLACES:
            for path in sorted(glob(f"{place}/{address}")):
                return f"; did you mean {path}?"
    return ""


def _node(bus: str, device: str) -> str:
    return f"/dev/bus/usb/{int(bus):03d}/{int(device):03d}"


def _assigned(address: str) -> str:
    """What is meant by a list of `name=value`, with `usb-host` or `usb0:` in front or without."""
    listed = _SLOT.sub("", address, count=1).removeprefix("usb-host,").split(",")
    parts = [_ASSIGNMENT.fullmatch(part.strip()) for part in listed if not _BESIDE.fullmatch(part.strip())]
    values = {part[1]: part[2] for part in parts if part is not None}
    if None in parts or len(values) < len(parts):
        return address
    try:
        match sorted(values):
            case ["hostaddr", "hostbus"]:
                return _node(values["hostbus"], values["hostaddr"])
            case ["hostbus", "hostport"]:
                return f"{int(values['hostbus'])}-{values['hostport']}"
            case ["productid", "vendorid"]:
                return f"{int(values['vendorid'], 0):04x}:{int(values['productid'], 0):04x}"
            case ["hostdevice"] | ["busid"] | ["host"]:
                return canonical(next(iter(values.values())))
    except ValueError:
        pass
    return address
