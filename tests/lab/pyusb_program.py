"""What a program that uses pyusb gets from gadget zero (0525:a4a0), as JSON on standard output.

It runs where the device is, and in a guest that the device is passed to: both must print the same.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import libusb_package
import usb.core  # type: ignore[import-untyped]
import usb.util  # type: ignore[import-untyped]
from usb.backend import libusb1  # type: ignore[import-untyped]

LOOP, SOURCE_SINK = 2, 3
"""The values of its configurations."""
READ_BUFFER, WRITE_BUFFER = 0x5C, 0x5B
"""Its vendor requests: write to a buffer of the device's, and read it back."""


def outcome(call: Callable[[], Any]) -> Any:
    """What a call gives, or how it fails."""
    try:
        result = call()
    except usb.core.USBError as error:
        return [type(error).__name__, error.errno]
    except ValueError as error:
        return [type(error).__name__, str(error)]
    return bytes(result).hex() if hasattr(result, "tobytes") else result


def descriptors(device: usb.core.Device) -> list[Any]:
    """All that pyusb tells of the device."""
    facts: list[Any] = [device.idVendor, device.idProduct, device.bcdDevice, device.bcdUSB, device.bMaxPacketSize0]
    facts += [device.manufacturer, device.product, device.serial_number, device.speed, list(device.langids)]
    for configuration in device:
        facts.append([configuration.bConfigurationValue, configuration.bmAttributes, configuration.bMaxPower])
        for interface in configuration:
            facts.append([interface.bInterfaceNumber, interface.bAlternateSetting, interface.bInterfaceClass])
            for end in interface:
                facts.append([end.bEndpointAddress, end.bmAttributes, end.wMaxPacketSize, end.bInterval])
    return facts


def take(device: usb.core.Device) -> None:
    """Take the interfaces from the kernel's drivers, which look at them whenever the device is configured."""
    for interface in device.get_active_configuration():
        if device.is_kernel_driver_active(interface.bInterfaceNumber):
            device.detach_kernel_driver(interface.bInterfaceNumber)


def configure(device: usb.core.Device, value: int) -> usb.core.Configuration:
    """Set a configuration, which nothing may be claimed for, and return what is active then."""
    take(device)
    usb.util.dispose_resources(device)
    device.set_configuration(value)
    take(device)
    return device.get_active_configuration()


def transcript(device: usb.core.Device) -> dict[str, Any]:
    """One thing after the other, with what came of it."""
    said: dict[str, Any] = {"descriptors": descriptors(device)}
    for value in (LOOP, SOURCE_SINK):
        said[f"configuration {value}"] = configure(device, value).bConfigurationValue
    ends = list(device.get_active_configuration()[(0, 0)])
    source = next(end for end in ends if end.bEndpointAddress & 0x80)
    sink = next(end for end in ends if not end.bEndpointAddress & 0x80)
    size = source.wMaxPacketSize
    said["read"] = outcome(lambda: source.read(4 * size))
    said["read much"] = outcome(lambda: source.read(1 << 18))
    said["write"] = outcome(lambda: sink.write(bytes(index % size % 63 for index in range(8 * size))))
    said["write nothing"] = outcome(lambda: sink.write(b""))
    said["write a part"] = outcome(lambda: sink.write(bytes(index % 63 for index in range(size // 2))))
    said["write wrong data"] = outcome(lambda: sink.write(b"\xff" * size))
    sink.clear_halt()
    said["status"] = [usb.control.get_status(device, end) for end in (source, sink)]
    said["halt"] = outcome(lambda: device.ctrl_transfer(0x02, 3, 0, source.bEndpointAddress))
    said["status halted"] = usb.control.get_status(device, source)
    said["read halted"] = outcome(lambda: source.read(size))
    source.clear_halt()
    said["read again"] = outcome(lambda: source.read(size))
    content = bytes(range(256)) * 4
    said["control out"] = outcome(lambda: device.ctrl_transfer(0x41, WRITE_BUFFER, 0, 0, content))
    said["control in"] = outcome(lambda: device.ctrl_transfer(0xC1, READ_BUFFER, 0, 0, len(content)))
    said["control in, short"] = outcome(lambda: device.ctrl_transfer(0xC1, READ_BUFFER, 0, 0, 10))
    said["no such request"] = outcome(lambda: device.ctrl_transfer(0xC1, 0xEE, 0, 0, 64))
    said["no such string"] = outcome(lambda: usb.util.get_string(device, 200))
    said["no such configuration"] = outcome(lambda: device.ctrl_transfer(0x00, 9, 9, 0))
    said["no such endpoint"] = outcome(lambda: device.read(0x8E, size))
    said["get configuration"] = outcome(lambda: device.ctrl_transfer(0x80, 8, 0, 0, 1))
    loop = next(end for end in configure(device, LOOP)[(0, 0)] if end.bEndpointAddress & 0x80)
    said["time-out"] = outcome(lambda: loop.read(size, timeout=500))
    device.reset()
    configure(device, SOURCE_SINK)
    said["after a reset"] = outcome(lambda: device.read(source.bEndpointAddress, size))
    return said


def main() -> int:
    """Print the transcript."""
    backend = libusb1.get_backend(find_library=lambda name: str(libusb_package.get_library_path()))
    device = usb.core.find(idVendor=0x0525, idProduct=0xA4A0, backend=backend)
    if device is None:
        print("there is no gadget zero", file=sys.stderr)
        return 1
    print(json.dumps(transcript(device)))
    usb.util.dispose_resources(device)
    return 0


if __name__ == "__main__":
    sys.exit(main())
