"""Modules that are loaded when they are used, in processes of their own: this one has long imported all of them."""

from __future__ import annotations

import subprocess
import sys

from usbvfiod_core.testing.limits import PATIENCE


def run(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_server_has_tls_only_when_somebody_uses_it() -> None:
    program = """
import sys
import usbvfiod_core.daemon.loop
assert "_ssl" not in sys.modules

import ssl  # as a plugin may
import asyncio
from asyncio import sslproto
assert asyncio.sslproto is sslproto is sys.modules["asyncio.sslproto"]
assert "_ssl" not in sys.modules

context = ssl.create_default_context()
assert "_ssl" in sys.modules
assert type(ssl) is type(sys)
assert issubclass(sslproto.SSLProtocol, asyncio.BufferedProtocol)
try:
    ssl.nothing
except AttributeError:
    print("as ever")
"""
    assert run(program) == "as ever\n"


def test_tls_works_through_asyncio() -> None:
    program = """
import asyncio, socket, ssl
from usbvfiod_core.daemon.loop import ServerLoop

async def greet():
    ours, theirs = socket.socketpair()
    theirs.sendall(b"no TLS at all")
    try:
        await asyncio.open_connection(sock=ours, ssl=ssl.create_default_context(), server_hostname="localhost")
    except ssl.SSLError as error:
        print(error.reason)

loop = ServerLoop()
loop.run_until_complete(greet())
loop.close()
"""
    assert "WRONG_VERSION_NUMBER" in run(program)


def test_what_threads_use_at_once_is_loaded_once() -> None:
    program = """
import sys, threading
from usbvfiod_core.daemon.on_demand import load_on_demand
load_on_demand("decimal")
import decimal
assert type(decimal) is not type(sys)
barrier, found = threading.Barrier(8), []
def use():
    barrier.wait()
    found.append(decimal.Decimal)
threads = [threading.Thread(target=use) for _ in range(8)]
for each in threads: each.start()
for each in threads: each.join()
print(len(found), len(set(found)))
"""
    assert run(program) == "8 1\n"


def test_what_is_not_there_and_what_is_imported_stay_as_they_are() -> None:
    program = """
import json, sys
from usbvfiod_core.daemon.on_demand import load_on_demand
for name in ("json", "no_such_module", "json.no_such_module"):
    load_on_demand(name)
assert type(json) is type(sys)
try:
    import no_such_module
except ModuleNotFoundError as error:
    print(error.name)
"""
    assert run(program) == "no_such_module\n"
