"""What a device or a host's kernel says of devices: descriptors, sysfs, events. All of it may be anything."""

from __future__ import annotations

import os
import tempfile
from functools import cache
from pathlib import Path

from tests.fuzz.inputs import Actions
from tests.fuzz.watch import FindError, Watch
from usbvfiod_core.host import descriptor_filter, hotplug, sysfs
from usbvfiod_core.host.configurations import configurations
from usbvfiod_core.usb import descriptors as usb

LENGTHS = {
    usb.DEVICE: 18,
    usb.CONFIGURATION: 9,
    usb.INTERFACE: 9,
    usb.ENDPOINT: 7,
    usb.SUPERSPEED_ENDPOINT_COMPANION: 6,
}
KINDS = (*LENGTHS, usb.INTERFACE_ASSOCIATION, usb.BOS, usb.DEVICE_CAPABILITY, usb.HID, usb.STRING, 0x24, 0x25, 0)
ATTRIBUTES = {
    "bDeviceClass": (b"00", b"09", b"ef"),
    "busnum": (b"1", b"2"),
    "devnum": (b"4", b"127"),
    "idVendor": (b"1d6b", b"0000"),
    "idProduct": (b"0002", b"ffff"),
    "manufacturer": (b"Maker", b"\x1b[31m\n\xff"),
    "product": (b"", b"Thing"),
    "serial": (b"1", b"\0\n"),
    "speed": (b"480", b"5000", b"1.5"),
    "bConfigurationValue": (b"1", b""),
    "quirks": (b"0x0", b"2"),
    "avoid_reset_quirk": (b"0", b"1"),
    "authorized": (b"1", b"0"),
    "descriptors": (b"",),
}


def descriptor(actions: Actions) -> bytes:
    """One descriptor, of the length that its kind has or of another."""
    kind = actions.pick(KINDS) if not actions.rarely() else actions.byte()
    length = LENGTHS.get(kind, 2 + actions.below(16)) if not actions.rarely() else actions.byte()
    return bytes((length, kind)) + actions.blob(max(min(length, 40) - 2, 0))


def listing(actions: Actions) -> bytes:
    """Descriptors one after the other; of a configuration the total length is right for the most part."""
    parts = [descriptor(actions) for _ in range(actions.below(40))]
    for number, part in enumerate(parts):
        if part[1] == usb.CONFIGURATION and len(part) == 9 and actions.byte() < 200:
            rest = sum(len(each) for each in parts[number : number + 1 + actions.below(12)])
            parts[number] = part[:2] + rest.to_bytes(2, "little") + part[4:]
    return b"".join(parts) + actions.some(10)


def read(data: bytes) -> None:
    """All that is read of such bytes, alone and one with the other."""
    for parse in (usb.DeviceDescriptor.unpack, usb.parse_bos, usb.parse_hid):
        try:
            parse(data)
        except usb.DescriptorError:
            pass
    usb.parse_string(data)
    for cut in (b"", data[18:], *configurations(data)):
        for edited in (
            descriptor_filter.without_remote_wakeup(cut),
            descriptor_filter.without_streams(cut),
            descriptor_filter.without_settings(cut, lambda number, alternate: (number + alternate) % 2 == 0),
        ):
            if len(edited) > len(cut):
                raise FindError(f"{cut.hex()} has become {edited.hex()}")
        try:
            found = usb.Configuration.unpack(cut)
        except usb.DescriptorError:
            continue
        for interface in found.interfaces:
            for endpoint in interface.endpoints:
                _ = endpoint.type, endpoint.is_in, endpoint.packet_size, endpoint.transactions
                _ = endpoint.companion and endpoint.companion.max_streams
        if len(found.pack()) < 1 << 16 and usb.Configuration.unpack(found.pack()) != found:
            raise FindError(f"{cut.hex()} is not what it was when it is packed")


@cache
def _root() -> Path:
    directory = tempfile.TemporaryDirectory()
    _root.kept = directory  # type: ignore[attr-defined]
    return Path(directory.name)


def list_devices(actions: Actions) -> None:
    """A directory as sysfs has them, with anything in it."""
    device = _root() / actions.pick(("1-1", "2-1.4.3", "usb1", "10-1"))
    interface = device / f"{device.name}:1.0"
    interface.mkdir(parents=True)
    (device / "driver").symlink_to("usb")
    for name, values in ATTRIBUTES.items():
        how = actions.byte()
        if how < 240:
            value = actions.pick(values) if how < 200 else actions.some(30)
            (device / name).write_bytes(listing(actions) if name == "descriptors" else value)
    if actions.flag():
        (interface / "authorized").write_bytes(actions.pick((b"1", b"0", b"", b"zz")))
        (interface / "driver").symlink_to(actions.pick(("usbhid", "..", "/")))
    if actions.flag():
        (device / "port").mkdir()
        (device / "port" / "peer").symlink_to(actions.pick(("usb2-port1", "2-1-port3", "x", "1-0:1.0")))
    try:
        found = sysfs.read(device)
        if found is not None:
            sysfs.device_info("usbfs", found)
            _ = found.label, found.node, sysfs.unfitness(found), sysfs.udev_rule(found)
            read(found.descriptors)
    finally:
        for directory, _, names in os.walk(device, topdown=False):
            for name in names:
                os.unlink(os.path.join(directory, name))
            for link in Path(directory).iterdir():
                link.rmdir() if link.is_dir() and not link.is_symlink() else link.unlink()
        device.rmdir()


def play(actions: Actions, watch: Watch) -> None:
    """One device."""
    how = actions.below(8)
    with watch.turn(how):
        if how < 4:
            read(listing(actions))
        elif how < 5:
            read(actions.rest())
        elif how < 6:
            head = actions.pick((b"", b"add@/devices/usb1/1-1\0ACTION=add\0", b"libudev\0\xfe\xed\xca\xfe"))
            event = hotplug.parse_uevent(head + actions.rest())
            _ = event and (event.of_usb_device, event.port_path)
        else:
            list_devices(actions)
    watch.look()
