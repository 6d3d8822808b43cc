"""Guest memory that is truncated while it is accessed. What could end the process is done in a child."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest

from usbvfiod_core import sigbus
from usbvfiod_core.errors import ClientError
from usbvfiod_core.memory import PAGE_SIZE, GuestMemory

LISTINGS = {"x86_64": (sigbus.X86_64, "as"), "aarch64": (sigbus.AARCH64, "aarch64-linux-gnu-as")}

needs_handler = pytest.mark.skipif(
    sigbus.handler(os.uname().machine, 0) is None, reason=f"there is no handler for {os.uname().machine}"
)

SET_UP = """
fd = os.memfd_create("guest")
PAGES = 64
os.ftruncate(fd, PAGES * PAGE_SIZE)
memory = GuestMemory()
memory.map(0, PAGES * PAGE_SIZE, fd)
memory.write(0, b"guest" * 10000)
window = memory.window(PAGE_SIZE - 4, 40000)
dwords = memory.window(PAGE_SIZE, PAGE_SIZE).cast("I")
"""
PREPARE = f"""
import io, os, struct, threading
from usbvfiod_core.memory import GuestMemory, PAGE_SIZE
SET_UP = {SET_UP!r}
exec(SET_UP)
"""


def child(program: str, *options: str) -> subprocess.CompletedProcess[str]:
    program = PREPARE + textwrap.dedent(program)
    return subprocess.run([sys.executable, *options, "-c", program], capture_output=True, text=True)


@pytest.mark.parametrize("machine", LISTINGS)
def test_the_bytes_are_the_instructions(machine: str, tmp_path: Path) -> None:
    listing, name = LISTINGS[machine]
    assembler = shutil.which(name)
    if assembler is None or (name == "as" and os.uname().machine != machine):
        pytest.skip(f"there is no assembler for {machine}")
    text = "\n".join(line.partition(";")[2] for line in listing.splitlines())
    if machine == "x86_64":
        text = ".intel_syntax noprefix\n" + text.replace("DATA", "0x1122334455667788")
    else:
        text += "\ndata: .quad 0x1122334455667788"
    source, made, raw = tmp_path / "handler.s", tmp_path / "handler.o", tmp_path / "handler.bin"
    source.write_text(text + "\n")
    subprocess.run([assembler, "-o", made, source], check=True)
    objcopy = assembler.removesuffix("as") + "objcopy"
    subprocess.run([objcopy, "-O", "binary", "-j", ".text", made, raw], check=True)
    assert sigbus.handler(machine, 0x1122334455667788) == raw.read_bytes()


ACCESSES = [
    "window[:8].tobytes()",
    "bytes(window)",
    "window[9000:9008] = b'written!'",
    "b''.join([window, window])",
    "bytearray(b'x').extend(window)",
    "struct.unpack_from('<QIII', window, 5000)",
    "struct.pack_into('<Q', window, 5000, 5)",
    "dwords[1000]",
    "dwords[1000] = 7",
    "int.from_bytes(window[:8], 'little')",
    "io.BytesIO(b'y' * 40000).readinto(window)",
    "bytes(window) == window",
    "memory.read(0, 50000)",
    "memory.write(20000, b'z' * 20000)",
]


@needs_handler
def test_every_kind_of_access() -> None:
    result = child(f"""
        for access in {ACCESSES!r}:
            for restored in (False, True):
                exec(SET_UP)
                os.ftruncate(fd, 0)
                exec(access)
                if restored:
                    os.ftruncate(fd, PAGES * PAGE_SIZE)
                told = []
                memory.truncated = lambda: told.append(1)
                memory.check()
                memory.check()
                assert told == [1], access
        print("alive")
    """)
    assert (result.returncode, result.stdout, result.stderr) == (0, "alive\n", "")


@needs_handler
def test_a_part_that_is_cut_off(tmp_path: Path) -> None:
    result = child("""
        os.ftruncate(fd, 3 * PAGE_SIZE)
        memory.read(2 * PAGE_SIZE, PAGE_SIZE)
        assert memory._guard.faults == 0
        memory.read(2 * PAGE_SIZE, PAGE_SIZE + 1)
        assert memory._guard.faults == 1
        memory.read(40 * PAGE_SIZE, PAGE_SIZE)
        assert memory._guard.faults == 1  # all of it is nobody's now
    """)
    assert (result.returncode, result.stderr) == (0, "")


@needs_handler
def test_memory_that_is_only_read_and_memory_that_was_moved() -> None:
    result = child("""
        reader = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
        other = GuestMemory()
        other.map(0, PAGE_SIZE, reader, writable=False)
        memory.withdraw([window]).revoke()
        kept = memory.window(0, 8)
        os.ftruncate(fd, 0)
        other.read(0, 8)
        kept[:] = b"no fault"
        memory.read(PAGE_SIZE, 8)
        for each in (memory, other):
            told = []
            each.truncated = lambda: told.append(1)
            os.ftruncate(fd, PAGES * PAGE_SIZE)
            each.check()
            assert told == [1]
    """)
    assert (result.returncode, result.stderr) == (0, "")


@needs_handler
def test_many_threads_at_once() -> None:
    result = child("""
        def work():
            for place in range(0, PAGES * PAGE_SIZE, 512):
                memory.write(place, b"x" * 64)
        threads = [threading.Thread(target=work) for _ in range(8)]
        os.ftruncate(fd, PAGE_SIZE)
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        print("alive")
    """)
    assert (result.returncode, result.stdout, result.stderr) == (0, "alive\n", "")


@needs_handler
def test_where_nothing_may_become_executable_and_data_is_short() -> None:
    """As in the units and the sandbox: MemoryDenyWriteExecute, and a limit of data far below the size of the guest."""
    result = child("""
        import ctypes, resource
        ctypes.CDLL(None).prctl(65, 1, 0, 0, 0)  # PR_SET_MDWE; older kernels do not have it
        resource.setrlimit(resource.RLIMIT_DATA, (1 << 30, 1 << 30))
        big = os.memfd_create("big")
        os.ftruncate(big, 64 << 30)
        memory.map(1 << 40, 64 << 30, big)
        kept = memory.window(1 << 40, 8)
        memory.withdraw([kept]).revoke()
        memory.window((1 << 40) + (5 << 30), 8)
        os.ftruncate(big, 0)
        for place in range(0, 64 << 30, 1 << 30):
            memory.write((1 << 40) + place, b"no fault")
        assert memory._guard.faults == 1
    """)
    assert (result.returncode, result.stderr) == (0, "")


FOREIGN = """
import mmap
own = os.memfd_create("own")
os.ftruncate(own, PAGE_SIZE)
mapped = mmap.mmap(own, PAGE_SIZE)
os.ftruncate(own, 0)
print("so far", flush=True)
mapped[0]
print("too far")
"""


@needs_handler
def test_other_faults_end_the_process_as_ever() -> None:
    result = child(FOREIGN)
    assert (result.returncode, result.stdout) == (-signal.SIGBUS, "so far\n")


@needs_handler
def test_other_faults_are_told_by_pythons_own_handler() -> None:
    result = child(FOREIGN, "-X", "faulthandler")
    assert (result.returncode, result.stdout) == (-signal.SIGBUS, "so far\n")
    assert "Fatal Python error: Bus error" in result.stderr


@needs_handler
def test_memory_that_is_sealed_needs_no_handler() -> None:
    result = child("""
        import sys
        assert "usbvfiod_core.sigbus" in sys.modules
    """)
    assert result.returncode == 0, result.stderr
    program = (
        "import sys; from usbvfiod_core.testing.memory import GuestRam; from usbvfiod_core.memory import GuestMemory;"
        "ram = GuestRam(); span = ram.spans[0]; GuestMemory().map(span.address, span.size, ram.fd, span.offset);"
        "assert 'usbvfiod_core.sigbus' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


@needs_handler
def test_more_files_than_can_be_guarded(monkeypatch: pytest.MonkeyPatch) -> None:
    guard = sigbus.guard()
    assert guard is not None
    monkeypatch.setattr(guard, "_free", [guard._free.pop()])
    memory = GuestMemory()
    files = [os.memfd_create(f"guest-{number}") for number in range(3)]
    for fd in files:
        os.ftruncate(fd, PAGE_SIZE)
    memory.map(0, PAGE_SIZE, files[0])
    for fd in files[1:]:
        with pytest.raises(ClientError, match="2047 mappings"):
            memory.map(PAGE_SIZE, PAGE_SIZE, fd)
    for fd in files:
        os.close(fd)
    memory.unmap_all()
    memory.settle()
    assert len(guard._free) == 1


def test_a_machine_without_a_handler(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine="riscv64"))
    monkeypatch.setattr(sigbus, "_guards", [])
    fd = os.memfd_create("guest")
    os.ftruncate(fd, PAGE_SIZE)
    for _ in range(2):
        memory = GuestMemory()
        memory.map(0, PAGE_SIZE, fd)
        memory.check()
    assert caplog.text.count("would end this process: [Errno 38] there is no handler for riscv64") == 1
    os.ftruncate(fd, 0)
    memory.check()
    assert memory.regions[0].view is None
    os.close(fd)


RANDOM = """
import random, signal, socket, sys, time
from usbvfiod_core.usb.transfer import IsochronousPacket, Transfer, TransferType
from usbvfiod_core.virtual.isochronous import contents, fill

times, choice = int(sys.argv[1]), random.Random(7)
SIZE = PAGES * PAGE_SIZE
parent = os.getpid()
helper = os.fork()
if not helper:  # another process, so that it comes in the middle of everything
    while os.getppid() == parent:
        os.ftruncate(fd, choice.choice((0, SIZE, choice.randrange(PAGES) * PAGE_SIZE)))
        time.sleep(choice.random() * 0.0003)
    os._exit(0)
image = os.memfd_create("image")
os.write(image, bytes(SIZE))
left, right = socket.socketpair()
lost = []
memory.truncated = lambda: lost.append(1)
faults = done = in_kernel = 0

def work(windows, length):
    transfer = Transfer(0x81, TransferType.ISOCHRONOUS, windows, length, lambda transfer: None)
    packet = IsochronousPacket(length // 3, length // 2)
    yield lambda: transfer.write(b"x" * length)
    yield transfer.read
    yield lambda: fill(transfer, packet, b"y" * packet.length)
    yield lambda: bytes(contents(transfer, packet))
    yield lambda: b"".join(windows)
    yield lambda: bytearray().join(windows)
    yield lambda: os.preadv(image, windows, 0)
    yield lambda: os.pwritev(image, windows, 0)
    yield lambda: left.send(windows[0][:4000]) and right.recv_into(windows[-1])
    yield lambda: io.BytesIO(b"z" * length).readinto(windows[0])
    yield lambda: struct.unpack_from("<8I", windows[0])
    yield lambda: memory.window(windows_at & ~0xFFF, PAGE_SIZE).cast("Q")[5]

try:
    while done < times:
        try:
            os.ftruncate(fd, SIZE)
            memory.map(0, SIZE, fd)
        except Exception as error:
            assert "bytes, the map needs" in str(error) or "cannot be mapped" in str(error), error
            continue
        for _ in range(100):
            windows_at = choice.randrange(SIZE - 3 * PAGE_SIZE)
            length = choice.choice((32, 600, 5000))
            windows = memory.windows(windows_at, length, write=True)
            for access in work(windows, length):
                try:
                    access()
                except OSError as error:
                    assert error.errno == 14, error
                    in_kernel += 1
            del windows, access
            memory.check()
            if lost:
                done += 1
                break
        lost.clear()
        memory.unmap_all()
        memory.settle()
finally:
    os.kill(helper, signal.SIGKILL)
print(done, memory._guard.faults, in_kernel)
"""


def truncate_at_random(times: int) -> list[int]:
    result = subprocess.run([sys.executable, "-c", PREPARE + RANDOM, str(times)], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    return [int(word) for word in result.stdout.split()]


@needs_handler
def test_truncated_at_random_moments() -> None:
    done, faults, in_kernel = truncate_at_random(300)
    assert done == 300
    assert faults > 30
    assert in_kernel


@needs_handler
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_truncated_at_random_moments_long() -> None:
    done, faults, _ = truncate_at_random(100_000)
    assert done == 100_000
    assert faults > 10_000
