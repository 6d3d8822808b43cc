"""Guest memory whose file the client truncates: the access neither ends this process nor fails.

Linux sends SIGBUS to whoever touches a page of a mapping that its file does not have any more, and a file can shrink
between any check and the access. Files that are sealed against it (QEMU's memfd) need nothing. For all others, such as
Cloud Hypervisor's, there is a signal handler, which puts anonymous memory in the place of the mapping and notes it. The
instruction is repeated and finds zeros; `GuestMemory.check` finds the note, and the client is dropped.

A handler in Python would run only after the instruction, which never ends. This one is machine code: it makes one
system call, touches nothing but its own table, and passes any other fault to the handler before it.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import mmap
import os
import weakref
from typing import Any, Final

from .mapping import FAILED, Owner, address_of, libc_mmap

log = logging.getLogger(__name__)

CAPACITY: Final = 2047
"""Mappings that are guarded at a time."""

# The table, in words of 64 bits: how many entries have ever been used, the handler that was there before (0 and 1 are
# none), faults so far, one word unused, four of zeros (the kernel's sigaction for SIG_DFL); then four an entry: start,
# end, page size, and whether there was a fault.
_OLD: Final = 1
_FAULTS: Final = 2
_ENTRIES: Final = 8
_WORDS: Final = 4

_SIGBUS: Final = 7
_SA_SIGINFO: Final = 4
_MFD_EXEC: Final = 0x10

# The handler: bytes, and the instructions that they are, for `as`. DATA is the address of the table.
X86_64: Final = """
49bd                 ; mov r13, DATA
837e0802             ; cmp dword ptr [rsi + 8], 2
757d                 ; jne other
4c8b6610             ; mov r12, [rsi + 16]
498b4d00             ; mov rcx, [r13]
498d5d40             ; lea rbx, [r13 + 64]
                     ; look:
4885c9               ; test rcx, rcx
746c                 ; je other
4c3b23               ; cmp r12, [rbx]
7206                 ; jb next
4c3b6308             ; cmp r12, [rbx + 8]
7209                 ; jb found
                     ; next:
4883c320             ; add rbx, 32
48ffc9               ; dec rcx
ebe7                 ; jmp look
                     ; found:
48c7431801000000     ; mov qword ptr [rbx + 24], 1
f049ff4510           ; lock inc qword ptr [r13 + 16]
488b3b               ; mov rdi, [rbx]
488b7308             ; mov rsi, [rbx + 8]
4829fe               ; sub rsi, rdi
ba03000000           ; mov edx, 3
41ba31400000         ; mov r10d, 0x4031
49c7c0ffffffff       ; mov r8, -1
4531c9               ; xor r9d, r9d
b809000000           ; mov eax, 9
0f05                 ; syscall
483d01f0ffff         ; cmp rax, -4095
721c                 ; jb done
488b7310             ; mov rsi, [rbx + 16]
4889f7               ; mov rdi, rsi
48f7df               ; neg rdi
4c21e7               ; and rdi, r12
b809000000           ; mov eax, 9
0f05                 ; syscall
483d01f0ffff         ; cmp rax, -4095
730d                 ; jae default
                     ; done:
c3                   ; ret
                     ; other:
498b4508             ; mov rax, [r13 + 8]
4883f801             ; cmp rax, 1
7602                 ; jbe default
ffe0                 ; jmp rax
                     ; default:
bf07000000           ; mov edi, 7
498d7520             ; lea rsi, [r13 + 32]
31d2                 ; xor edx, edx
41ba08000000         ; mov r10d, 8
b80d000000           ; mov eax, 13
0f05                 ; syscall
c3                   ; ret
"""
AARCH64: Final = """
49060058             ; ldr x9, data
230840b9             ; ldr w3, [x1, #8]
7f080071             ; cmp w3, #2
61040054             ; b.ne other
2d0840f9             ; ldr x13, [x1, #16]
250140f9             ; ldr x5, [x9]
26010191             ; add x6, x9, #64
                     ; look:
e50300b4             ; cbz x5, other
ca2c40a9             ; ldp x10, x11, [x6]
bf010aeb             ; cmp x13, x10
63000054             ; b.lo next
bf010beb             ; cmp x13, x11
83000054             ; b.lo found
                     ; next:
c6800091             ; add x6, x6, #32
a50400d1             ; sub x5, x5, #1
f8ffff17             ; b look
                     ; found:
2c0080d2             ; mov x12, #1
cc0c00f9             ; str x12, [x6, #24]
2c0940f9             ; ldr x12, [x9, #16]
8c050091             ; add x12, x12, #1
2c0900f9             ; str x12, [x9, #16]
e0030aaa             ; mov x0, x10
61010acb             ; sub x1, x11, x10
620080d2             ; mov x2, #3
230688d2             ; mov x3, #0x4031
04008092             ; mov x4, #-1
050080d2             ; mov x5, #0
c81b80d2             ; mov x8, #222
010000d4             ; svc #0
1ffc3fb1             ; cmn x0, #4095
e3000054             ; b.lo done
c10840f9             ; ldr x1, [x6, #16]
e00301cb             ; neg x0, x1
00000d8a             ; and x0, x0, x13
010000d4             ; svc #0
1ffc3fb1             ; cmn x0, #4095
c2000054             ; b.hs default
                     ; done:
c0035fd6             ; ret
                     ; other:
230540f9             ; ldr x3, [x9, #8]
7f0400f1             ; cmp x3, #1
49000054             ; b.ls default
60001fd6             ; br x3
                     ; default:
e00080d2             ; mov x0, #7
21810091             ; add x1, x9, #32
020080d2             ; mov x2, #0
030180d2             ; mov x3, #8
c81080d2             ; mov x8, #134
010000d4             ; svc #0
c0035fd6             ; ret
1f2003d5             ; nop
"""


def _code(listing: str) -> bytes:
    return bytes.fromhex("".join(line.partition(";")[0] for line in listing.splitlines()))


def handler(machine: str, table: int) -> bytes | None:
    """The handler for a processor, named as by uname(2), with its table at this address; None if there is
    none."""
    data = table.to_bytes(8, "little")
    if machine == "x86_64":
        code = _code(X86_64)
        return code[:2] + data + code[2:]
    if machine in ("aarch64", "arm64"):
        return _code(AARCH64) + data
    return None


class Guard:
    """The handler, installed for the life of this process, and its table. Raises OSError if that cannot be."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 8 * (_ENTRIES + _WORDS * CAPACITY), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._words = memoryview(self._memory).cast("Q")
        machine = os.uname().machine
        code = handler(machine, address_of(self._memory))
        if code is None:
            raise OSError(errno.ENOSYS, f"there is no handler for {machine}")
        self._free = list(range(CAPACITY))[::-1]
        self._words[_OLD] = _install(_executable(code))

    @property
    def faults(self) -> int:
        """How often the handler has put something in the place of a mapping."""
        return int(self._words[_FAULTS])

    def protect(self, owner: Owner, page: int) -> int:
        """Guard a mapping until its owner is collected; returns its entry. `page` is the size of its pages if they are
        huge ones. Raises OSError(ENOSPC) above CAPACITY."""
        if not self._free:
            raise OSError(errno.ENOSPC, f"more than {CAPACITY} mappings of files that can shrink")
        entry = self._free.pop()
        at, start, end = _ENTRIES + _WORDS * entry, address_of(owner), address_of(owner) + len(owner)
        if page & (page - 1) or (start | end) % page:
            page = mmap.PAGESIZE  # no huge pages, whatever the file system says
        for index, word in enumerate((start, end, page, 0)):
            self._words[at + index] = word
        self._words[0] = max(self._words[0], entry + 1)
        weakref.finalize(owner, self._release, entry).atexit = False
        return entry

    def has_faulted(self, entry: int) -> bool:
        """Whether there was a fault in the mapping of this entry."""
        return bool(self._words[_ENTRIES + _WORDS * entry + 3])

    def _release(self, entry: int) -> None:
        at = _ENTRIES + _WORDS * entry
        for index in range(_WORDS):
            self._words[at + index] = 0
        self._free.append(entry)


_guards: list[Guard | None] = []


def guard() -> Guard | None:
    """The process's guard, installed by the first call; None where it cannot be, which is logged once."""
    if not _guards:
        try:
            _guards.append(Guard())
        except OSError as error:
            log.warning("a client that truncates the guest's memory would end this process: %s", error)
            _guards.append(None)
    return _guards[0]


class _Sigaction(ctypes.Structure):
    """struct sigaction of glibc and musl, on processors of 64 bits."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_byte * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


def _install(address: int) -> int:
    """Make the code there the handler of SIGBUS; returns the one that was it before."""
    new, old = _Sigaction(handler=address, flags=_SA_SIGINFO), _Sigaction()
    libc: Any = ctypes.CDLL(None, use_errno=True)
    if libc.sigaction(_SIGBUS, ctypes.byref(new), ctypes.byref(old)):
        code = ctypes.get_errno()
        raise OSError(code, f"sigaction: {os.strerror(code)}")
    return old.handler or 0


def _executable(code: bytes) -> int:
    """The address of memory with this code in it, which stays and is never writable and executable at a time. Raises
    OSError."""
    for flags in (_MFD_EXEC, 0):
        try:
            fd = os.memfd_create("usbvfiod-sigbus", os.MFD_CLOEXEC | flags)
        except OSError as error:
            if flags and error.errno == errno.EINVAL:
                continue  # a kernel before 6.3 does not know the flag
            raise
        try:
            os.write(fd, code)
            address: int = libc_mmap(None, len(code), mmap.PROT_READ | mmap.PROT_EXEC, mmap.MAP_PRIVATE, fd, 0)
            if address == FAILED:
                raise OSError(ctypes.get_errno(), f"mmap: {os.strerror(ctypes.get_errno())}")
            return address
        finally:
            os.close(fd)
    raise AssertionError
