"""What a backend of remote devices says where TLS does not come about. A plugin's tests inherit it and write `open`."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.remote.tls_peer import TlsPeer, certificates
from usbvfiod_core import DeviceAway, DeviceError
from usbvfiod_core.testing.limits import PATIENCE

__all__ = ["TlsFailures", "certificates"]

Make = Callable[[str], Path]


class TlsFailures:
    """A connection fails before there is a device."""

    def open(self, place: str, **options: str) -> object:
        """Open a device at a place by the backend, with options as a specification has them."""
        raise NotImplementedError

    @pytest.fixture
    def listener(self) -> Iterator[socket.socket]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(PATIENCE)
            yield listener

    def failure(self, listener: socket.socket, **options: str) -> DeviceError:
        with pytest.raises(DeviceError) as error:
            self.open(f"127.0.0.1:{listener.getsockname()[1]}", timeout="20", **options)
        return error.value

    def test_a_certificate_of_somebody_else(self, listener: socket.socket, certificates: Make) -> None:
        peer = TlsPeer(listener, certificates("other.test"), None)
        ca = str(certificates("server.test"))
        error = self.failure(listener, tls="yes", **{"tls-ca": ca, "tls-name": "other.test"})
        assert "its certificate is not accepted: self-signed certificate" in str(error)
        assert not isinstance(error, DeviceAway)
        assert "unknown ca" in peer.refused()

    @pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=lambda each: each.name)
    def test_no_certificate_of_ours(self, listener: socket.socket, certificates: Make, newest: ssl.TLSVersion) -> None:
        server = certificates("server.test")
        peer = TlsPeer(listener, server, certificates("client.test"), newest)
        error = self.failure(listener, tls="yes", **{"tls-ca": str(server), "tls-name": "server.test"})
        assert "wants a certificate of ours, which tls-cert is for" in str(error)
        assert "peer did not return a certificate" in peer.refused()

    @pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=lambda each: each.name)
    def test_a_certificate_of_ours_that_the_server_does_not_know(
        self, listener: socket.socket, certificates: Make, newest: ssl.TLSVersion
    ) -> None:
        server = certificates("server.test")
        peer = TlsPeer(listener, server, certificates("client.test"), newest)
        given = {"tls-ca": str(server), "tls-name": "server.test", "tls-cert": str(certificates("other.test"))}
        error = self.failure(listener, tls="yes", **given)
        assert "it does not accept our certificate (unknown ca)" in str(error)
        assert peer.refused()

    def test_a_server_that_speaks_no_tls(self, listener: socket.socket) -> None:
        """It answers as a server of its protocol does to what it does not understand: with something, or by hanging
        up."""
        hello = b"\0\0\0\0P\0\0\0\0\0\0\0usbredirect"
        failures = {
            hello: "does not speak TLS with us: wrong version number",
            b"": "has ended the connection as TLS was to begin; it may not speak TLS at all",
        }
        for answer, failure in failures.items():
            speaking = threading.Thread(target=_answer, args=(listener, answer))
            speaking.start()
            assert failure in str(self.failure(listener, tls="yes"))
            speaking.join(PATIENCE)

    def test_a_server_that_speaks_tls_and_we_do_not(self, listener: socket.socket, certificates: Make) -> None:
        peer = TlsPeer(listener, certificates("server.test"), None)
        assert "without a word; perhaps it wants TLS (tls=yes)" in str(self.failure(listener))
        assert peer.refused()

    def test_a_server_that_says_by_an_alert_that_it_speaks_tls(self, listener: socket.socket) -> None:
        """As others than OpenSSL do."""
        speaking = threading.Thread(target=_answer, args=(listener, b"\x15\x03\x01\0\x02\x02\x46"))
        speaking.start()
        assert "the other end speaks TLS, and we do not; tls=yes is for that" in str(self.failure(listener))
        speaking.join(PATIENCE)


def _answer(listener: socket.socket, answer: bytes) -> None:
    with listener.accept()[0] as stream:
        stream.recv(4096)
        stream.sendall(answer)
