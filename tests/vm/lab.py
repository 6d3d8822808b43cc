"""The lab: a virtual machine whose Linux really owns USB devices, with the checkout and a Python to run it.

    with Lab(directory) as lab:
        print(lab.run("lsusb -t"))
        lab.pytest("tests/lab/test_gadgets.py")

It is a `System`. Tests that run inside are in directories named `lab` (see docs/testing.md); the modules beside them in
tests/lab make the devices. A server that runs in it can have a guest beside it: see bridge.py.

    .venv/bin/python -m tests.vm.lab [PYTEST ARGUMENTS]

boots one and runs pytest in it, or, without arguments, the shell scripts that are typed, a line each.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from tests.lab import prepared
from tests.vm.guest import GuestError, GuestTimeout, Running, shared_file
from tests.vm.system import INSIDE, System

MARK = "usbvfiod.lab"
"""A kernel argument, by which tests know that they are in the lab (see conftest.py)."""
MEMORY_MIB = 1536
WINDOW_MIB = 1024
TEST_TIMEOUT = 180  # seconds for one test inside, scaled there; what takes one here takes five to ten there
REQUESTS, ANSWERS = "/run/pytest.requests", "/run/pytest.answers"  # FIFOs of pytest_runs.py
NO_ANSWER = "nothing: its process has ended"
WIRES = ("qmp", "wire0", "wire1")
"""A monitor of QEMU's, so that what runs in the lab plugs devices in and out; and what the devices may be wired to."""


class LabFailure(GuestError):
    """Tests in the lab failed; the message is what pytest printed there."""


class Lab(System):
    """A system with USB controllers and wires to QEMU.

    `window` is a file of WINDOW_MIB that the lab sees as a PCI device's memory; it can be the memory of another guest,
    too. `bridge` is a socket whose other end is a port in the lab. See bridge.py for what they are there for.
    """

    def __init__(self, directory: Path, *, kernel_arguments: str = "", backported: bool = False) -> None:
        self._runs: Running | None = None
        self._prepared: Running | None = None
        self.window = os.fdopen(os.memfd_create("window"), "r+b", buffering=0)
        self.window.truncate(WINDOW_MIB << 20)
        self.bridge, inner = socket.socketpair()
        with contextlib.ExitStack() as stack:
            stack.enter_context(inner)
            # Of each pair QEMU has both ends: one is a device's of its own, the other a port in the lab.
            wires = {name: [stack.enter_context(end) for end in socket.socketpair()] for name in WIRES}
            numbers = {name: (near.fileno(), far.fileno()) for name, (near, far) in wires.items()}
            handed = [inner.fileno(), self.window.fileno(), *(number for pair in numbers.values() for number in pair)]
            super().__init__(
                directory,
                [
                    *("-device", "virtio-serial-pci"),
                    *_wires(numbers),
                    *_port("bridge", inner.fileno()),
                    *("-device", "qemu-xhci,id=xhci,p2=8,p3=8", "-device", "usb-ehci,id=ehci"),
                    *("-audiodev", f"wav,id=sound,path={directory}/exchange/sound.wav,out.frequency=48000"),
                    *("-object", shared_file("window", self.window.fileno(), WINDOW_MIB)),
                    *("-device", "ivshmem-plain,memdev=window"),
                ],
                # One processor: emulated ones that wait for each other take a quarter of the time, and more on a busy
                # machine.
                memory_mib=MEMORY_MIB,
                kernel_arguments=f"{MARK} {kernel_arguments}".strip(),
                backported=backported,
                descriptors=handed,
            )

    def kill(self) -> None:
        super().kill()
        self.bridge.close()
        self.window.close()

    def pytest(self, *arguments: str, timeout: float = 300.0) -> dict[str, int]:
        """Run pytest in the lab, from the checkout's top; returns how many tests passed and how many were skipped.

        What it prints can be followed in pytest.log of `exchange`.
        Raises LabFailure with all that pytest printed if a test failed or none ran, GuestTimeout if it does not end.
        """
        report, log = self.exchange / "report.xml", self.exchange / "pytest.log"
        report.unlink(missing_ok=True)
        log.write_text("")
        request = shlex.quote(json.dumps([arguments, "/exchange/pytest.log"]))
        self._start_prepared()
        self._start_pytest_runs()
        asking = f"exec 3<> {REQUESTS} 4<> {ANSWERS}; echo {request} >&3; read -r status <&4"
        running = self.start(f'{asking}; echo "pytest ended with $status"')
        try:
            ending = self.wait(running, timeout)
        except GuestTimeout as error:
            self._runs = None  # it is left there with the run that does not end
            raise GuestTimeout(f"{log.read_text(errors='replace')}\n{error}") from None
        if NO_ANSWER in ending:
            self._runs = None
        output = f"{log.read_text(errors='replace')}\n{ending}"
        if not report.exists():
            raise LabFailure(output)
        suite = ElementTree.parse(report).getroot().find("testsuite")
        assert suite is not None
        total, skipped = int(suite.get("tests", 0)), int(suite.get("skipped", 0))
        if not output.endswith("pytest ended with 0\n") or total == skipped:
            raise LabFailure(output)
        return {"passed": total - skipped, "skipped": skipped}

    def usbvfiod(self, *words: str, timeout: float = 120.0) -> str:
        """Run a command of usbvfiod's in a copy of a process that has imported it (inside/prepared.py); as `run`."""
        return self.wait(self._ask(prepared.COMMANDS, "usbvfiod_core", words), timeout)

    def start_program(self, module: str, *words: str) -> Running:
        """Start one of the programs that are prepared there, likewise; as `start`."""
        return self._ask(prepared.PROGRAMS, module, words)

    def _ask(self, fifo: str, module: str, words: Sequence[str]) -> Running:
        self._start_prepared()
        request = {"module": module, "arguments": words, "environment": None, "directory": str(INSIDE)}
        request["files"] = [os.devnull, *(f"/proc/$$/fd/{number}" for number in (1, 2))]
        request["answers"] = "/proc/$$/fd/3"
        line = shlex.quote(json.dumps(request)).replace("$$", "'$$'")  # the shell's number
        answers = "/run/answers.$$"
        asking = f"mkfifo {answers}; exec 3<> {answers}; rm {answers}; echo {line} > {fifo}"
        return self.start(f"{asking}; read -r process <&3; read -r status <&3; exit $status")

    def _start_prepared(self) -> None:
        """Have what becomes usbvfiod's servers and commands, and such programs."""
        if not self._goes_on(self._prepared):
            requests = " ".join(prepared.FIFOS)
            self.run(f"rm -f {requests}; mkfifo {requests}")
            program = f"{INSIDE}/tests/vm/inside/prepared.py"
            self._prepared = self.start(f"exec python3 -P {program} {requests} > /exchange/prepared.log 2>&1")

    def _goes_on(self, running: Running | None) -> bool:
        if running is None:
            return False
        self.ended(running, 0.01)  # takes in what has been said
        return running.id in self._running

    def _start_pytest_runs(self) -> None:
        """Have what runs pytest in the lab: one process for all requests (inside/pytest_runs.py)."""
        if not self._goes_on(self._runs):
            options = ["-c", f"{INSIDE}/pyproject.toml", "-p", "no:cacheprovider", "-rs"]
            options += ["-p", "no:hypothesispytest", "-p", "no:anyio"]  # which take longer to load than many a test
            options += ["-o", f"timeout={TEST_TIMEOUT}", "--durations=5", "--junitxml=/exchange/report.xml"]
            command = shlex.join(["python3", "-m", "tests.vm.inside.pytest_runs", REQUESTS, ANSWERS, *options])
            self.run(f"rm -f {REQUESTS} {ANSWERS}; mkfifo {REQUESTS} {ANSWERS}")
            # Whoever waits for an answer gets one also where this ends before it has answered.
            script = f"cd {INSIDE}; exec 4<> {ANSWERS}; {command} > /exchange/pytest-runs.log 2>&1 4>&-"
            self._runs = self.start(f"{script}; echo {NO_ANSWER} with $?, see pytest-runs.log >&4")


def _wires(numbers: dict[str, tuple[int, int]]) -> list[str]:
    """QEMU's arguments for connections between itself and what runs in the lab, which are virtio serial ports there."""
    arguments = []
    for name, (near, far) in numbers.items():
        arguments += ["-chardev", f"socket,id={name},fd={near}", *_port(name, far)]
    return [*arguments, "-object", "monitor-qmp,id=inner,chardev=qmp"]


def _port(name: str, fd: int) -> list[str]:
    """QEMU's arguments for a port in the lab that is the other end of a socket."""
    device = f"virtserialport,chardev={name}-port,name=usbvfiod.{name}"
    return ["-chardev", f"socket,id={name}-port,fd={fd}", "-device", device]


def main(arguments: Sequence[str]) -> int:
    """What `python -m tests.vm.lab` does; returns the exit status."""
    with tempfile.TemporaryDirectory(prefix="usbvfiod-lab-") as directory, Lab(Path(directory)) as lab:
        print(f"lab: {lab.boot_seconds:.0f} s to the shell; {lab.exchange}/pytest.log", file=sys.stderr)
        if arguments:
            try:
                print(lab.pytest(*arguments, timeout=3600))
            except GuestError as failure:
                print(failure)
                return 1
            return 0
        for line in sys.stdin:
            try:
                print(lab.run(line, timeout=3600), end="", flush=True)
            except GuestError as error:
                print(error)
    return 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main(sys.argv[1:]))
