"""The ways to the other end, over loopback."""

from __future__ import annotations

import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.remote.slow_link import Clock
from tests.unit.remote.tls_peer import TlsPeer, certificates
from usbvfiod_core import ConfigError, DeviceAway, DeviceError
from usbvfiod_core.options import Schema
from usbvfiod_core.remote import Link, LinkLost, Patience, Place, RemoteOptions, connect, connecting
from usbvfiod_core.remote.link import half_open
from usbvfiod_core.testing.limits import PATIENCE, wait_until

__all__ = ["certificates"]


def options(**given: Any) -> RemoteOptions:
    return RemoteOptions(**{"timeout": 20, **given})


def patience() -> Patience:
    return Patience(PATIENCE)


@pytest.fixture(params=["127.0.0.1", "::1"])
def listener(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    with socket.socket(family) as listener:
        try:
            listener.bind((request.param, 0))
        except OSError as error:
            pytest.skip(f"no {request.param} here: {error}")
        listener.listen()
        listener.settimeout(PATIENCE)
        yield listener


def place_of(listener: socket.socket) -> Place:
    return Place(*listener.getsockname()[:2])


@pytest.mark.parametrize(
    ("family", "far", "origin"),
    [
        (socket.AF_INET, "192.0.2.7", bytes([192, 0, 2, 7])),
        (socket.AF_INET6, "::ffff:192.0.2.7", bytes([192, 0, 2, 7])),
        (socket.AF_INET6, "2001:db8:1:2:3:4:5:6", bytes.fromhex("20010db800010002")),
        (socket.AF_INET6, "fe80::1%eth0", bytes.fromhex("fe80000000000000")),
    ],
)
def test_the_origin_of_a_client_is_what_it_cannot_choose(family: int, far: str, origin: bytes) -> None:
    with socket.socket(family) as stream:
        link = Link(stream)
        link._ends = (("", 0), (far, 4000))
        assert link.origin == origin


def test_a_way_within_this_host_has_no_origin() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert Link(ours).origin == b""


def check(link: Link, peer: socket.socket) -> None:
    """Both ways, and the end."""
    peer.settimeout(PATIENCE)
    link.send_all(b"hello", patience())
    assert peer.recv(5, socket.MSG_WAITALL if not isinstance(peer, ssl.SSLSocket) else 0) == b"hello"
    peer.sendall(b"good day")
    assert link.receive_exactly(8, patience()) == b"good day"
    peer.close()
    with pytest.raises(LinkLost):
        link.receive_exactly(1, patience())
    link.close()


TCP_REPAIR = 19
"""With it Linux ends a connection of whoever may manage the network without a word to the other end (tcp(7))."""


def vanish(link: Link) -> None:
    """End a link as if the network had gone: nobody hears of it."""
    stream = socket.socket(fileno=os.dup(link.fileno()))
    with stream:
        try:
            stream.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
        except PermissionError:
            pytest.skip("only whoever may manage the network can end a connection silently")
    link.silent = True
    link.close()


def test_the_other_end_forgets_a_connection_that_the_network_has_ended(listener: socket.socket) -> None:
    place = place_of(listener)
    first, second = (connect(place, options()) for _ in range(2))
    stale = [listener.accept()[0] for _ in range(2)]
    for link in (first, second):
        vanish(link)
    for peer in stale:
        peer.setblocking(False)
        with pytest.raises(BlockingIOError):
            peer.recv(1)
    for peer in stale:
        link = connect(place, options())
        check(link, listener.accept()[0])
        with pytest.raises(ConnectionResetError):
            peer.recv(1)
        peer.close()
    link = connect(place, options())  # from any port again
    check(link, listener.accept()[0])


def test_the_port_of_a_connection_that_was_given_up_is_free_at_once(listener: socket.socket) -> None:
    place = place_of(listener)
    seen = []
    for _ in range(3):
        link = connect(place, options())
        peer, remote = listener.accept()
        seen.append(remote[1])
        link.silent = True
        link.close()
        with pytest.raises(ConnectionResetError):
            peer.recv(1)
        peer.close()
    assert len(set(seen)) == 1


def test_a_connection_that_has_not_ended_here_is_in_nobodys_way(listener: socket.socket) -> None:
    place = place_of(listener)
    links = [connect(place, options()) for _ in range(2)]
    peers = [listener.accept()[0] for _ in range(2)]
    inherited = socket.socket(fileno=os.dup(links[0].fileno()))  # as by a process that is being started
    links[0].silent = True
    links[0].close()
    links.append(connect(place, options()))
    peers.append(listener.accept()[0])
    for link, peer in zip(links[1:], peers[1:], strict=True):
        check(link, peer)
    peers[0].close()
    inherited.close()


def test_tcp(listener: socket.socket) -> None:
    link = connect(place_of(listener), options(timeout=8))
    peer = listener.accept()[0]
    with socket.socket(fileno=socket.dup(link.fileno())) as seen:
        assert seen.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 8000
        idle, every, count = (
            seen.getsockopt(socket.IPPROTO_TCP, option)
            for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        )
        assert idle + every * count <= 8
        assert seen.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    check(link, peer)


def test_a_unix_socket(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        link = connect(Place("server", 1), options(unix=tmp_path / "s"))
        check(link, listener.accept()[0])


def test_a_command(tmp_path: Path) -> None:
    link = connect(Place("server", 1), options(command="cat"))
    link.send_all(b"hello", patience())
    assert link.receive_exactly(5, patience()) == b"hello"
    child = link._child
    assert child is not None
    link.close()
    assert child.returncode is not None


def test_a_command_that_ends() -> None:
    link = connect(Place("server", 1), options(command="true"))
    with pytest.raises(LinkLost, match="closed the connection"):
        link.receive_exactly(1, patience())
    link.close()


def test_a_peer_that_says_nothing(listener: socket.socket) -> None:
    link = connect(place_of(listener), options())
    with pytest.raises(LinkLost, match="does not answer"):
        link.receive_exactly(1, Patience(0.05))
    link.close()


def refused(place: Place, **given: Any) -> DeviceError:
    with pytest.raises(DeviceError) as error:
        connect(place, options(**given))
    return error.value


def test_a_slow_resolver_takes_no_time_from_the_other_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, given, find = Clock(), [], socket.getaddrinfo

    def slow(*arguments: Any, **how: Any) -> Any:
        clock.now += 30
        return find(*arguments, **how)

    def given_up(family: int, address: Any, timeout: float) -> socket.socket:
        given.append(timeout)
        raise TimeoutError

    monkeypatch.setattr(connecting, "time", SimpleNamespace(monotonic=clock))
    monkeypatch.setattr(socket, "getaddrinfo", slow)
    monkeypatch.setattr(half_open, "connect", given_up)
    error = refused(Place("127.0.0.1", 3240), timeout=8)
    assert (str(error), given) == ("127.0.0.1:3240 does not answer", [8.0])


def test_nobody_is_there(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = Place("127.0.0.1", free.getsockname()[1])
        error = refused(place)
    assert isinstance(error, DeviceAway)
    assert str(error) == f"{place}: Connection refused"
    error = refused(place, unix=tmp_path / "none")
    assert isinstance(error, DeviceAway)
    assert "none: No such file" in str(error)
    error = refused(place, command="/nowhere/at-all")
    assert isinstance(error, DeviceAway)
    assert "/nowhere/at-all: No such file" in str(error)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"unix": "/s", "command": "cat"}, "two ways"),
        ({"tls-ca": "/ca.pem"}, "needs tls=yes"),
        ({"tls": "yes", "tls-key": "/key.pem"}, "needs tls-cert"),
        ({"timeout": "0"}, "from 1"),
        ({"command": "ssh 'x"}, "No closing quotation"),
        ({"command": " "}, "names no program"),
    ],
)
def test_options_that_do_not_go(given: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Schema(RemoteOptions).from_text(given)


# -- TLS -----------------------------------------------------------------------------------------------------------


def test_tls_with_both_certificates(listener: socket.socket, certificates: Callable[[str], Path]) -> None:
    server, client = certificates("server.test"), certificates("client.test")
    peer = TlsPeer(listener, server, client)
    link = connect(place_of(listener), options(tls=True, tls_ca=server, tls_cert=client, tls_name="server.test"))
    stream = peer.join()
    # More than a record: what OpenSSL has decrypted already is not shown by the descriptor.
    stream.sendall(bytes(range(256)) * 4)
    first = memoryview(bytearray(3))
    wait_until(lambda: link.receive([first]), "the first bytes")
    assert (bytes(first), link.pending) == (b"\x00\x01\x02", True)
    assert link.receive_exactly(1021, patience())[-1] == 255
    check(link, stream)


def test_tls_to_somebody_else(listener: socket.socket, certificates: Callable[[str], Path]) -> None:
    peer = TlsPeer(listener, certificates("other.test"), None)
    error = refused(place_of(listener), tls=True, tls_ca=certificates("server.test"), tls_name="server.test")
    assert "its certificate is not accepted" in str(error)
    assert not isinstance(error, DeviceAway)
    assert peer.refused()


def test_tls_with_the_wrong_name(listener: socket.socket, certificates: Callable[[str], Path]) -> None:
    peer = TlsPeer(listener, certificates("server.test"), None)
    error = refused(place_of(listener), tls=True, tls_ca=certificates("server.test"), tls_name="wrong.test")
    assert "its certificate is not accepted" in str(error)
    assert peer.refused()


def test_a_peer_without_tls(listener: socket.socket) -> None:
    def answer() -> None:
        with listener.accept()[0] as stream:
            stream.recv(100)
            stream.sendall(b"usbip says something else" * 10)

    thread = threading.Thread(target=answer)
    thread.start()
    assert "does not speak TLS" in str(refused(place_of(listener), tls=True))
    thread.join(PATIENCE)


def test_a_certificate_that_is_none(listener: socket.socket, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("nothing")
    assert "TLS" in str(refused(place_of(listener), tls=True, tls_ca=tmp_path / "x"))
    assert "No such file" in str(refused(place_of(listener), tls=True, tls_cert=tmp_path / "y"))
