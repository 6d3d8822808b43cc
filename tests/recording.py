"""Makes docs/session.svg, the recording in README: `make recording`. It needs the VM tests' tree (`make vm`).

The commands below are run, those of the host by one shell and those of the guest in a real VM; what they print is what
the picture shows. Nothing else is drawn but the prompts.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self
from xml.sax.saxutils import escape

from tests.vm.guest import Guest, vfio_user_arguments
from usbvfiod_core.testing.limits import PATIENCE, wait_until

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "session.svg"
COLUMNS = 118

# The picture, in pixels and seconds.
CHARACTER, LINE, MARGIN = 7.23, 17, 16
TYPING, READING = 0.9, 0.35
COLOURS = {"host": "#7ee787", "guest": "#79c0ff", "output": "#c9d1d9", "comment": "#8b949e", "ground": "#0d1117"}
PROMPTS = {"host": "host$ ", "guest": "guest# "}


@dataclass(frozen=True, slots=True)
class Step:
    """A command, where it runs, and a regular expression that its output must match.

    `when`: a command in the guest that has to succeed first, because hardware takes its time."""

    where: str
    command: str
    expected: str
    when: str = "true"


STEPS = (
    Step("host", "usbvfiod --socket-path usb.sock --control-path control.sock 2>log &", ""),
    Step("host", "export USBVFIOD_CONTROL=control.sock", ""),
    Step("host", "# here QEMU starts a VM with its vfio-user-pci device on usb.sock", ""),
    Step("guest", "lsusb -t", r"root_hub, Driver=xhci_hcd/7p, 5000M"),
    Step("host", "truncate -s 1G drive.img", ""),
    Step("host", "usbvfiod attach 'virtual:flash?image=drive.img&name=stick'", r"port 9"),
    Step("guest", "mkfs.ext4 -q /dev/sda && mount /dev/sda /mnt && df -h /mnt", r"sda .* /mnt", "test -b /dev/sda"),
    Step("host", "usbvfiod attach virtual:keyboard?name=keys", r"port 1"),
    Step("host", "usbvfiod list", r"stick .*\n.*keys "),
    Step("guest", "umount /mnt", ""),
    Step("host", "usbvfiod detach stick", ""),
    Step("guest", "dmesg | grep disconnect", r"USB disconnect", "dmesg | grep disconnect"),
)


class Shell:
    """The host's shell: one bash in `directory`, in whose PATH this environment comes first."""

    def __init__(self, directory: Path) -> None:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "NO_COLOR": "1", "COLUMNS": str(COLUMNS)}
        self._process = subprocess.Popen(
            ["bash", "--norc", "--noprofile"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=directory,
            env=environment,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the jobs, then the shell."""
        self.run("kill $(jobs -p); wait")
        self._process.communicate(timeout=PATIENCE)

    def run(self, command: str) -> str:
        """What a command prints; raises RuntimeError if it fails, or does not end in PATIENCE seconds."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{command}\necho :$?:end\n")
        self._process.stdin.flush()
        watchdog = threading.Timer(PATIENCE, self._process.kill)
        watchdog.start()
        lines: list[str] = []
        try:
            for line in self._process.stdout:
                end = re.fullmatch(r":(\d+):end\n", line)
                if end is None:
                    lines.append(line)
                elif end[1] == "0":
                    return "".join(lines)
                else:
                    break
        finally:
            watchdog.cancel()
        raise RuntimeError(f"{command}: {''.join(lines)}")


def record(directory: Path) -> list[tuple[Step, str]]:
    """Run the session in `directory`, whose path must be short enough for sockets; what each step has printed.

    Raises RuntimeError for a command that fails or prints something else than is expected of it."""
    printed: list[tuple[Step, str]] = []
    guest: Guest | None = None
    with Shell(directory) as shell:
        try:
            for step in STEPS:
                if step.where == "host":
                    output = shell.run(step.command)
                else:
                    if guest is None:
                        wait_until((directory / "usb.sock").exists, "the server listens")
                        guest = Guest(directory, vfio_user_arguments(directory / "usb.sock"))
                    guest.wait_until(step.when)
                    output = guest.run(step.command)
                if not re.search(step.expected, output):
                    raise RuntimeError(f"{step.command}: {output!r} does not match {step.expected!r}")
                printed.append((step, output.replace(f"{directory}/", "")))  # whose name is another each time
        finally:
            if guest is not None:
                guest.kill()
    return printed


def render(printed: list[tuple[Step, str]]) -> str:
    """The session as an SVG whose lines appear one after the other, or are all there where nothing is animated."""
    rows: list[str] = []
    seconds = 0.0
    for step, output in printed:
        comment = step.command.startswith("#")
        prompt = "" if comment else f'<tspan fill="{COLOURS[step.where]}">{escape(PROMPTS[step.where])}</tspan>'
        rows.append(_row(len(rows), seconds, COLOURS["comment"] if comment else "#ffffff", prompt, step.command))
        seconds += TYPING
        for line in output.expandtabs().splitlines():
            rows.append(_row(len(rows), seconds, COLOURS["output"], "", line.rstrip()))
        seconds += READING * len(output.splitlines())
    width, height = round(COLUMNS * CHARACTER) + 2 * MARGIN, len(rows) * LINE + 2 * MARGIN
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" xml:space="preserve">',
            "<title>A session: a VM gets a flash drive and a keyboard, and the drive is unplugged</title>",
            "<style>",
            "text { font: 12px monospace; white-space: pre; animation: appear 1ms both }",
            "@keyframes appear { from { opacity: 0 } to { opacity: 1 } }",
            "@media (prefers-reduced-motion) { text { animation: none } }",
            "</style>",
            f'<rect width="100%" height="100%" rx="8" fill="{COLOURS["ground"]}"/>',
            *rows,
            "</svg>",
            "",
        ]
    )


def _row(number: int, seconds: float, colour: str, prompt: str, text: str) -> str:
    if len(text) > COLUMNS:
        raise RuntimeError(f"{len(text)} characters are more than the picture's {COLUMNS}: {text}")
    place = f'x="{MARGIN}" y="{MARGIN + number * LINE + 12}"'
    return f'<text {place} fill="{colour}" style="animation-delay:{seconds:.2f}s">{prompt}{escape(text)}</text>'


def main() -> None:
    """Run the session and write the picture."""
    with tempfile.TemporaryDirectory(prefix="usbvfiod-") as name:
        DOCUMENT.write_text(render(record(Path(name))))


if __name__ == "__main__":
    main()
