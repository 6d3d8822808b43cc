"""Makes docs/wireshark.png, Wireshark with a capture of a drive: `make recording`, where `wireshark` and `Xvfb` are.

A server serves a bulk-only drive to the test kit's driver, `usbvfiod capture` writes what they say to each other, and
Wireshark opens it on a screen without a display, whose memory is the picture.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.e2e.process import COMMAND, ServerProcess
from usbvfiod_core.testing.limits import PATIENCE, scaled, wait_until
from usbvfiod_core.testing.mass_storage import MassStorage

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "wireshark.png"
PROGRAMS = ("Xvfb", "wireshark")
WIDTH, HEIGHT = 1200, 600
LARGEST = 150_000
_XWD = ">25I"
"""The header of a dump of a window (XWDFile.h), version 7."""


def capture(directory: Path) -> Path:
    """A drive's enumeration and its first commands, as `usbvfiod capture` writes them."""
    image, file, control = directory / "drive.img", directory / "drive.pcapng", directory / "control.sock"
    image.write_bytes(bytes(8 << 20))
    device = f"virtual:flash?image={image}&name=drive&transport=bot"
    with ServerProcess(directory, ["--control-path", control, "--device", device]) as server:
        server.wait_ready()
        words = [*COMMAND, "capture", "drive", "-w", str(file), "--control-path", str(control)]
        capturing = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
        assert capturing.stderr is not None
        capturing.stderr.readline()  # it says that it captures
        with server.guest() as driver:
            disk = MassStorage(driver.enumerate())
            disk.inquiry()
            disk.read_capacity()
            disk.read(0, 8)
            disk.write(8, b"usbvfiod" * 64)
            disk.synchronize_cache()
            disk.close()
        capturing.send_signal(2)
        capturing.wait(PATIENCE)
    return file


@contextmanager
def screen(directory: Path) -> Iterator[tuple[str, Path]]:
    """A screen of its own: its name for $DISPLAY, and the file that is its memory."""
    read, write = os.pipe()
    words = ["Xvfb", "-displayfd", str(write), "-fbdir", str(directory), "-screen", "0", f"{WIDTH}x{HEIGHT}x24"]
    server = subprocess.Popen([*words, "-nolisten", "tcp", "-nocursor"], pass_fds=(write,), stderr=subprocess.DEVNULL)
    os.close(write)
    try:
        with open(read) as number:
            yield f":{number.readline().strip()}", directory / "Xvfb_screen0"
    finally:
        server.terminate()
        server.wait(PATIENCE)


def pixels(dump: bytes) -> bytes:
    """The rows of a screen, three bytes a pixel."""
    size, version, _, depth, width, height, _, order, *_ = header = struct.unpack_from(_XWD, dump)
    bits, line, colours = header[11], header[12], header[19]
    assert (version, depth, bits, width, height) == (7, 24, 32, WIDTH, HEIGHT)
    rows = memoryview(dump)[size + 12 * colours :]
    red, green, blue = (1, 2, 3) if order else (2, 1, 0)
    picture = bytearray(3 * width * height)
    for place, channel in enumerate((red, green, blue)):
        for y in range(height):
            row = rows[y * line : y * line + 4 * width]
            picture[3 * width * y + place : 3 * width * (y + 1) : 3] = row[channel::4]
    return bytes(picture)


def png(picture: bytes) -> bytes:
    """A picture of at most 256 colours that are near to those of `picture`, with a palette."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    count: dict[bytes, int] = {}
    points = [picture[at : at + 3] for at in range(0, len(picture), 3)]
    for point in points:
        count[point] = count.get(point, 0) + 1
    palette = sorted(count, key=lambda point: -count[point])[:256]
    nearest = {
        point: min(
            range(len(palette)), key=lambda index: sum((a - b) ** 2 for a, b in zip(point, palette[index], strict=True))
        )
        for point in count
    }
    indices = bytes(nearest[point] for point in points)
    rows = b"".join(b"\0" + indices[y * WIDTH : (y + 1) * WIDTH] for y in range(HEIGHT))
    head = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 3, 0, 0, 0)
    parts = (b"IHDR", head), (b"PLTE", b"".join(palette)), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def look(directory: Path) -> bytes:
    """The screen when Wireshark has drawn all of it."""
    file = capture(directory)
    with screen(directory) as (display, memory):
        environment = {**os.environ, "DISPLAY": display, "HOME": str(directory), "XDG_RUNTIME_DIR": str(directory)}
        environment |= {"XDG_CONFIG_HOME": str(directory), "QT_QPA_PLATFORM": "xcb"}
        settings = directory / "wireshark"
        settings.mkdir()
        (settings / "recent").write_text(
            f"gui.geometry_main_x: 0\ngui.geometry_main_y: 0\ngui.geometry_main_width: {WIDTH}\n"
            f"gui.geometry_main_height: {HEIGHT}\ngui.geometry_main_maximized: FALSE\n"
        )
        words = ["wireshark", "-r", str(file), "-g", str(PACKET), "-o", "gui.update.enabled:FALSE"]
        wireshark = subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL)
        try:
            last, since = b"", time.monotonic()

            def is_still() -> bool:
                nonlocal last, since
                seen = pixels(memory.read_bytes())
                if seen != last or len(set(seen)) < 64:
                    last, since = seen, time.monotonic()
                return time.monotonic() - since > scaled(5)

            wait_until(is_still, "Wireshark does not come to rest", scaled(120))
            return last
        finally:
            wireshark.terminate()
            wireshark.wait(PATIENCE)


PACKET = 23
"""The one that is shown in detail: READ(10)."""


def main() -> None:
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        print(f"{DOCUMENT.name} stays as it is: there is no {' and no '.join(missing)}", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory(prefix="w-") as name:
        picture = png(look(Path(name)))
    assert len(picture) <= LARGEST, f"{len(picture)} bytes are too many"
    DOCUMENT.write_bytes(picture)


if __name__ == "__main__":
    main()
