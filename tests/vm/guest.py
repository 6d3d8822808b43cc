"""One virtual machine of the VM tests: QEMU from the Debian tree, a Linux guest, and a shell in it.

    with Guest(directory, vfio_user_arguments(socket_path)) as guest:
        print(guest.run("lsusb -t"))

QEMU runs without root and sees the system's own files. Every wait has an end, and QEMU never outlives the process that
started it. Time-outs are seconds of a machine that may be busy; they are scaled here (usbvfiod_core.testing.limits).
One guest belongs to one thread: the one that made it, which must live as long as the guest (QEMU is told
to end with its parent, and Linux takes that to be a thread).
"""

from __future__ import annotations

import base64
import json
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.vm import initramfs
from tests.vm import tree as debian
from tests.vm.qmp import Qmp, QmpError
from usbvfiod_core.testing.limits import PATIENCE, scaled

BOOT_TIMEOUT = 120.0  # six seconds on an idle machine with two cores; tests may share it with a compiler
LOG = "log_buf_len=1M"  # Debian's kernels have room for a minute of devices that come and go (LOG_BUF_SHIFT=17)
LONGEST_SCRIPT = 30_000  # bytes of base64: beyond it the guest's serial driver has nowhere to put them


class GuestError(Exception):
    """The guest or QEMU did not do what was asked; the message carries what they said."""


class CommandError(GuestError):
    """A script ended with a status other than 0."""

    def __init__(self, script: str, status: int, output: str) -> None:
        super().__init__(f"exit status {status} from: {script}\n{output}")
        self.status = status
        self.output = output


class GuestTimeout(GuestError):
    """Something took longer than allowed."""


@dataclass(slots=True)
class Running:
    """A script that was started in the guest; give it to `Guest.wait`."""

    id: str
    script: str
    status: int | None = None
    output: str = ""


@dataclass(frozen=True, slots=True)
class Saved:
    """A guest that was saved: the file, and how far its shell had come."""

    path: Path
    boots: int
    last_id: int
    running: dict[str, Running]


def vfio_user_arguments(socket_path: Path | str, name: str = "usbvfiod") -> list[str]:
    """QEMU's arguments for the device a vfio-user server offers on `socket_path`. The server must be listening."""
    device = {"driver": "vfio-user-pci", "id": name, "socket": {"type": "unix", "path": str(socket_path)}}
    return ["-device", json.dumps(device)]


def qemu_xhci_arguments(
    images: Sequence[Path | str] = (), *, keyboard: bool = False, storage: str = "usb-storage"
) -> list[str]:
    """QEMU's arguments for the reference: its own xHCI controller with a drive for each image, perhaps a keyboard.

    The images are raw and go through the page cache, as usbvfiod's do. `storage` may also be "usb-uas" (then the
    drives are one device's logical units).
    """
    arguments = ["-device", "qemu-xhci,id=xhci,p2=8,p3=8"]
    if storage == "usb-uas":
        arguments += ["-device", "usb-uas,id=uas,bus=xhci.0"]
    for index, image in enumerate(images):
        drive = {"driver": "raw", "node-name": f"image{index}", "file": {"driver": "file", "filename": str(image)}}
        drive["cache"] = {"direct": False, "no-flush": False}
        arguments += ["-blockdev", json.dumps(drive)]
        if storage == "usb-uas":
            arguments += ["-device", f"scsi-hd,bus=uas.0,lun={index},drive=image{index}"]
        else:
            arguments += ["-device", f"usb-storage,id=drive{index},bus=xhci.0,drive=image{index}"]
    if keyboard:
        arguments += ["-device", "usb-kbd,id=keyboard,bus=xhci.0"]
    return arguments


def _memory_arguments(machine: str, shared_mib: int, private_mib: int, *, private_first: bool, slot: bool) -> list[str]:
    """QEMU's arguments for this machine with the memory `ram`, and perhaps a NUMA node beside it that is not shared."""
    size = ["-m", f"{shared_mib + private_mib}M{',slots=1,maxmem=4G' if slot else ''}"]
    if not private_mib:
        return ["-machine", f"{machine},memory-backend=ram", *size]
    processors = [",cpus=0", ""] if not private_first else ["", ",cpus=0"]
    return [
        *("-machine", machine, *size, "-object", f"memory-backend-ram,id=private,size={private_mib}M"),
        *("-numa", f"node,memdev=ram{processors[0]}", "-numa", f"node,memdev=private{processors[1]}"),
    ]


def shared_file(name: str, fd: int, mebibytes: int) -> str:
    """The memory of QEMU's that is the file behind an inherited descriptor; for `-object`."""
    return f"memory-backend-file,id={name},size={mebibytes}M,mem-path=/proc/self/fd/{fd},share=on"


@dataclass(frozen=True, slots=True)
class Board:
    """What a guest's processor sits on: how its QEMU is started, as which machine, what it boots, and the device behind
    which its shell is (the console is the machine's first serial port)."""

    qemu: Sequence[str]
    machine: str
    kernel: Path
    initramfs: Path
    shell: Sequence[str]


def pc(*, backported: bool = False, recipe: initramfs.Recipe = initramfs.GUEST) -> Board:
    """A PC with Debian's kernel, or the newer one, from the tree. Raises tree.VmError where that is missing."""
    reason = debian.why_unavailable()
    if reason:
        raise debian.VmError(reason)
    tree = debian.tree_directory()
    return Board(
        debian.qemu_argv(tree),
        "q35,accel=tcg",
        debian.kernel(tree, backported=backported)[0],
        initramfs.ensure(tree, recipe, backported=backported),
        ("-serial", "chardev:shell"),
    )


class Guest:
    """A virtual machine and the shell in it. Made and booted by the constructor, ended by `kill` or leaving `with`.

    `directory` must exist; the kernel's console (console.log) and QEMU's messages (qemu.log) are kept in it.
    `arguments` are added to QEMU's command line, which may name the file descriptors in `descriptors`. The memory is a
    shared memfd, as vfio-user needs it: `memory_fd`, of that size, if somebody else has it, too. The kernel is Debian's
    own, or with `backported` the newer one. With `private_mib` it has a second NUMA node of so much more memory that is
    not shared; `private_first` puts the processors there, so that Linux takes from it first. `memory_slot`: a module
    of memory can be plugged in. Or kernel and machine are the `board`'s. With `saved` it is not booted: it is another
    guest, made with the same arguments, as it was saved by `save`, with the scripts that it was running.
    Raises tree.VmError where the tree is missing, GuestError if QEMU ends or the guest does not come up.
    """

    def __init__(
        self,
        directory: Path,
        arguments: Sequence[str] = (),
        *,
        memory_mib: int = 512,
        memory_fd: int | None = None,
        private_mib: int = 0,
        private_first: bool = False,
        memory_slot: bool = False,
        processors: int = 1,
        kernel_arguments: str = "",
        backported: bool = False,
        recipe: initramfs.Recipe = initramfs.GUEST,
        board: Board | None = None,
        descriptors: Sequence[int] = (),
        saved: Saved | None = None,
        timeout: float = BOOT_TIMEOUT,
    ) -> None:
        if board is None:
            board = pc(backported=backported, recipe=recipe)
        self.directory = directory
        self.console_path = directory / "console.log"
        self.qemu_log_path = directory / "qemu.log"
        self.transcript: list[str] = []
        self.boots = 0
        self._received = b""
        self._running: dict[str, Running] = {}
        self._answering: Running | None = None
        self._answer: list[bytes] = []
        self._last_id = 0

        self._shell, qemu_shell = socket.socketpair()
        monitor, qemu_monitor = socket.socketpair()
        self._monitor = monitor
        self._qmp = Qmp(monitor)
        memory = f"memory-backend-memfd,id=ram,size={memory_mib}M,share=on"
        if memory_fd is not None:
            memory = shared_file("ram", memory_fd, memory_mib)
            descriptors = [*descriptors, memory_fd]
        self.command = [
            *board.qemu,
            *("-object", memory),
            *_memory_arguments(board.machine, memory_mib, private_mib, private_first=private_first, slot=memory_slot),
            *("-cpu", "max", "-smp", str(processors), "-nographic", "-nodefaults", "-no-user-config"),
            *("-run-with", "exit-with-parent=on"),
            *("-chardev", f"file,id=console,path={self.console_path}", "-serial", "chardev:console"),
            *("-chardev", f"socket,id=shell,fd={qemu_shell.fileno()}", *board.shell),
            *("-chardev", f"socket,id=monitor,fd={qemu_monitor.fileno()}"),
            *("-object", "monitor-qmp,id=qmp,chardev=monitor"),
            *("-kernel", str(board.kernel), "-initrd", str(board.initramfs)),
            *("-append", f"console=ttyS0 panic=-1 {LOG} {kernel_arguments}".strip()),
            *arguments,
            *(("-incoming", f"file:{saved.path}") if saved is not None else ()),
        ]
        self.transcript.append(f"$ {' '.join(self.command)}")
        try:
            with open(self.qemu_log_path, "ab") as log, qemu_shell, qemu_monitor:
                self.process = subprocess.Popen(
                    self.command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=debian.qemu_environment(debian.tree_directory()),
                    pass_fds=(qemu_shell.fileno(), qemu_monitor.fileno(), *descriptors),
                    start_new_session=True,
                )
        except BaseException:
            self._shell.close()
            monitor.close()
            raise
        try:
            started = time.monotonic()
            self._connect_monitor(timeout)
            if saved is None:
                self._wait_boot(1, timeout)
            else:
                self.boots, self._last_id, self._running = saved.boots, saved.last_id, dict(saved.running)
                self._wait_loaded(timeout)
            self.boot_seconds = time.monotonic() - started
        except BaseException:
            self.kill()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def run(self, script: str, timeout: float = 60.0) -> str:
        """Run a shell script (busybox's) as root and return what it printed, standard error included.

        Raises CommandError if it does not end with status 0, GuestTimeout with the kernel's log if it does not end in
        time (it is left running), GuestError if the guest is gone or was reset meanwhile.
        """
        return self.wait(self.start(script), timeout)

    def start(self, script: str) -> Running:
        """Start a script beside others; `wait` takes its end."""
        encoded = base64.b64encode(script.encode())
        if len(encoded) > LONGEST_SCRIPT:
            raise ValueError(f"a script of {len(script)} bytes is too long for the guest's serial port")
        self._last_id += 1
        running = Running(str(self._last_id), script)
        self._running[running.id] = running
        self.transcript.append(f"[{running.id}] # {script}")
        try:
            self._shell.sendall(running.id.encode() + b" " + encoded + b"\n")
        except OSError:
            raise self._gone() from None
        return running

    def wait(self, running: Running, timeout: float = 60.0) -> str:
        """Wait for a started script; as `run`."""
        timeout = scaled(timeout)
        deadline = time.monotonic() + timeout
        while running.status is None:
            if running.id not in self._running:
                raise GuestError(f"the guest was reset while it ran: {running.script}\n{self.console_tail()}")
            if not self._receive(deadline):
                raise GuestTimeout(f"no end after {timeout:.0f} s of: {running.script}\n{self._blocked()}")
        if running.status != 0:
            raise CommandError(running.script, running.status, running.output)
        return running.output

    def ended(self, running: Running, patience: float) -> bool:
        """Whether a started script ends within so many seconds; `wait` takes its end then."""
        deadline = time.monotonic() + patience
        while running.status is None and self._receive(deadline):
            pass
        return running.status is not None

    def wait_until(self, condition: str, timeout: float = 60.0) -> None:
        """Wait until a shell command in the guest succeeds; raises CommandError with its last words if it does not."""
        rounds = max(1, int(scaled(timeout) * 10))
        script = f"for round in $(seq {rounds}); do last=$({{ {condition}; }} 2>&1) && exit 0; sleep 0.1; done"
        self.run(f'{script}; echo "$last"; exit 1', timeout + 10)

    def dmesg(self, level: int = 7, *, clear: bool = False) -> str:
        """The kernel's log since boot, or since it was cleared: the lines of this severity or worse (4 is warnings, 7
        everything). Over many rounds clear it in each, as a guest needs seconds to say all of it."""
        log = self.run("dmesg -rc" if clear else "dmesg -r")
        lines = []
        for line in log.splitlines():
            priority, _, text = line.removeprefix("<").partition(">")
            if not priority.isdigit() or int(priority) & 7 <= level:
                lines.append(text or line)
        return "\n".join(lines)

    def qmp(self, command: str, *, timeout: float = 30.0, **arguments: Any) -> Any:
        """Run a command of QEMU's machine protocol; raises qmp.QmpError if QEMU refuses it."""
        self.transcript.append(f"[qmp] {command} {arguments}")
        return self._qmp.execute(command, timeout=scaled(timeout), **arguments)

    def qmp_event(self, name: str, timeout: float = 30.0) -> dict[str, Any]:
        """Wait for an event of QEMU's machine protocol."""
        return self._qmp.wait_event(name, scaled(timeout))

    def reboot(self, script: str = "sync; reboot -f", timeout: float = BOOT_TIMEOUT) -> None:
        """Let the guest reboot itself (drivers shut down, file systems synchronised) and wait until it is up again.

        `script` may do it in another way, by kexec for one."""
        boots = self.boots
        self.start(script)
        self._wait_boot(boots + 1, timeout)

    def system_reset(self, timeout: float = BOOT_TIMEOUT) -> None:
        """Press the reset button (nothing in the guest is told) and wait until it is up again."""
        boots = self.boots
        self.qmp("system_reset")
        self._wait_boot(boots + 1, timeout)

    def shutdown(self, timeout: float = 60.0) -> None:
        """Let the guest power itself off and wait for QEMU's end."""
        timeout = scaled(timeout)
        self.start("sync; poweroff -f")
        try:
            status = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            message = f"the guest did not power off in {timeout:.0f} s\n{self.console_tail()}"
            raise GuestTimeout(message) from None
        finally:
            self.kill()
        if status != 0:
            raise GuestError(f"QEMU ended with status {status}\n{self._qemu_tail()}")

    def save(self, path: Path, timeout: float = BOOT_TIMEOUT) -> Saved:
        """Save the machine to a file, which QEMU must be able to write; this one is stopped. Raises qmp.QmpError, and
        GuestError with QEMU's reason if it saves nothing."""
        self.qmp("migrate", uri=f"file:{path}")
        deadline = time.monotonic() + scaled(timeout)
        while (answer := self.qmp("query-migrate")).get("status") != "completed":
            if answer.get("status") in ("failed", "cancelled"):
                raise GuestError(f"the machine was not saved: {answer.get('error-desc')}")
            if time.monotonic() > deadline:
                raise GuestTimeout(f"the machine is not saved after {timeout:.0f} s: {answer}")
            time.sleep(0.05)
        return Saved(path, self.boots, self._last_id, dict(self._running))

    def kill(self) -> None:
        """End QEMU with SIGKILL, as a crash would; does nothing the second time."""
        self._shell.close()
        self._monitor.close()
        self.process.kill()
        self.process.wait()

    def console_tail(self, lines: int = 40) -> str:
        """The last lines of the kernel's console, for messages."""
        return _tail(self.console_path, lines)

    def _connect_monitor(self, timeout: float) -> None:
        try:
            self._qmp.connect(scaled(timeout))
        except QmpError:
            raise self._gone() from None

    def _wait_loaded(self, timeout: float) -> None:
        deadline = time.monotonic() + scaled(timeout)
        while self.qmp("query-status")["status"] == "inmigrate":
            if time.monotonic() > deadline:
                raise GuestTimeout(f"the saved machine is not there after {timeout:.0f} s\n{self._qemu_tail()}")
            time.sleep(0.05)

    def _wait_boot(self, boots: int, timeout: float) -> None:
        timeout = scaled(timeout)
        deadline = time.monotonic() + timeout
        while self.boots < boots:
            if not self._receive(deadline):
                raise GuestTimeout(f"the guest is not up after {timeout:.0f} s\n{self.console_tail()}")

    def _receive(self, deadline: float) -> bool:
        """Take in what the guest says next; False if that was nothing until the deadline."""
        remaining = deadline - time.monotonic()
        if remaining <= 0 or not select.select([self._shell], [], [], remaining)[0]:
            return False
        try:
            data = self._shell.recv(65536)
        except ConnectionResetError:
            data = b""
        if not data:
            raise self._gone()
        self._received += data
        *lines, self._received = self._received.split(b"\n")
        for line in lines:
            self._take(line)
        return True

    def _take(self, line: bytes) -> None:
        """One line of the protocol in `guest_shell.sh`."""
        if line.startswith(b"READY "):
            self.boots += 1
            self._running.clear()
            self._answering = None
            self.transcript.append(f"[boot {self.boots}] {line.decode()}")
        elif line.startswith(b">"):
            identifier, status = line[1:].decode().split()
            self._answering = self._running.get(identifier)
            self._answer = [status.encode()]
        elif line.startswith(b"<"):
            running, self._answering = self._answering, None
            if running is not None:
                running.output = base64.b64decode(b"".join(self._answer[1:])).decode(errors="replace")
                running.status = int(self._answer[0])
                del self._running[running.id]
                self.transcript.append(f"[{running.id}] status {running.status}\n{running.output}")
        elif self._answering is not None:
            self._answer.append(line)

    def _blocked(self) -> str:
        """What the guest's kernel can say about a script that does not end."""
        probe = self.start("echo w > /proc/sysrq-trigger; dmesg | tail -n 60")
        deadline = time.monotonic() + PATIENCE
        try:
            while probe.status is None and self._receive(deadline):
                pass
        except GuestError as error:
            return str(error)
        if probe.status is None:
            return f"the guest answers nothing else either; its console:\n{self.console_tail()}"
        return f"the kernel's log, blocked tasks last:\n{probe.output}"

    def _gone(self) -> GuestError:
        try:
            status = self.process.wait(5)
        except subprocess.TimeoutExpired:
            return GuestError(f"QEMU closed the guest's serial port\n{self._qemu_tail()}")
        how = signal.Signals(-status).name if status < 0 else f"status {status}"
        return GuestError(f"QEMU has ended ({how})\n{self._qemu_tail()}\n{self.console_tail()}")

    def _qemu_tail(self) -> str:
        return _tail(self.qemu_log_path, 20)


def _tail(path: Path, lines: int) -> str:
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


# The type of the fixtures that boot guests: takes the arguments for QEMU and the keywords of `Guest`.
GuestFactory = Callable[..., Guest]
