"""What is said where the way to the other end is TLS, or should be, and does not come about."""

from __future__ import annotations

from usbvfiod_usbip.backend import UsbipBackend

from tests.unit.remote.tls_failures import TlsFailures, certificates
from usbvfiod_core.testing.backend import open_device
from usbvfiod_core.testing.loop import StepLoop

__all__ = ["certificates"]


class TestTls(TlsFailures):
    def open(self, place: str, **options: str) -> object:
        loop = StepLoop(virtual_time=False)
        try:
            return open_device(UsbipBackend(), f"{place}/1-1", options, loop)
        finally:
            loop.close()
