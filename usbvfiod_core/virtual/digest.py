"""SHA-256 for names that stay the same: serial numbers, addresses.

Python's own, which `hashlib` has for where there is no OpenSSL: loading that takes 4 MB, more than a drive and all that
serves it. It is under another name in newer Pythons, and may be left out of one.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


def sha256(data: bytes) -> bytes:
    """The digest of `data`, 32 bytes."""
    digest: bytes = _implementation().sha256(data).digest()
    return digest


def _implementation() -> Any:
    for name in ("_sha2", "_sha256", "hashlib"):  # 3.12 and newer, 3.11, everywhere
        try:
            return import_module(name)
        except ImportError:
            continue
    raise AssertionError("there is no Python without hashlib")
