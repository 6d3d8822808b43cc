"""In the guest: the kernel's Bluetooth on tests/classes/bluetooth.py, then every voice setting without it."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import socket
import struct
import time
from pathlib import Path

from tests.classes.bluetooth import ADDRESS, REMOTE, VOICE_IN, VOICE_OUT, VOICE_PACKETS, packed
from tests.lab.usbfs import ISOCHRONOUS, UsbfsHandle
from usbvfiod_core.testing.limits import scaled

ADAPTER = Path("/sys/class/bluetooth/hci0/device")
PATIENCE = scaled(60.0)
HCIDEVUP, HCIGETDEVINFO = 0x400448C9, 0x800448D3
COMMAND, EVENT = 1, 4  # kinds of packets on a raw socket
RESET, READ_ADDRESS = 0x0C03, 0x1009
VOICE_BYTES = 48
FRAMES = 20


def adapter() -> socket.socket:
    """A raw socket to the first adapter, which is up: the kernel has reset it and asked for all that it needs."""
    control = socket.socket(socket.AF_BLUETOOTH, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.BTPROTO_HCI)
    deadline = time.monotonic() + PATIENCE
    while (error := _bring_up(control)) not in (0, errno.EALREADY):
        assert error in (errno.ENODEV, errno.EBUSY, errno.EINPROGRESS), os.strerror(error)
        assert time.monotonic() < deadline, os.strerror(error)
        time.sleep(0.1)
    return control


def _bring_up(control: socket.socket) -> int:
    """0 or an errno."""
    try:
        fcntl.ioctl(control, HCIDEVUP, 0)
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def command(raw: socket.socket, opcode: int) -> bytes:
    """Send a command without parameters; what it returns behind its status, which is good."""
    raw.send(struct.pack("<BHB", COMMAND, opcode, 0))
    while True:
        answer = raw.recv(260)
        kind, event, _, _, completed = struct.unpack_from("<BBBBH", answer)
        if (kind, event, completed) == (EVENT, 0x0E, opcode):
            assert answer[6] == 0
            return answer[7:]


def start() -> None:
    """Its address as the kernel knows it, and as the adapter says it."""
    control = adapter()
    information = bytearray(96)  # struct hci_dev_info: number, name, address
    fcntl.ioctl(control, HCIGETDEVINFO, information)
    assert bytes(information[10:16]) == packed(ADDRESS)
    control.settimeout(PATIENCE)
    control.setsockopt(socket.SOL_HCI, socket.HCI_FILTER, struct.pack("<IIIHxx", 1 << EVENT, 0xFFFFFFFF, 0xFFFFFFFF, 0))
    control.bind((0,))
    command(control, RESET)
    assert command(control, READ_ADDRESS) == packed(ADDRESS)


def voice() -> None:
    """A voice link: what is said comes back."""
    adapter()
    link = socket.socket(socket.AF_BLUETOOTH, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC, socket.BTPROTO_SCO)
    link.settimeout(PATIENCE)
    link.connect(REMOTE.encode())
    device = ADAPTER.resolve().parent
    link.settimeout(0.1)
    heard: list[int] = []
    deadline = time.monotonic() + PATIENCE
    for number in itertools.count():
        assert time.monotonic() < deadline, f"heard {heard} of {number}"
        link.send(struct.pack("<I", number) * (VOICE_BYTES // 4))
        try:
            data = link.recv(1024)
        except TimeoutError:
            continue
        (said,) = struct.unpack_from("<I", data)
        assert data == struct.pack("<I", said) * (VOICE_BYTES // 4)
        heard.append(said)
        if len(heard) == FRAMES:
            break
    assert heard == sorted(set(heard))
    # 16 bits, one link: the setting of 17 bytes a packet (Bluetooth Core, volume 4, part B 2.1.1).
    (setting,) = device.glob("*:1.1/bAlternateSetting")
    assert int(setting.read_text()) == 2
    link.close()


def settings() -> None:
    """The adapter is taken from the driver; each voice setting echoes packets of its size."""
    interface = ADAPTER.resolve()
    device = interface.parent
    Path("/sys/bus/usb/drivers/btusb/unbind").write_text(interface.name)
    number = [int((device / name).read_text()) for name in ("busnum", "devnum")]
    with UsbfsHandle(Path("/dev/bus/usb/{:03}/{:03}".format(*number))) as handle:
        for alternate, size in enumerate(VOICE_PACKETS):
            handle.claim(1, alternate)
            if not size:
                continue
            sent = os.urandom(size * 8)
            assert handle.transfer(ISOCHRONOUS, VOICE_OUT, sent, 8, PATIENCE).packets == [(0, size)] * 8
            assert handle.transfer(ISOCHRONOUS, VOICE_IN, size * 8, 8, PATIENCE).data == sent


def main() -> None:
    """First with btusb, then without it."""
    start()
    voice()
    settings()


if __name__ == "__main__":
    main()
