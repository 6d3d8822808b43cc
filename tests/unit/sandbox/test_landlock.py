"""What is restricted by which ABI of Landlock, by value."""

from __future__ import annotations

import pytest

from usbvfiod_core.sandbox import landlock
from usbvfiod_core.sandbox.landlock import handled, lacking

FIRST = 0x1FFF
"""The 13 rights of ABI 1."""


@pytest.mark.parametrize(
    ("abi", "files", "network", "scopes", "size"),
    [
        (1, FIRST, 0, 0, 8),
        (2, FIRST | 0x2000, 0, 0, 8),
        (3, FIRST | 0x6000, 0, 0, 8),
        (4, FIRST | 0x6000, 3, 0, 16),
        (5, FIRST | 0xE000, 3, 0, 16),
        (6, FIRST | 0xE000, 3, 3, 24),
        (7, FIRST | 0xE000, 3, 3, 24),
        (20, FIRST | 0xE000, 3, 3, 24),
    ],
)
def test_rights_by_abi(abi: int, files: int, network: int, scopes: int, size: int) -> None:
    assert handled(abi) == (files, network, scopes, size)
    assert landlock.WRITE & ~0xFFFF == 0


def test_a_service_managers_abstract_socket_stays_in_reach() -> None:
    assert handled(6, abstract=True).scopes == landlock.SCOPE_SIGNAL


def test_what_older_kernels_lack_is_said() -> None:
    assert lacking(6) == lacking(9) == []
    assert lacking(5) == ["abstract sockets"]
    assert lacking(1) == ["truncating files", "TCP connections", "ioctls of devices", "abstract sockets"]
