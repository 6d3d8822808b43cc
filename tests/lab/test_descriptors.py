"""Descriptors that are not what they should be: the guest sees what the host's kernel sees, through each backend."""

from __future__ import annotations

from tests.lab.opened import open_bench
from tests.lab.usbip import attach
from tests.lab.usbip_devices import INSIDE, Several
from usbvfiod_core.host import sysfs
from usbvfiod_core.host.configurations import configurations
from usbvfiod_core.testing.conformance.enumeration import get_descriptor, set_configuration
from usbvfiod_core.usb import descriptors as usb
from usbvfiod_core.usb.descriptors import Configuration, Endpoint, Interface
from usbvfiod_core.usb.transfer import TransferStatus


def total(data: bytes, value: int) -> bytes:
    return data[:2] + value.to_bytes(2, "little") + data[4:]


def test_configurations_that_are_hard_to_tell_apart(backend: str) -> None:
    """A configuration descriptor inside one, junk in the next, whose total the kernel corrects, a total that is too
    large; each can be chosen."""
    endpoints = (Endpoint(0x81, 2, 512),)
    first, second, third = (
        Configuration((Interface(0, 255, endpoints=endpoints[:number]), Interface(number, 255)), number + 1).pack()
        for number in (1, 0, 1)
    )
    third = third[:5] + b"\x07" + third[6:]
    sent = [
        total(first[:18] + INSIDE + first[18:], len(first) + 9),
        total(second + b"\0\4 junk", len(second) + 7),
        total(third, 4096),
    ]
    kept = [sent[0], sent[1][: len(second)], sent[2]]
    with attach(Several(*sent)) as attachment:
        device = attachment.wait()
        listed = sysfs.find(str(device.node), sysfs.scan()).descriptors
        assert listed[18:] == b"".join(kept), "the kernel is not as it was"
        assert configurations(listed) == kept
        bench = open_bench(backend, device)
        for index, raw in enumerate(kept):
            assert get_descriptor(bench, usb.CONFIGURATION, index, 0xFFFF).data == raw
        for value in (7, 1, 2):
            assert set_configuration(bench, value).status is TransferStatus.COMPLETED
            assert device.attribute("bConfigurationValue") == str(value)
        bench.close()
