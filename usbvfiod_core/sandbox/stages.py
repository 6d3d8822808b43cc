"""Closing the sandbox: one stage after the other, and what is missing where the kernel, or a container, has it not.

1. no new privileges, not dumpable, limits of memory and descriptors, capabilities
2. what stays outside is started
3. Landlock: files and TCP ports
4. seccomp: system calls

Capabilities and Landlock are of the thread that calls, and of those that it starts, so they come before any
other thread. The last stage is for all threads, and does away with what closed the others.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final, NamedTuple

from . import landlock, privileges, seccomp
from .bpf import EPERM, ERRNO, KILL, Filter, program, without_clone3
from .defaults import DEFAULT_CALLS, DEFAULT_IOCTLS
from .files import rights
from .needs import CAPABILITIES, FAMILIES, Needs

_CAP_SYS_PTRACE: Final = 19
_CAP_DAC_READ_SEARCH: Final = 2
_STREAMS: Final = ("inet", "inet6")


class Confined(NamedTuple):
    """What holds from now on, and what does not; both for people."""

    stages: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


def filter_of(needs: Needs, *, kill: bool = False) -> Filter:
    """The filter of this process's system calls for what the parts need. `kill` ends the process instead of EPERM."""
    families = needs.sockets | {"unix"}
    return Filter(
        DEFAULT_CALLS | needs.system_calls,
        DEFAULT_IOCTLS | needs.ioctls,
        needs.ioctl_types,
        frozenset(FAMILIES[each] for each in families if each not in _STREAMS),
        frozenset(FAMILIES[each] for each in families if each in _STREAMS),
        process=os.getpid(),
        refusal=KILL if kill else ERRNO | EPERM,
    )


def missing() -> list[str]:
    """The stages that cannot be had here. Changes nothing."""
    found = []
    version, threads = landlock.abi(), _threads()
    if not version:
        found.append("landlock (the kernel, or the container, has none)")
    elif landlock.lacking(version):
        found.append(f"landlock of {' and '.join(landlock.lacking(version))} (the kernel has ABI {version})")
    if threads > 1:
        others = f"{threads - 1} thread{'s' * (threads > 2)} that a plugin has started before"
        found.append(f"landlock and capabilities ({others})")
    reason = seccomp.missing()
    return [*found, f"seccomp ({reason})"] if reason else found


def close(
    needs: Needs, *, kill: bool = False, abstract: bool = False, outside: Callable[[], object] | None = None
) -> Confined:
    """Close the sandbox around this process, as far as it can be. On the main thread, before there are others.

    `outside` starts what has to see other processes, which Landlock keeps from those inside; it keeps CAP_SYS_PTRACE
    and CAP_DAC_READ_SEARCH, without which root does not see what other users have open, if there were any. `abstract`:
    sockets with abstract names are connected, as that of a service manager may be.
    """
    stages: list[str] = []
    lost = missing()
    alone = _threads() <= 1
    version = landlock.abi()
    own = {CAPABILITIES[each] for each in needs.capabilities}

    def stage(name: str, *actions: object) -> None:
        try:
            for action in actions:
                action()  # type: ignore[operator]
        except OSError as error:
            lost.append(f"{name} ({error.strerror or error})")
        else:
            stages.append(name)

    closed = () if kill else (privileges.not_dumpable,)  # tests look into the process
    stage("limits", privileges.no_new_privileges, *closed, privileges.limit)
    if version and alone and outside is not None:
        try:
            privileges.drop_capabilities(own | {_CAP_SYS_PTRACE, _CAP_DAC_READ_SEARCH})
            outside()
        except OSError as error:
            lost.append(f"looking into clients ({error.strerror or error})")
    if alone:
        stage("capabilities", lambda: privileges.drop_capabilities(own))
    if version and alone:
        stage(
            f"landlock (ABI {version})",
            lambda: landlock.restrict(rights(needs), needs.connect, needs.listen, version=version, abstract=abstract),
        )
    if not seccomp.missing():
        instructions = program(filter_of(needs, kill=kill), seccomp.machine())
        quiet = without_clone3(seccomp.machine())
        stage(
            "seccomp" + " (kill)" * kill,
            lambda: seccomp.install(quiet, logged=False),
            lambda: seccomp.install(instructions),
        )
    return Confined(tuple(stages), tuple(lost))


# -- own ---------------------------------------------------------------------------------------------------------------


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))
