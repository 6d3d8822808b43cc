"""The tables of system calls are those of the kernel's headers."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from usbvfiod_core.sandbox.calls import AUDIT_ARCH, known, numbers
from usbvfiod_core.sandbox.defaults import DEFAULT_CALLS

HEADERS = {
    "x86_64": ("asm/unistd_64.h", ()),
    # What arch/arm64/include/uapi/asm/unistd.h defines before it includes this.
    "aarch64": (
        "asm-generic/unistd.h",
        (
            "__BITS_PER_LONG=64",
            "__ARCH_WANT_RENAMEAT",
            "__ARCH_WANT_NEW_STAT",
            "__ARCH_WANT_SET_GET_RLIMIT",
            "__ARCH_WANT_TIME32_SYSCALLS",
            "__ARCH_WANT_SYS_CLONE3",
            "__ARCH_WANT_MEMFD_SECRET",
        ),
    ),
}
_NO_CALLS = ("syscalls", "arch_specific_syscall")


def header(machine: str) -> dict[str, int]:
    """The calls that this host's header has."""
    name, defined = HEADERS[machine]
    compiler = shutil.which("cc")
    if compiler is None or not any(Path("/usr/include").glob(f"**/{name}")):
        pytest.skip("no C compiler, or no headers of the kernel")
    command = [compiler, "-E", "-dM", *(f"-D{each}" for each in defined), "-include", name, "-x", "c", "/dev/null"]
    text = subprocess.run(command, capture_output=True, text=True)
    if text.returncode:
        pytest.skip(f"no header {name}: {text.stderr.splitlines()[0]}")
    macros = dict(re.findall(r"#define (__NR\w*) (\S+)", text.stdout))
    found = {}
    for macro, value in macros.items():
        if macro.startswith("__NR_") and macro[5:] not in _NO_CALLS:
            found[macro[5:]] = int(macros.get(value) or value)
    return found


@pytest.mark.parametrize("machine", AUDIT_ARCH)
def test_numbers_are_those_of_the_kernels_header(machine: str) -> None:
    of_kernel, ours = header(machine), numbers(machine)
    assert len(of_kernel) > 250
    # A newer header has more; one of another version may lack some.
    assert {name: number for name, number in of_kernel.items() if ours.get(name, number) != number} == {}
    assert [name for name, number in of_kernel.items() if name not in ours and number <= 450] == []
    assert [name for name, number in ours.items() if name not in of_kernel and number < 424] == []


@pytest.mark.parametrize("machine", AUDIT_ARCH)
def test_no_number_has_two_names(machine: str) -> None:
    assert len(set(numbers(machine).values())) == len(numbers(machine))


def test_what_every_server_calls_has_numbers() -> None:
    assert known() >= DEFAULT_CALLS
    for machine in AUDIT_ARCH:
        assert {"read", "openat", "futex", "ppoll", "recvmsg", "clone3", "ioctl"} <= numbers(machine).keys()
