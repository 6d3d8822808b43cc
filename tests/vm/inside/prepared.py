"""In the lab: programs that have been imported, usbvfiod first of all. For each request that comes through a FIFO a
copy of a process becomes one that has just been started: an emulated processor imports for seconds.

A request is a line of JSON: the `module` and its `arguments`; the `environment`, or null for this process's; the
`directory`; the paths of three `files` for standard input, output and error; and the path to which `answers` go: the
new process's number, then, when it has ended, its exit status as `subprocess` has it, a line each. Whoever asks waits
for the number before it closes what it has named. What else a process gets from its parent (user, limits, session) is
what this one has.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import signal
import sys
from collections.abc import Callable
from typing import Any

COMMANDS = ("usbvfiod_core.cli", "usbvfiod_core.cli.command")
SERVERS = (
    "usbvfiod_core.cli",
    "usbvfiod_core.daemon.server",
    "usbvfiod_core.daemon.witness",
    "usbvfiod_core.sandbox.stages",
)
"""What every one imports, beside the plugins."""
PROGRAMS = ("tests.lab.offers", "tests.lab.exporting", "tests.lab.stock_redirect")
"""What makes devices and gives them away."""


def main(commands: str, servers: str, programs: str) -> None:
    """Become what is asked for at each FIFO, by copies of three processes, which go on for ever."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for copies
    gc.disable()  # as usbvfiod does
    if os.fork() == 0:
        become(next_request(servers, prepare_server))
    elif os.fork() == 0:
        become(next_request(programs, prepare_programs))
    else:
        become(next_request(commands, prepare_command))


def prepare_command() -> None:
    """Import what every command imports, with all plugins (tests/e2e/test_prepared.py holds it)."""
    _prepare(*COMMANDS)


def prepare_server() -> None:
    """Import what every server imports, likewise."""
    _prepare(*SERVERS)


def _prepare(*modules: str) -> None:
    for name in modules:
        importlib.import_module(name)
    importlib.import_module("usbvfiod_core.hooks.registry").Registry().discover()


def prepare_programs() -> None:
    """Import what those programs import."""
    for name in PROGRAMS:
        importlib.import_module(name)
        del sys.modules[name]  # it is run as the program
    gc.enable()


def next_request(fifo: str, prepare: Callable[[], None]) -> dict[str, Any]:
    """Returns in a copy of this process, for each request. It prepares when the first one is there."""
    with open(fifo, "r+b", buffering=0) as requests:
        line = requests.readline()
        prepare()
        while os.fork() != 0:
            line = requests.readline()
    request: dict[str, Any] = json.loads(line)
    return request


def become(request: dict[str, Any]) -> None:
    """In a copy of this copy, be the process that is asked for; tell the one who has asked about it meanwhile."""
    if (environment := request["environment"]) is not None:
        if _of_python(environment) != _of_python(os.environ):
            raise ValueError(f"Python would start differently with {_of_python(environment)}")
        os.environ.clear()
        os.environ.update(environment)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    modes = (os.O_RDONLY, os.O_WRONLY | os.O_APPEND, os.O_WRONLY | os.O_APPEND)
    files = [os.open(path, mode) for path, mode in zip(request["files"], modes, strict=True)]
    child = os.fork()
    if child != 0:
        with open(request["answers"], "wb", buffering=0) as answers:
            answers.write(b"%d\n" % child)
            answers.write(b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        os._exit(0)
    for number, file in enumerate(files):
        os.dup2(file, number)
    os.closerange(3, max(files) + 1)
    os.chdir(request["directory"])
    module, arguments = request["module"], request["arguments"]
    sys.argv[1:] = arguments
    sys.orig_argv[1:] = ["-P", "-m", module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _of_python(environment: Any) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith("PYTHON")}


if __name__ == "__main__":
    main(*sys.argv[1:])
