"""In the guest: programs whose device leaves and comes back as another. `... phone` or `... firmware`."""

from __future__ import annotations

import os
import sys
from typing import Any

from tests.classes import firmware as dfu
from tests.classes.phone import DATA_IN, DATA_OUT, GET_PROTOCOL, SEND_STRING, START, Accessory, Phone
from tests.vm.inside.waiting import wait_usb_device
from usbvfiod_core.virtual.device import VirtualDevice

STRINGS = ("usbvfiod", "lab", "a guest")


def wait(kind: type[VirtualDevice], name: str) -> Any:
    """The device of this kind and name."""
    return wait_usb_device(kind.vendor_id, kind.product_id, name)


def phone() -> None:
    """It is told what accessory this is, comes back as the accessory's host, and talks with it."""
    device = wait(Phone, Phone.product)
    assert bytes(device.ctrl_transfer(0xC0, GET_PROTOCOL, 0, 0, 2)) == b"\x02\x00"
    for index, text in enumerate(STRINGS):
        device.ctrl_transfer(0x40, SEND_STRING, 0, index, text.encode() + b"\0")
    device.ctrl_transfer(0x40, START, 0, 0, None)
    device = wait(Accessory, Accessory.product)
    assert device.serial_number == Phone.serial
    device.write(DATA_OUT, b"who?")
    assert bytes(device.read(DATA_IN, 512, 10_000)).decode() == ", ".join(STRINGS)
    for length in (1, 511, 512, 16384):
        data = os.urandom(length)
        device.write(DATA_OUT, data, 10_000)
        assert bytes(device.read(DATA_IN, 16384, 10_000)) == data


def status(device: Any) -> int:
    """The state that GETSTATUS says."""
    answer = bytes(device.ctrl_transfer(dfu.FROM_DEVICE, dfu.GET_STATUS, 0, 0, 6))
    assert answer[0] == 0
    return answer[4]


def firmware() -> None:
    """Two firmwares, one after the other: detached, read, loaded, run."""
    current = dfu.FIRST
    for number in range(2):
        device = wait(dfu.Application, current.split(b"\n", 1)[0].decode())
        assert status(device) == dfu.APPLICATION_IDLE
        device.ctrl_transfer(dfu.TO_DEVICE, dfu.DETACH, 1000, 0, None)
        device = wait(dfu.BootLoader, dfu.BootLoader.product)
        read = b""
        for block in range(1024):
            part = bytes(device.ctrl_transfer(dfu.FROM_DEVICE, dfu.UPLOAD, block, 0, dfu.BLOCK))
            read += part
            if len(part) < dfu.BLOCK:
                break
        assert read == current
        current = f"firmware {number}\n".encode() + os.urandom(10 * dfu.BLOCK + 7)
        for block, start in enumerate(range(0, len(current), dfu.BLOCK)):
            device.ctrl_transfer(dfu.TO_DEVICE, dfu.DOWNLOAD, block, 0, current[start : start + dfu.BLOCK])
            assert status(device) == dfu.DOWNLOAD_IDLE
        device.ctrl_transfer(dfu.TO_DEVICE, dfu.DOWNLOAD, block + 1, 0, None)
        assert status(device) == dfu.MANIFEST
    wait(dfu.Application, "firmware 1")


if __name__ == "__main__":
    {"phone": phone, "firmware": firmware}[sys.argv[1]]()
