"""Makes docs/top.svg, the picture of `usbvfiod top` in docs/cli.md: `make recording`.

Two servers run, programs read and write their devices with the test kit's driver, and what `top` shows on a terminal is
drawn, cell by cell.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from threading import Event, Thread
from typing import Any
from xml.sax.saxutils import escape

from tests.e2e.process import COMMAND, ServerProcess
from tests.recording import CHARACTER, COLOURS, LINE, MARGIN
from tests.terminal import Terminal
from usbvfiod_core.daemon.places import VARIABLE
from usbvfiod_core.testing.mass_storage import MassStorage

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "top.svg"
COLUMNS, LINES = 104, 9
_COLOURS = {"default": COLOURS["output"], "red": "#ff7b72"}


def traffic(server: ServerProcess, port_ids: dict[int, int], ended: Event) -> Callable[[], None]:
    """A guest that reads drives, so many bytes at a time, at these ports until `ended`."""

    def run() -> None:
        with server.guest() as driver:
            disks = [(MassStorage(driver.enumerate(port_id)), size // 512) for port_id, size in port_ids.items()]
            while not ended.is_set():
                for disk, blocks in disks:
                    disk.read(0, blocks)

    return run


def look(directory: Path) -> Any:
    """The terminal's screen when everything moves. `directory` must have a path that is short enough for sockets."""
    image = directory / "drive.img"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    os.environ[VARIABLE] = str(directory / "place")
    (directory / "place").mkdir(mode=0o700)
    ended = Event()
    drive = f"virtual:flash?image={image}&readonly=true"
    devices = {
        "web": (
            f"{drive}&name=backup&port=9",
            f"{drive}&name=installer&port=10",
            "virtual:keyboard?name=keys",
        ),
        "build": (f"{drive}&name=cache&port=9", "virtual:serial?name=console", "virtual:audio?name=sound"),
    }
    with ExitStack() as stack:
        guests = []
        for name, specs in devices.items():
            (directory / name).mkdir()
            options = [each for spec in specs for each in ("--device", spec)]
            server = ServerProcess(directory / name, options, socket_path=directory / f"{name}.sock")
            stack.enter_context(server).wait_ready()
            ports = {9: 65536, 10: 4096} if name == "web" else {9: 4096}
            guests.append(Thread(target=traffic(server, ports, ended)))
        top = stack.enter_context(Terminal([*COMMAND, "top"], COLUMNS, LINES))
        for guest in guests:
            guest.start()
        try:
            top.wait_for(lambda text: all(f"{name} " in text for name in devices) and "MiB/s" in text, "it moves")
            changed = top.text
            top.wait_for(lambda text: text != changed and "MiB/s" in text, "and goes on")
        finally:
            ended.set()
            for guest in guests:
                guest.join()
        return top.screen


def render(screen: Any) -> str:
    """The screen as an SVG."""
    width, height = round(COLUMNS * CHARACTER) + 2 * MARGIN, LINES * LINE + 2 * MARGIN
    rows = []
    for number in range(LINES):
        top = MARGIN + number * LINE
        for column, text, cell in _runs(screen.buffer[number]):
            x = round(MARGIN + column * CHARACTER, 2)
            colour = _COLOURS.get(cell.fg, COLOURS["output"])
            if cell.reverse:
                wide = round(len(text) * CHARACTER, 2)
                place = f'x="{x}" y="{top}" width="{wide}" height="{LINE}"'
                rows.append(f'<rect {place} fill="{colour}" shape-rendering="crispEdges"/>')
                colour = COLOURS["ground"]
            if text.strip():
                bold = ' style="font-weight:bold"' if cell.bold else ""
                long = f' textLength="{round(len(text) * CHARACTER, 2)}"'
                rows.append(f'<text x="{x}" y="{top + 12}" fill="{colour}"{bold}{long}>{escape(text)}</text>')
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" xml:space="preserve">',
            "<title>usbvfiod top: two servers, their devices, rates and latencies</title>",
            "<style>text { font: 12px monospace; white-space: pre }</style>",
            f'<rect width="100%" height="100%" rx="8" fill="{COLOURS["ground"]}"/>',
            *rows,
            "</svg>",
            "",
        ]
    )


def _runs(line: Any) -> list[tuple[int, str, Any]]:
    """Pieces of a line that look alike: where they begin, text, and a cell of them."""
    found: list[tuple[int, str, Any]] = []
    for column in range(COLUMNS):
        cell = line[column]
        if found and (found[-1][2].fg, found[-1][2].bold, found[-1][2].reverse) == (cell.fg, cell.bold, cell.reverse):
            found[-1] = (found[-1][0], found[-1][1] + cell.data, cell)
        else:
            found.append((column, cell.data, cell))
    return found


def main() -> None:
    """Run it, and write the picture."""
    with tempfile.TemporaryDirectory(prefix="usbvfiod-") as name:
        DOCUMENT.write_text(render(look(Path(name))))


if __name__ == "__main__":
    main()
