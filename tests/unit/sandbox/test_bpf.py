"""What the filter decides, by value, for both machines."""

from __future__ import annotations

import os
import socket

import pytest

from tests.unit.sandbox.bpf_machine import decide
from usbvfiod_core.sandbox import bpf
from usbvfiod_core.sandbox.bpf import ALLOW, ENOSYS, EPERM, ERRNO, KILL, Filter, assembled, program, without_clone3
from usbvfiod_core.sandbox.calls import AUDIT_ARCH, numbers
from usbvfiod_core.sandbox.defaults import DEFAULT_CALLS
from usbvfiod_core.sandbox.needs import Needs
from usbvfiod_core.sandbox.stages import filter_of

REFUSED = ERRNO | EPERM
CONDITIONS = {"ioctl", "socket", "clone", "clone3", "prctl", "prlimit64", "tgkill", "fcntl"}

machines = pytest.mark.parametrize("machine", AUDIT_ARCH)


class Asked:
    """A filter that is asked by name."""

    def __init__(self, machine: str, wanted: Filter) -> None:
        self.machine = machine
        self.program = program(wanted, machine)

    def __call__(self, name: str, *arguments: int) -> int:
        return decide(self.program, AUDIT_ARCH[self.machine], numbers(self.machine)[name], *arguments)


@machines
def test_every_call_is_allowed_or_refused_as_the_set_says(machine: str) -> None:
    ask = Asked(machine, filter_of(Needs()))
    for name in numbers(machine).keys() - CONDITIONS:
        assert ask(name) == (ALLOW if name in DEFAULT_CALLS else REFUSED), name


@machines
def test_any_set_is_found_by_the_search(machine: str) -> None:
    table = numbers(machine)
    for step in (1, 2, 3, 7, 50):
        chosen = frozenset(sorted(table)[::step]) - CONDITIONS
        ask = Asked(machine, Filter(chosen))
        assert {name for name in table.keys() - CONDITIONS if ask(name) == ALLOW} == chosen


@machines
def test_what_nobody_knows_is_refused(machine: str) -> None:
    made = program(filter_of(Needs()), machine)
    for number in (470, 1000, 0x3FFF_FFFF, -1):
        assert decide(made, AUDIT_ARCH[machine], number) == REFUSED


@machines
def test_execution_tracing_and_looking_into_others_are_in_no_default(machine: str) -> None:
    ask = Asked(machine, filter_of(Needs()))
    wrong = "execve execveat ptrace process_vm_readv process_vm_writev kill pidfd_open pidfd_getfd mount umount2 "
    wrong += "setns unshare bpf perf_event_open userfaultfd keyctl init_module io_uring_setup setuid capset seccomp"
    for name in wrong.split():
        assert ask(name) == REFUSED, name


@machines
def test_another_architecture_is_the_end(machine: str) -> None:
    [other] = AUDIT_ARCH.keys() - {machine}
    made = program(filter_of(Needs()), machine)
    assert decide(made, AUDIT_ARCH[other], numbers(machine)["read"]) == KILL
    assert decide(made, 0x40000003, 3) == KILL  # i386


def test_x32_has_no_way_past_the_numbers() -> None:
    made = program(filter_of(Needs()), "x86_64")
    assert decide(made, AUDIT_ARCH["x86_64"], 0x40000000 | numbers("x86_64")["read"]) == REFUSED


@machines
def test_ioctls_are_by_number_or_by_type(machine: str) -> None:
    ask = Asked(machine, filter_of(Needs(ioctls=frozenset({0x400454CA}), ioctl_types=frozenset("U"))))
    assert ask("ioctl", 5, 0x8038550A) == ALLOW  # USBDEVFS_SUBMITURB
    assert ask("ioctl", 5, 0x400454CA) == ALLOW
    assert ask("ioctl", 5, 0x5401) == ALLOW  # of every server
    assert ask("ioctl", 5, 0x5412) == REFUSED  # TIOCSTI, which types for somebody else
    assert ask("ioctl", 5, 0x541C) == REFUSED  # TIOCLINUX
    assert ask("ioctl", 5, 0x400454CB) == REFUSED
    # The kernel takes 32 bits of the request: what stands above does not hide another one.
    assert ask("ioctl", 5, 0x1_0000_5412) == REFUSED
    assert ask("ioctl", 5, 0xFFFF_FFFF_8038_550A) == ALLOW


@machines
def test_sockets_are_by_family_and_streams_only_of_the_internet(machine: str) -> None:
    plain = Asked(machine, filter_of(Needs()))
    assert plain("socket", socket.AF_UNIX, socket.SOCK_DGRAM) == ALLOW
    assert plain("socket", socket.AF_INET, socket.SOCK_STREAM) == REFUSED
    assert plain("socket", 16, socket.SOCK_RAW) == REFUSED
    ask = Asked(machine, filter_of(Needs(sockets=frozenset({"netlink", "inet"}))))
    assert ask("socket", 16, socket.SOCK_RAW) == ALLOW
    assert ask("socket", socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) == ALLOW
    assert ask("socket", socket.AF_INET, socket.SOCK_DGRAM) == REFUSED
    assert ask("socket", socket.AF_INET6, socket.SOCK_STREAM) == REFUSED
    assert ask("socket", 17, socket.SOCK_RAW) == REFUSED  # packets


@machines
def test_threads_can_be_started_and_processes_cannot(machine: str) -> None:
    ask = Asked(machine, filter_of(Needs()))
    of_a_thread = 0x3D0F00  # as glibc has it
    assert ask("clone", of_a_thread) == ALLOW
    assert ask("clone", of_a_thread & ~bpf.CLONE_THREAD) == REFUSED
    assert ask("clone", 17) == REFUSED
    assert decide(without_clone3(machine), AUDIT_ARCH[machine], numbers(machine)["clone3"]) == ERRNO | ENOSYS
    assert decide(without_clone3(machine), AUDIT_ARCH[machine], numbers(machine)["clone"]) == ALLOW
    without = Asked(machine, Filter(DEFAULT_CALLS, threads=False))
    assert {without("clone", of_a_thread), without("clone3")} == {REFUSED}


@machines
def test_a_thread_has_a_name_and_limits_are_asked_for_but_not_set(machine: str) -> None:
    ask = Asked(machine, filter_of(Needs()))
    assert ask("prctl", 15) == ALLOW
    assert ask("prctl", 4, 1) == REFUSED  # PR_SET_DUMPABLE
    assert ask("prlimit64", 0, 7, 0, 1 << 40) == ALLOW
    assert ask("prlimit64", 0, 7, 1 << 40) == REFUSED
    assert ask("prlimit64", 0, 7, 1) == REFUSED
    assert ask("prlimit64", os.getpid(), 7, 0, 1) == REFUSED


@machines
def test_signals_reach_this_process_only(machine: str) -> None:
    """Landlock keeps them in from ABI 6 on only; here on every kernel."""
    ask = Asked(machine, filter_of(Needs()))
    own = os.getpid()
    assert ask("tgkill", own, own + 1, 6) == ALLOW
    for other in (0, 1, own + 1, -1):
        assert ask("tgkill", other, own, 6) == REFUSED
    for command in (8, 10, 15):  # F_SETOWN, F_SETSIG, F_SETOWN_EX
        assert ask("fcntl", 3, command, own) == REFUSED
        assert ask("fcntl", 3, 1 << 32 | command, own) == REFUSED
    for command in (1, 2, 3, 4, 6, 37, 1030, 1033):  # flags, locks, copies and seals
        assert ask("fcntl", 3, command) == ALLOW
    assert Asked(machine, Filter(DEFAULT_CALLS))("tgkill", 0, 0, 9) == REFUSED


@machines
def test_kill_is_instead_of_a_refusal(machine: str) -> None:
    ask = Asked(machine, filter_of(Needs(), kill=True))
    assert ask("execve") == KILL
    assert ask("ioctl", 1, 0x5412) == KILL
    assert ask("read") == ALLOW


@machines
def test_what_parts_need_is_added(machine: str) -> None:
    needs = Needs(frozenset({"mlock"})) | Needs(frozenset({"sync"}), sockets=frozenset({"netlink"}))
    ask = Asked(machine, filter_of(needs))
    assert {ask("mlock"), ask("sync"), ask("socket", 16)} == {ALLOW}
    assert ask("mlockall") == REFUSED


@machines
def test_the_hottest_calls_are_decided_first_and_all_soon(machine: str) -> None:
    made = program(filter_of(Needs(ioctl_types=frozenset("U"))), machine)
    assert len(made) < 1000  # of the 4096 that the kernel takes
    assert len(assembled(made)) == 8 * len(made)
    for name in ("recvmsg", "sendmsg", "ioctl"):
        assert _steps(made, machine, name) <= 45
    assert max(_steps(made, machine, name) for name in numbers(machine)) <= 100


def _steps(made: list[bpf.Instruction], machine: str, name: str) -> int:
    """Instructions until it is decided."""

    class Counted(list[bpf.Instruction]):
        steps = 0

        def __getitem__(self, index):  # type: ignore[no-untyped-def]
            Counted.steps += 1
            return super().__getitem__(index)

    decide(Counted(made), AUDIT_ARCH[machine], numbers(machine)[name], 1, 0x5500)
    return Counted.steps
