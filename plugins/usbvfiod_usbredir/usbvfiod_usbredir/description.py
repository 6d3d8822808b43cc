"""What is known of a device before it is opened: its descriptors, its names, and whether it has streams."""

from __future__ import annotations

from typing import Final

from usbvfiod_core.errors import DeviceError
from usbvfiod_core.host.configurations import configurations, endpoints
from usbvfiod_core.host.description import Description
from usbvfiod_core.remote import Patience
from usbvfiod_core.usb.descriptors import Configuration, DeviceDescriptor
from usbvfiod_core.usb.told_speed import believable

from .messages import AllocBulkStreams, FreeBulkStreams, SetAltSetting
from .peer import Peer
from .spec import SPEEDS, Capability, Status, Type, endpoint_index

MOST_STREAMS: Final = 256
"""Of one endpoint that are asked for."""


def describe(peer: Peer, patience: Patience) -> Description:
    """Ask the device of a peer for what it is. In a thread.

    Raises DeviceError, LinkLost or PeerError.
    """
    assert peer.device is not None
    descriptors = peer.read_descriptors(patience)
    configuration = peer.read_configuration(patience)
    device = DeviceDescriptor.unpack(descriptors)
    words = [peer.read_string(index, patience).strip() for index in (device.manufacturer, device.product)]
    name = " ".join(filter(None, words)) or f"{device.vendor_id:04x}:{device.product_id:04x}"
    speed = believable(SPEEDS.get(peer.device.speed), device, endpoints(descriptors))
    streams = 0
    if speed.is_usb3 and peer.has(Capability.BULK_STREAMS) and configuration is not None:
        streams = _probe_streams(peer, descriptors, configuration, patience)
    return Description(
        name=name,
        serial=peer.read_string(device.serial_number, patience),
        speed=speed,
        descriptors=descriptors,
        configuration=configuration,
        max_streams=streams,
    )


def _probe_streams(peer: Peer, descriptors: bytes, value: int, patience: Patience) -> int:
    """How many streams the other end's controller gives the device's endpoints; 0 for none. Only trying tells."""
    raws = [raw for raw in configurations(descriptors) if raw[5] == value]
    settings = Configuration.unpack(raws[0]).interfaces if raws else ()
    wanted = [each for each in settings if each.streams()[0]]
    least = 0
    for setting in wanted:
        count, endpoints = setting.streams()
        count = min(count, MOST_STREAMS)
        mask = sum(1 << endpoint_index(each) for each in endpoints)
        selected = peer.ask(SetAltSetting(setting.number, setting.alternate), Type.ALT_SETTING_STATUS, patience)
        if selected.message.status != Status.SUCCESS:
            raise DeviceError(f"{peer.name}: the device has a setting that cannot be selected")
        given = peer.ask(AllocBulkStreams(mask, count), Type.BULK_STREAMS_STATUS, patience)
        if given.message.status != Status.SUCCESS:
            count = 0
        else:
            peer.ask(FreeBulkStreams(mask), Type.BULK_STREAMS_STATUS, patience)
        peer.ask(SetAltSetting(setting.number, 0), Type.ALT_SETTING_STATUS, patience)
        if not count:
            return 0
        least = count if not least else min(least, count)
    return least
