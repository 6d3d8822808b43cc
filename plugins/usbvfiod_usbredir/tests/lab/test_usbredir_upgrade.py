"""A drive of another machine, given away by Debian's usbredirect, stays where it is when the server that has it is
replaced, whichever side has connected the other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.lab.conftest import machine
from tests.lab.far import NETWORKS, Far
from tests.lab.machine import Machine
from tests.lab.passing import Passed
from tests.lab.replaced import check_drive
from tests.lab.stock_redirect import Redirect
from tests.lab.usb_device import HostUsbDevice

__all__ = ["machine"]

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(1800),
    pytest.mark.parametrize("comes", [False, True], ids=["waits", "comes"]),
]


class Rig:
    """A far machine, with usbredirect for a device."""

    def __init__(self, far: Far, directory: Path, *, comes: bool) -> None:
        self._far = far
        self._directory = directory
        self._comes = comes
        self._there: Redirect | None = None

    @contextmanager
    def give(self, device: HostUsbDevice) -> Iterator[Passed]:
        with Redirect(device, comes=self._comes, far=self._far) as self._there:
            address = f"usbredir:{self._there.address}"
            with Passed("usbredir", device, self._directory, address=address) as passed:
                yield passed

    def starts(self) -> int:
        """How often usbredirect has been started, which ends with its connection."""
        assert self._there is not None
        return self._there.starts


@pytest.mark.parametrize("network", ["0 ms", "20 ms"])
def test_a_drive_at_work_is_handed_over(
    tmp_path: Path, machine: Machine, network: str, comes: bool, most_rounds: int
) -> None:
    with Far() as far, far.network(*NETWORKS[network]):
        rig = Rig(far, tmp_path, comes=comes)
        check_drive(machine, rig.give, tmp_path, rig.starts, most_rounds)
