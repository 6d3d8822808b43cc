"""What is said where the way to the other end is TLS, or should be, and does not come about."""

from __future__ import annotations

from usbvfiod_usbredir.backend import UsbredirBackend

from tests.unit.remote.tls_failures import TlsFailures, certificates
from usbvfiod_core.testing.backend import open_device
from usbvfiod_core.testing.loop import StepLoop

__all__ = ["certificates"]


class TestTls(TlsFailures):
    def open(self, place: str, **options: str) -> object:
        loop = StepLoop(virtual_time=False)
        try:
            return open_device(UsbredirBackend(), place, options, loop)
        finally:
            loop.close()
