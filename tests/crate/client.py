"""The vfio-user client that Cloud Hypervisor has: the crate `vfio_user`, behind the interface of the test kit's client.

`library` builds lib.rs with cargo, once for each version of it, in the VM tests' cache; `make test-long` has that done
(`python -m tests.crate.client`) before its tests, since it asks for crates.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from ctypes import c_char_p, c_int, c_int64, c_size_t, c_uint32, c_uint64, c_void_p
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from tests.vm.tree import cache_directory
from usbvfiod_core.testing.limits import scaled
from usbvfiod_core.testing.vmm import CLOUD_HYPERVISOR
from usbvfiod_core.vfio_user import wire

SOURCES = ("Cargo.toml", "lib.rs")
HERE = Path(__file__).parent
FUNCTIONS = {
    "open": (c_void_p, [c_char_p]),
    "close": (c_int, [c_void_p]),
    "region_size": (c_int64, [c_void_p, c_uint32]),
    "read": (c_int, [c_void_p, c_uint32, c_uint64, c_char_p, c_size_t]),
    "write": (c_int, [c_void_p, c_uint32, c_uint64, c_char_p, c_size_t]),
    "map": (c_int, [c_void_p, c_uint64, c_uint64, c_uint64, c_int]),
    "unmap": (c_int, [c_void_p, c_uint64, c_uint64]),
    "reset": (c_int, [c_void_p]),
    "irqs": (c_int64, [c_void_p, c_uint32]),
    "set_irqs": (c_int, [c_void_p, c_uint32, c_uint32, c_uint32, c_void_p, c_size_t]),
}


def library() -> ctypes.CDLL:
    """The crate, loaded. Raises CalledProcessError if cargo cannot build it."""
    content = b"".join((HERE / name).read_bytes() for name in SOURCES)
    directory = cache_directory() / f"crate-{hashlib.sha256(content).hexdigest()[:12]}"
    built = directory / "target" / "release" / "libcrate_client.so"
    if not built.exists():
        directory.mkdir(parents=True, exist_ok=True)
        for name in SOURCES:
            shutil.copy(HERE / name, directory)
        subprocess.run(["cargo", "build", "--release", "--quiet"], cwd=directory, check=True, timeout=scaled(600))
    loaded = ctypes.CDLL(str(built))
    for name, (result, arguments) in FUNCTIONS.items():
        function = getattr(loaded, f"client_{name}")
        function.restype, function.argtypes = result, arguments
    return loaded


class CrateClient:
    """What a `SocketBus` needs of a `VfioUserClient`, and what Cloud Hypervisor does besides."""

    version = "negotiated by the crate"

    vmm = replace(CLOUD_HYPERVISOR, maps=False)

    def __init__(self, library: ctypes.CDLL, path: Path) -> None:
        self._library = library
        self._client = library.client_open(os.fsencode(path))
        assert self._client

    def close(self) -> None:
        assert self._library.client_close(self._client) == 0

    def region_size(self, region: int) -> int:
        return int(self._library.client_region_size(self._client, region))

    def irq_info(self, index: int) -> SimpleNamespace:
        return SimpleNamespace(count=self._library.client_irqs(self._client, index))

    def dma_map(self, address: int, size: int, fd: int, offset: int) -> None:
        assert self._library.client_map(self._client, offset, address, size, fd) == 0

    def dma_unmap(self, address: int, size: int) -> None:
        assert self._library.client_unmap(self._client, address, size) == 0

    def assign_eventfds(self, index: int, fds: Sequence[int]) -> None:
        self._set_irqs(index, wire.IRQ_DATA_EVENTFD | wire.IRQ_ACTION_TRIGGER, len(fds), fds)

    def set_irqs(self, index: int, flags: int, start: int, count: int) -> None:
        assert start == 0
        self._set_irqs(index, flags, count, ())

    def _set_irqs(self, index: int, flags: int, count: int, fds: Sequence[int]) -> None:
        array = (c_int * len(fds))(*fds)
        assert self._library.client_set_irqs(self._client, index, flags, count, array, len(fds)) == 0

    def reset(self) -> None:
        assert self._library.client_reset(self._client) == 0

    def region_read(self, region: int, offset: int, count: int) -> bytes:
        data = ctypes.create_string_buffer(count)
        assert self._library.client_read(self._client, region, offset, data, count) == 0
        return data.raw

    def region_write(self, region: int, offset: int, data: bytes, *, posted: bool = False) -> None:
        assert self._library.client_write(self._client, region, offset, data, len(data)) == 0


if __name__ == "__main__":
    library()
