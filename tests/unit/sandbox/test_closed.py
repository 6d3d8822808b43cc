"""A process that has closed its sandbox, really: what it can do still, and what not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from usbvfiod_core.sandbox import landlock, seccomp
from usbvfiod_core.testing.limits import PATIENCE

pytestmark = pytest.mark.skipif(not landlock.abi() or bool(seccomp.missing()), reason="the kernel cannot confine here")

CLOSED = """
import ctypes, errno, os, resource, socket, sys, threading
from pathlib import Path
from usbvfiod_core.sandbox import stages
from usbvfiod_core.sandbox.needs import Needs

def refused(action, *arguments):
    try:
        action(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"
"""


def run(text: str, *, kill: bool = False, needs: str = "") -> subprocess.CompletedProcess[str]:
    """Run `text` behind a closed sandbox."""
    close = f"confined = stages.close(Needs({needs}), kill={kill})\n"
    command = [sys.executable, "-c", CLOSED + close + textwrap.dedent(text)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)


def answers(text: str, *, needs: str = "") -> list[str]:
    """What it prints, line by line."""
    done = run(text, needs=needs)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_files_are_those_that_were_given(tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    (tmp_path / "other").touch()
    script = f"""
        print(refused(open, {str(tmp_path / "given" / "new")!r}, "w"))
        print(refused(open, {str(tmp_path / "other")!r}))
        print(refused(open, "/proc/version"))
        print(refused(os.listdir, {str(tmp_path)!r}))
        print(refused(os.truncate, {str(tmp_path / "other")!r}, 0))
        print(refused(os.unlink, {str(tmp_path / "other")!r}))
        os.stat("/proc/version")
    """
    needs = f"write=frozenset({{Path({str(tmp_path / 'given')!r})}})"
    assert answers(script, needs=needs) == ["done", "EACCES", "EACCES", "EACCES", "EPERM", "EACCES"]


def test_nothing_is_executed_traced_signalled_or_connected() -> None:
    script = f"""
        libc = ctypes.CDLL(None, use_errno=True)
        print(refused(os.execv, "/bin/true", ["true"]), refused(os.fork))
        print(refused(os.posix_spawn, "/bin/true", ["true"], {{}}))
        print(libc.ptrace(16, {os.getpid()}, 0, 0), errno.errorcode[ctypes.get_errno()])
        print(refused(os.kill, {os.getpid()}, 0))
        print(refused(socket.socket, socket.AF_INET), refused(socket.socket, socket.AF_NETLINK, socket.SOCK_RAW))
        print(refused(socket.socket, socket.AF_UNIX))
        print(refused(os.memfd_create, "x"))
    """
    assert answers(script) == [*["EPERM"] * 3, "-1", *["EPERM"] * 4, "done", "done"]


def test_no_other_process_is_signalled_where_landlock_is_not_there_for_that() -> None:
    """With the filter alone: a signal that came through would be the victim's exit code."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as victim:
        script = f"""
            import fcntl, signal
            from usbvfiod_core.sandbox import bpf, privileges, seccomp
            privileges.no_new_privileges()
            seccomp.install(bpf.program(stages.filter_of(Needs()), seccomp.machine()))
            libc = ctypes.CDLL(None, use_errno=True)
            tgkill = bpf.numbers(seccomp.machine())["tgkill"]
            print(libc.syscall(tgkill, {victim.pid}, {victim.pid}, 9), errno.errorcode[ctypes.get_errno()])
            reading, writing = os.pipe()
            print(refused(fcntl.fcntl, reading, fcntl.F_SETSIG, 9))
            print(refused(fcntl.fcntl, reading, fcntl.F_SETOWN, {victim.pid}))
            fcntl.fcntl(reading, fcntl.F_SETFL, fcntl.fcntl(reading, fcntl.F_GETFL) | os.O_ASYNC)
            os.write(writing, b"x")
            signal.pthread_kill(threading.get_ident(), 0)  # of its own
        """
        done = subprocess.run(
            [sys.executable, "-c", CLOSED + textwrap.dedent(script)], capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == ["-1", *["EPERM"] * 3]
        assert victim.stdin is not None
        victim.stdin.close()
        assert victim.wait(PATIENCE) == 0


def test_only_the_ports_that_were_given_are_connected() -> None:
    script = """
        def connect(port):
            with socket.socket() as sock:
                sock.connect(("127.0.0.1", port))

        print(refused(connect, 1), refused(connect, 2), refused(socket.socket, socket.AF_INET, socket.SOCK_DGRAM))
    """
    wanted = "ECONNREFUSED" if landlock.abi() < 4 else "EACCES"
    given = 'sockets=frozenset({"inet"}), connect=frozenset({1})'
    assert answers(script, needs=given) == ["ECONNREFUSED", wanted, "EPERM"]


def test_threads_work_and_are_as_confined() -> None:
    script = """
        found = []

        def look():
            found.append((refused(open, "/proc/version"), refused(os.fork)))

        threads = [threading.Thread(target=look) for _ in range(3)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        print(len(found), *set(found).pop(), len(set(found)))
    """
    assert answers(script) == ["3", "EACCES", "EPERM", "1"]


def test_modules_are_found_later_and_none_is_written() -> None:
    script = """
        before = set(sys.modules)
        import xml.dom.minidom, encodings.idna, sqlite3, usbvfiod_core.virtual
        print(len(set(sys.modules) - before) > 20)
        print(refused(open, Path(usbvfiod_core.__file__), "a"))
    """
    assert answers(script) == ["True", "EACCES"]


def test_rights_and_limits_are_given_up_for_good() -> None:
    script = """
        status = dict(line.split(":", 1) for line in open("/proc/self/status"))
        print(*(int(status[each], 16) for each in ("CapEff", "CapPrm", "CapInh", "CapAmb")))
        print(status["NoNewPrivs"].strip(), status["Seccomp"].strip())
        print(resource.getrlimit(resource.RLIMIT_DATA)[1] <= 4 << 30, resource.getrlimit(resource.RLIMIT_CORE))
        try:
            room = bytearray(5 << 30)
        except MemoryError:
            print("full")
    """
    assert answers(script)[:6] == ["0", "0", "0", "0", "1", "2"]
    assert answers(script)[-4:] == ["True", "(0,", "0)", "full"]


def test_what_is_refused_ends_the_process_where_that_is_wanted() -> None:
    done = run("os.fork()", kill=True)
    assert done.returncode == -signal.SIGSYS
    assert run("print(1)", kill=True).stdout == "1\n"


def test_a_thread_from_before_keeps_what_is_of_threads_open_and_that_is_said() -> None:
    script = """
        print(*confined.missing)
        print(refused(open, "/proc/version"), refused(os.fork))
    """
    early = "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    close = early + "confined = stages.close(Needs())\n"
    command = [sys.executable, "-c", CLOSED + close + textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout.splitlines() == [
        "landlock and capabilities (1 thread that a plugin has started before)",
        "done EPERM",
    ]
