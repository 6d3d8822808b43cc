"""TLS on the way to the other end, and what its failures mean, for people."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from ..errors import DeviceAway, DeviceError
from ..usb.handover import CannotHandOver
from .link import IOV_MAX, Link, LinkLost
from .options import RemoteOptions

if TYPE_CHECKING:
    import socket
    import ssl

_PIECE: Final = 1 << 14
"""Bytes of a TLS record (RFC 8446 5.1)."""
_WANTED: Final = "it wants a certificate of ours, which tls-cert is for"
_REFUSED: Final = (
    "ALERT_UNKNOWN_CA",
    "ALERT_BAD_CERTIFICATE",
    "ALERT_UNSUPPORTED_CERTIFICATE",
    "ALERT_CERTIFICATE_REVOKED",
    "ALERT_CERTIFICATE_EXPIRED",
    "ALERT_CERTIFICATE_UNKNOWN",
    "ALERT_ACCESS_DENIED",
)
"""Alerts (RFC 8446 6.2) by which a server says what it thinks of the client's certificate, as OpenSSL names them."""


class TlsLink(Link):
    """A link that is encrypted. `has_certificate`: the other end was offered one of ours."""

    _socket: ssl.SSLSocket

    def __init__(self, stream: ssl.SSLSocket, child: subprocess.Popen[bytes] | None, *, has_certificate: bool) -> None:
        super().__init__(stream, child)
        self._is_begun = True
        self._has_certificate = has_certificate
        self._unsent = b""
        """What OpenSSL has to be given again, unchanged, before anything else."""

    def hand_over(self) -> int:
        raise CannotHandOver("its connection is encrypted, and only its process has the keys")

    @property
    def pending(self) -> bool:
        return self._socket.pending() > 0

    @property
    def committed(self) -> bool:
        return bool(self._unsent)

    def receive(self, windows: Sequence[memoryview]) -> int | None:
        import ssl

        done = 0
        try:
            for window in windows[:IOV_MAX]:
                while window:
                    count = self._socket.recv_into(window)
                    if not count:
                        if done:
                            return done
                        raise self._closed()
                    done += count
                    window = window[count:]
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except OSError as error:
            if not done:
                raise self._lost(error) from None
        return done or None

    def send(self, windows: Sequence[memoryview]) -> int:
        import ssl

        done = 0
        try:
            for window in windows[:IOV_MAX]:
                while window:
                    piece = self._unsent or bytes(window[:_PIECE])
                    self._unsent = piece
                    count = self._socket.send(piece)
                    self._unsent = b""
                    done += count
                    window = window[count:]
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except OSError as error:
            raise self._lost(error) from None
        return done

    def _lost(self, error: OSError) -> LinkLost:
        # With TLS 1.3 a server says only behind the handshake what it thinks of our certificate.
        reason = _objection(error, has_certificate=self._has_certificate)
        return LinkLost(reason) if reason else super()._lost(error)


def encrypted(
    stream: socket.socket,
    child: subprocess.Popen[bytes] | None,
    host: str,
    options: RemoteOptions,
) -> TlsLink:
    """Speak TLS from now on, to `host` unless the options have another name. In a thread. Raises OSError, ValueError,
    also where the other end takes longer than `options.timeout`."""
    import ssl

    context = ssl.create_default_context(cafile=None if options.tls_ca is None else str(options.tls_ca))
    if options.tls_cert is not None:
        context.load_cert_chain(options.tls_cert, options.tls_key, password=_no_password)
    stream.settimeout(options.timeout)
    made = context.wrap_socket(stream, server_hostname=options.tls_name or host)
    return TlsLink(made, child, has_certificate=options.tls_cert is not None)


def tls_refusal(where: str, options: RemoteOptions, error: OSError | ValueError) -> DeviceError:
    """What it means that `encrypted` has failed with this error; DeviceAway if that may change by itself."""
    import ssl

    if isinstance(error, ssl.SSLCertVerificationError):
        return DeviceError(f"{where}: its certificate is not accepted: {error.verify_message}")
    if isinstance(error, TimeoutError):
        return DeviceAway(f"{where} does not answer by TLS")
    if isinstance(error, ConnectionError | ssl.SSLEOFError):
        return DeviceAway(f"{where} has ended the connection as TLS was to begin; it may not speak TLS at all")
    if isinstance(error, ssl.SSLError):
        objection = _objection(error, has_certificate=options.tls_cert is not None)
        if objection:
            return DeviceAway(f"{where}: {objection}")
        if error.library == "SSL":
            return DeviceAway(f"{where} does not speak TLS with us: {_words(error.reason) or error}")
        return DeviceError(f"{where}: TLS: {_words(error.reason) or error}")
    return DeviceError(f"{where}: TLS: {getattr(error, 'strerror', None) or error}")


# -- own ---------------------------------------------------------------------------------------------------------------


def _objection(error: OSError, *, has_certificate: bool) -> str:
    """What the other end has against our certificate; empty if that is not what the error says."""
    reason = str(getattr(error, "reason", None) or "")
    if "ALERT_CERTIFICATE_REQUIRED" in reason:
        return _WANTED
    if "ALERT_HANDSHAKE_FAILURE" in reason and not has_certificate:
        return f"it refuses us ({_words(reason)}); perhaps {_WANTED}"  # as TLS 1.2 has no alert of its own for that
    if any(each in reason for each in _REFUSED):
        return f"it does not accept our certificate ({_words(reason)})"
    return ""


def _words(reason: str | None) -> str:
    """OpenSSL's name of a reason without what is only its history: TLSV1_ALERT_UNKNOWN_CA is "unknown ca"."""
    return (reason or "").rpartition("ALERT_")[2].replace("_", " ").lower()


def _no_password() -> str:
    raise ValueError("its key has a password, which nobody is there to type")
