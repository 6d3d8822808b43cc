"""A server that may be killed: `python -m tests.e2e.mortal_server SOCKET FD`. FD is a socket pair to whoever keeps what
it holds, and gives it to the next one: first a message with what the last one has held, then it hears of changes."""

from __future__ import annotations

import json
import os
import socket
import sys
from functools import partial

from usbvfiod_core.daemon.loop import ServerLoop
from usbvfiod_core.daemon.recovered import SERVER, KeptServer, recovered
from usbvfiod_core.serving import ControllerServer
from usbvfiod_core.state import pack
from usbvfiod_core.state_file import StateFile
from usbvfiod_core.vfio_user.transport import TransportState
from usbvfiod_core.virtual.loopback import Loopback

PORT = 9
STATE = "state"


class Told:
    """The keeper is at the other end."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def store(self, name: str, fd: int) -> None:
        socket.send_fds(self._sock, [json.dumps(["store", name]).encode()], [fd])

    def remove(self, name: str) -> None:
        self._sock.send(json.dumps(["remove", name]).encode())


def main(path: str, number: int) -> None:
    sock = socket.socket(fileno=number)
    data, fds, _, _ = socket.recv_fds(sock, 1 << 16, 200)
    held = dict(zip(json.loads(data), fds, strict=True))
    found = None
    if STATE in held:
        found = recovered(StateFile.opened(held.pop(STATE)), held)
    file = StateFile.create()
    loop = ServerLoop()
    server = ControllerServer(loop, path=path, state_file=file, interrupter_page="auto")
    file.keep(SERVER, pack(KeptServer({}, ["intx", "msi", "msix"])))
    if found is not None and found.state.transport.client is not None:
        transport: TransportState = found.state.transport
        server.transport.restore(transport, {name: os.dup(fd) for name, fd in found.transport.items()})
        server.controller.restore(found.state.controller, lambda port_id: None, found.page)
        server.transport.catch_up()
        server.controller.resume()
        server.transport.go_on()
    else:
        server.transport.start()
    keeper = Told(sock)
    file.complete()
    file.attach(keeper)
    keeper.store(STATE, file.fd)
    for fd in held.values():
        os.close(fd)
    loop.call_later(0.05, partial(server.controller.plug, Loopback(loop, pattern=1), PORT))
    loop.run_forever()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
