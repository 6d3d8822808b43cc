"""A filter of system calls as a program for the kernel's classic BPF machine (seccomp(2), bpf in the kernel's
Documentation/networking/filter.rst). Pure: a `Filter` in, instructions out.

    the architecture is another one           -> kill: the numbers mean something else there
    a call that is allowed, whatever it does  -> allow, the hottest first, the others by a binary search
    ioctl, socket, clone, prctl, prlimit64    -> as their arguments are
    tgkill, fcntl                             -> as their arguments are: signals reach this process only
    clone3                                    -> what `without_clone3` answers
    anything else                             -> refuse
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from struct import Struct
from typing import Final, NamedTuple

from .calls import AUDIT_ARCH, numbers

ALLOW: Final = 0x7FFF0000
ERRNO: Final = 0x00050000
LOG: Final = 0x7FFC0000
KILL: Final = 0x80000000
ENOSYS: Final = 38
EPERM: Final = 1

LD: Final = 0x20
"""A = the word at k of struct seccomp_data."""
AND: Final = 0x54
JA, JEQ, JGE = 0x05, 0x15, 0x35
RET: Final = 0x06

NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16
"""Offsets in struct seccomp_data; an argument has eight bytes, little-endian on both machines."""

CLONE_THREAD: Final = 0x10000
SOCK_STREAM: Final = 1
PRCTLS: Final = (15, 16, 3, 21, 23, 27, 39)
"""Naming a thread, and asking: PR_SET_NAME, PR_GET_NAME, PR_GET_DUMPABLE, PR_GET_SECCOMP, PR_CAPBSET_READ,
PR_GET_SECUREBITS, PR_GET_NO_NEW_PRIVS. The C library's modules for users' names do."""
SIGNALLING: Final = (8, 10, 15)
"""Of fcntl's commands those that have the kernel send a signal of choice to any process: F_SETOWN, F_SETSIG,
F_SETOWN_EX (include/uapi/asm-generic/fcntl.h)."""
_X32: Final = 0x40000000
_TYPE_MASK: Final = 0xF
_IOC_TYPE: Final = 0xFF00

_HOT: Final = """
recvmsg sendmsg epoll_wait epoll_pwait ioctl write read preadv pwritev preadv2 pwritev2 readv writev futex poll ppoll
pread64 pwrite64 sendto recvfrom
"""
HOT: Final = tuple(_HOT.split())
"""What the data path calls. Kernels from 5.11 on ask the filter for those with conditions only."""

_INSTRUCTION: Final = Struct("=HBBI")


class Instruction(NamedTuple):
    """struct sock_filter: jumps are counted from the next instruction."""

    code: int
    true: int
    false: int
    k: int


class Filter(NamedTuple):
    """What is allowed: `calls` by name whatever their arguments are, and what of the calls with
    conditions is. Threads may name themselves and ask what they may (prctl), and ask for their limits."""

    calls: frozenset[str]
    ioctls: frozenset[int] = frozenset()
    ioctl_types: frozenset[str] = frozenset()
    families: frozenset[int] = frozenset()
    """Of sockets, any type."""
    streams: frozenset[int] = frozenset()
    """Of sockets that are streams."""
    threads: bool = True
    process: int = 0
    """The only process whose threads are signalled; 0 for none."""
    refusal: int = ERRNO | EPERM


def program(wanted: Filter, machine: str) -> list[Instruction]:
    """The instructions for `machine`, a key of `AUDIT_ARCH`."""
    table = numbers(machine)
    refuse = [Instruction(RET, 0, 0, wanted.refusal)]
    conditions = {
        "ioctl": _ioctl(wanted, refuse),
        "socket": _socket(wanted, refuse),
        "clone": _clone(wanted, refuse),
        "clone3": _ALLOWED if wanted.threads else refuse,
        "prctl": [_argument(0), *(each for number in PRCTLS for each in _when(number, _ALLOWED)), *refuse],
        "prlimit64": _prlimit(refuse),
        "tgkill": [_argument(0), *_when(wanted.process, _ALLOWED), *refuse] if wanted.process else refuse,
        "fcntl": [_argument(1), *(each for command in SIGNALLING for each in _when(command, refuse)), *_ALLOWED],
    }
    plain = wanted.calls - conditions.keys()
    made = [
        Instruction(LD, 0, 0, ARCHITECTURE),
        Instruction(JEQ, 1, 0, AUDIT_ARCH[machine]),
        Instruction(RET, 0, 0, KILL),
        Instruction(LD, 0, 0, NUMBER),
    ]
    if machine == "x86_64":
        made += [Instruction(JGE, 0, 1, _X32), *refuse]
    hot = [name for name in HOT if name in table]
    for name in hot:
        made += _when(table[name], conditions.pop(name, _ALLOWED if name in plain else refuse))
    for name, block in conditions.items():
        if name in table:
            made += _when(table[name], block)
    rest = sorted(table[name] for name in plain if name in table and name not in hot)
    return made + _search(_ranges(rest), refuse)


def without_clone3(machine: str) -> list[Instruction]:
    """Instructions for a filter beside that of `program`: the arguments of clone3 are in memory, where no filter looks,
    so it is not implemented (ENOSYS), and the C library uses clone. A filter of its own, as this is nothing to log."""
    return [
        Instruction(LD, 0, 0, NUMBER),
        *_when(numbers(machine)["clone3"], [Instruction(RET, 0, 0, ERRNO | ENOSYS)]),
        *_ALLOWED,
    ]


def assembled(instructions: Sequence[Instruction]) -> bytes:
    """As the kernel reads them."""
    return b"".join(_INSTRUCTION.pack(*each) for each in instructions)


# -- own ---------------------------------------------------------------------------------------------------------------

_ALLOWED: Final = [Instruction(RET, 0, 0, ALLOW)]


def _when(number: int, block: list[Instruction]) -> list[Instruction]:
    """Run `block`, which returns, if A is `number`."""
    return [Instruction(JEQ, 1, 0, number), Instruction(JA, 0, 0, len(block)), *block]


def _argument(index: int) -> Instruction:
    """The lower half of an argument: all that the kernel looks at of an int."""
    return Instruction(LD, 0, 0, ARGUMENTS + 8 * index)


def _ioctl(wanted: Filter, refuse: list[Instruction]) -> list[Instruction]:
    block = [_argument(1)]
    for request in sorted(wanted.ioctls):
        block += _when(request, _ALLOWED)
    if wanted.ioctl_types:
        block.append(Instruction(AND, 0, 0, _IOC_TYPE))
        for letter in sorted(wanted.ioctl_types):
            block += _when(ord(letter) << 8, _ALLOWED)
    return block + refuse


def _socket(wanted: Filter, refuse: list[Instruction]) -> list[Instruction]:
    block = [_argument(0)]
    for family in sorted(wanted.families):
        block += _when(family, _ALLOWED)
    stream = [_argument(1), Instruction(AND, 0, 0, _TYPE_MASK), *_when(SOCK_STREAM, _ALLOWED), *refuse]
    for family in sorted(wanted.streams):
        block += _when(family, stream)
    return block + refuse


def _clone(wanted: Filter, refuse: list[Instruction]) -> list[Instruction]:
    if not wanted.threads:
        return refuse
    return [_argument(0), Instruction(AND, 0, 0, CLONE_THREAD), *_when(CLONE_THREAD, _ALLOWED), *refuse]


def _prlimit(refuse: list[Instruction]) -> list[Instruction]:
    """Of this process (0), and without new limits (NULL, both halves)."""
    block = []
    for position in (ARGUMENTS, ARGUMENTS + 16, ARGUMENTS + 20):
        block += [Instruction(LD, 0, 0, position), Instruction(JEQ, 1, 0, 0), *refuse]
    return block + _ALLOWED


def _ranges(ordered: Iterable[int]) -> list[tuple[int, int]]:
    """Runs of numbers without a gap: the first, and the one behind the last."""
    runs: list[tuple[int, int]] = []
    for number in ordered:
        if runs and runs[-1][1] == number:
            runs[-1] = (runs[-1][0], number + 1)
        else:
            runs.append((number, number + 1))
    return runs


def _search(runs: Sequence[tuple[int, int]], refuse: list[Instruction]) -> list[Instruction]:
    """Allow if A is in one of the runs."""
    if not runs:
        return refuse
    if len(runs) == 1:
        low, high = runs[0]
        return [Instruction(JGE, 0, 1, low), Instruction(JGE, 0, 1, high), *refuse, *_ALLOWED]
    half = len(runs) // 2
    left, right = _search(runs[:half], refuse), _search(runs[half:], refuse)
    return [Instruction(JGE, 0, 1, runs[half][0]), Instruction(JA, 0, 0, len(left)), *left, *right]
