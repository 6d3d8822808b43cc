"""Socket paths and descriptors that are handed down: what is taken, and a clear error for what is not."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from tests.protocol.fakes import DEADLINE, Serving
from tests.protocol.raw import RawClient, hello, open_fds
from usbvfiod_core.errors import ConfigError
from usbvfiod_core.testing.limits import PATIENCE, eventually
from usbvfiod_core.vfio_user import wire


class TestPath:
    def test_is_a_socket_for_us_alone_and_is_removed(self, path: str) -> None:
        old = os.umask(0)
        try:
            serving = Serving(path=path)
        finally:
            os.umask(old)
        mode = os.stat(path).st_mode
        serving.close()
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600
        assert not os.path.lexists(path)

    def test_stale_is_replaced(self, path: str) -> None:
        with socket.socket(socket.AF_UNIX) as old:
            old.bind(path)
        serving = Serving(path=path)
        with RawClient(path) as client:
            assert client.alive()
        serving.close()

    def test_stale_and_once_listening_is_replaced(self, path: str) -> None:
        with socket.socket(socket.AF_UNIX) as old:
            old.bind(path)
            old.listen()
        Serving(path=path).close()

    def test_of_a_running_server_is_refused(self, serving: Serving, path: str) -> None:
        with pytest.raises(ConfigError, match="in use by a running server"):
            Serving(path=path)
        with RawClient(path) as client:
            with pytest.raises(ConfigError, match="in use by a running server"):
                Serving(path=path)
            assert client.alive()

    def test_of_a_server_with_a_full_backlog_is_refused(self, path: str) -> None:
        with socket.socket(socket.AF_UNIX) as other, socket.socket(socket.AF_UNIX) as waiting:
            other.bind(path)
            other.listen(0)
            waiting.connect(path)
            with pytest.raises(ConfigError, match="in use by a running server"):
                Serving(path=path)
            assert os.path.lexists(path)

    def test_of_another_kind_of_socket_is_refused(self, path: str) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
            other.bind(path)
            with pytest.raises(ConfigError, match="cannot be replaced"):
                Serving(path=path)
            assert os.path.lexists(path)

    @pytest.mark.parametrize("kind", ["file", "directory", "fifo", "link to a file"])
    def test_that_is_no_socket_is_refused_and_kept(self, path: str, kind: str, tmp_path: Path) -> None:
        if kind == "file":
            Path(path).write_text("precious")
        elif kind == "directory":
            os.mkdir(path)
        elif kind == "fifo":
            os.mkfifo(path)
        else:
            (tmp_path / "precious").write_text("precious")
            os.symlink(tmp_path / "precious", path)
        with pytest.raises(ConfigError, match="is not a socket"):
            Serving(path=path)
        assert os.path.lexists(path)

    def test_in_a_directory_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"directory .*/missing does not exist"):
            Serving(path=str(tmp_path / "missing" / "s"))

    def test_below_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(ConfigError, match="Not a directory"):
            Serving(path=str(tmp_path / "file" / "s"))

    @pytest.mark.parametrize("length", [0, 108, 5000])
    def test_of_a_length_that_no_socket_can_have(self, length: int) -> None:
        with pytest.raises(ConfigError, match=f"is {length} bytes long"):
            Serving(path=("/" * length)[:length])

    def test_of_the_greatest_length(self, tmp_path: Path) -> None:
        path = str(tmp_path / "s").ljust(107, "s")
        serving = Serving(path=path)
        with RawClient(path) as client:
            assert client.alive()
        serving.close()

    def test_with_a_nul(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="NUL"):
            Serving(path=f"{tmp_path}/a\0b")

    def test_that_somebody_else_has_taken_is_not_removed(self, path: str) -> None:
        serving = Serving(path=path)
        os.unlink(path)
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(path)
            serving.close()
            assert os.path.lexists(path)

    def test_that_somebody_has_removed(self, path: str) -> None:
        serving = Serving(path=path)
        os.unlink(path)
        serving.close()


class TestDescriptor:
    def test_listening(self, path: str) -> None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()
        serving = Serving(fd=listener.detach())
        for _ in range(2):
            with RawClient(path) as client:
                assert client.alive()
        assert not serving.closed.is_set()
        serving.close()
        assert os.path.lexists(path)  # not ours

    def test_connected(self, memfd: int) -> None:
        ours, theirs = socket.socketpair()
        serving = Serving(fd=ours.detach())
        serving.pass_time(2 * DEADLINE)
        assert not serving.closed.is_set()  # nobody needs to have said anything yet
        with RawClient.of(theirs) as client:
            assert client.ask(hello()).command == wire.VERSION
            assert client.alive()
            assert not serving.closed.is_set()
        assert serving.closed.wait(PATIENCE)
        assert serving.server.client is None
        assert serving.controller.resets == 1
        serving.close()

    def test_connected_and_closed_by_us(self) -> None:
        ours, theirs = socket.socketpair()
        serving = Serving(fd=ours.detach())
        with RawClient.of(theirs) as client:
            client.ask(hello())
            serving.close()
            assert client.ended()
        assert not serving.closed.is_set()

    def test_is_not_inherited_by_children(self, path: str) -> None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()
        listener.set_inheritable(True)
        fd = listener.detach()
        serving = Serving(fd=fd)
        inheritable = os.get_inheritable(fd)
        serving.close()
        assert not inheritable

    @pytest.mark.parametrize(
        ("family", "kind", "error"),
        [
            (socket.AF_UNIX, socket.SOCK_STREAM, "neither listens nor is connected"),
            (socket.AF_UNIX, socket.SOCK_SEQPACKET, "not a Unix stream socket"),
            (socket.AF_UNIX, socket.SOCK_DGRAM, "not a Unix stream socket"),
            (socket.AF_INET, socket.SOCK_STREAM, "not a Unix stream socket"),
        ],
    )
    def test_of_another_socket(self, family: socket.AddressFamily, kind: socket.SocketKind, error: str) -> None:
        with socket.socket(family, kind) as sock:
            with pytest.raises(ConfigError, match=error):
                Serving(fd=sock.fileno())
            assert sock.fileno() >= 0
            os.fstat(sock.fileno())  # still open, still the caller's

    def test_of_no_socket(self, memfd: int) -> None:
        with pytest.raises(ConfigError, match="is not a socket"):
            Serving(fd=memfd)

    @pytest.mark.parametrize("fd", [-1, 99999])
    def test_that_is_not_open(self, fd: int) -> None:
        with pytest.raises(ConfigError, match="cannot be used"):
            Serving(fd=fd)


def test_either_a_path_or_a_descriptor(path: str) -> None:
    with pytest.raises(ConfigError, match="either a socket path or a file descriptor"):
        Serving()
    with pytest.raises(ConfigError, match="either a socket path or a file descriptor"):
        Serving(path=path, fd=0)


def test_nothing_is_left_of_a_server_that_could_not_start(tmp_path: Path) -> None:
    before = open_fds()
    for _ in range(20):
        with pytest.raises(ConfigError):
            Serving(path=str(tmp_path / "missing" / "s"))
    assert eventually(lambda: open_fds() == before)
