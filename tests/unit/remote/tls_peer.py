"""A server that talks TLS to one client, and certificates for both; tests of plugins use it too."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from usbvfiod_core.testing.limits import PATIENCE


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes a self-signed certificate for a name, with its key in the same file."""
    directory = tmp_path_factory.mktemp("certificates")

    def make(name: str) -> Path:
        made = directory / f"{name}.pem"
        if not made.exists():
            command = f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN={name}"
            command += f" -addext subjectAltName=DNS:{name} -keyout {made}.key -out {made}.crt"
            subprocess.run(command.split(), check=True, capture_output=True)
            made.write_text(Path(f"{made}.crt").read_text() + Path(f"{made}.key").read_text())
        return made

    return make


class TlsPeer:
    """Takes one connection and talks TLS to it, in a thread; `stream` when it is there. With `client` it wants that
    certificate of the client."""

    def __init__(
        self,
        listener: socket.socket,
        own: Path,
        client: Path | None,
        newest: ssl.TLSVersion = ssl.TLSVersion.MAXIMUM_SUPPORTED,
    ) -> None:
        self._listener = listener
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.maximum_version = newest
        self._context.load_cert_chain(own)
        if client is not None:
            self._context.verify_mode = ssl.CERT_REQUIRED
            self._context.load_verify_locations(client)
        self.stream: ssl.SSLSocket | None = None
        self.error = ""
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        raw = self._listener.accept()[0]
        raw.settimeout(PATIENCE)
        try:
            self.stream = self._context.wrap_socket(raw, server_side=True)
        except OSError as error:
            self.error = str(error)
            raw.close()

    def join(self) -> ssl.SSLSocket:
        """The stream. Fails if the other end did not come to an agreement with it."""
        self._thread.join(PATIENCE)
        assert self.stream is not None, self.error
        return self.stream

    def refused(self) -> str:
        """Why there is no stream."""
        self._thread.join(PATIENCE)
        assert self.stream is None
        return self.error
