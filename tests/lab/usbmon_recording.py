"""What the kernel's own usbmon sees, as a file.

    with UsbmonRecording(path):
        ...

Records are taken one by one from the binary interface (Documentation/usb/usbmon.rst, MON_IOCX_GETX), header and data as
the kernel gives them. `dumpcap` is the program that users have for it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from usbvfiod_core.capture.pcapng import Buffer, Writer
from usbvfiod_core.capture.usbmon import HEADER, LINK_TYPE
from usbvfiod_core.testing.limits import scaled, wait_until

NODE = Path("/dev/usbmon0")
RING_SIZE = 0x9204
GET = 0x4018920A
RING = 1 << 20
ROOM = 1 << 18
"""Bytes that are kept of a transfer."""
QUIET = 0.3
"""Seconds without a record, after which the last ones are taken to be in."""

LONGEST = 5.0
"""Seconds to wait for that, if something is never quiet."""

_ioctl = ctypes.CDLL(None, use_errno=True).ioctl
_ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)


class _Get(ctypes.Structure):
    """struct mon_bin_get"""

    _fields_ = (("header", ctypes.c_void_p), ("data", ctypes.c_void_p), ("room", ctypes.c_size_t))


@contextmanager
def dumpcap(path: Path, last: bytes) -> Iterator[None]:
    """Record with Wireshark's dumpcap, until data that have `last` in them are in the file."""
    command = ["dumpcap", "-q", "-i", NODE.name, "-w", str(path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            said = []
            for line in process.stderr:
                said.append(line)
                if line.startswith("File:"):  # it captures now
                    break
            else:
                raise OSError(f"dumpcap does not capture: {''.join(said)}")
            yield
            wait_until(lambda: last in path.read_bytes(), f"{last!r} is recorded")
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate()


class UsbmonRecording:
    """Everything on all buses from the constructor on, until the `with` is left; then it is in the file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = os.open(NODE, os.O_RDWR | os.O_NONBLOCK)
        if _ioctl(self._fd, RING_SIZE, RING) < 0:
            raise OSError(ctypes.get_errno(), "the ring of usbmon cannot be made larger")
        self._records: list[tuple[bytes, bytes]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._take_all)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        os.close(self._fd)
        if value is None:
            self._write()

    def _take_all(self) -> None:
        header, data = ctypes.create_string_buffer(HEADER.size), ctypes.create_string_buffer(ROOM)
        get = _Get(ctypes.addressof(header), ctypes.addressof(data), ROOM)
        last = float("inf")
        while time.monotonic() < last:
            ended = self._ended.is_set()
            if ended:
                last = min(last, time.monotonic() + scaled(LONGEST))
            if not select.select([self._fd], [], [], scaled(QUIET))[0]:
                if ended:
                    return
                continue
            if _ioctl(self._fd, GET, ctypes.addressof(get)) < 0:
                if ctypes.get_errno() in (errno.EAGAIN, errno.EINTR):
                    continue
                raise OSError(ctypes.get_errno(), "usbmon gives no record")
            captured = int.from_bytes(header.raw[36:40], "little")
            self._records.append((header.raw, data.raw[:captured]))

    def _write(self) -> None:
        writer, out = Writer(), list[Buffer]()
        out += [writer.section("usbmon"), writer.interface(LINK_TYPE, snap_length=ROOM, name=NODE.name)]
        for header, data in self._records:
            when = int.from_bytes(header[16:24], "little") * 1_000_000_000
            when += int.from_bytes(header[24:28], "little") * 1000
            writer.packet(out, 0, when, (header, data), len(header) + len(data), len(header) + len(data))
        self._path.write_bytes(b"".join(out))
