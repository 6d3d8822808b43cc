"""A drive and a keyboard of another host, which usbipd exports, stay where they are when the server that has them is
replaced."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.lab.conftest import machine
from tests.lab.exporting import Exported, Host
from tests.lab.far import NETWORKS
from tests.lab.machine import Machine
from tests.lab.passing import Passed
from tests.lab.replaced import check_drive, check_keyboard
from tests.lab.usb_device import HostUsbDevice

__all__ = ["machine"]

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]


class Rig:
    """A host, with a device of which it is known what it says of its importer."""

    def __init__(self, host: Host, directory: Path) -> None:
        self._host = host
        self._directory = directory
        self._exported: Exported | None = None

    @contextmanager
    def give(self, device: HostUsbDevice) -> Iterator[Passed]:
        with self._host.export(device) as self._exported:
            address = f"usbip:{self._exported.address}"
            with Passed("usbip", device, self._directory, address=address) as passed:
                yield passed

    def state(self) -> tuple[int, list[list[str]]]:
        """What the far end's kernel says of the device, and both ends of each connection that it has."""
        assert self._exported is not None
        lines = self._host.run("ss", "-Htn", "state", "established").splitlines()
        assert lines
        return self._exported.status, sorted(line.split()[2:4] for line in lines)


@pytest.mark.parametrize("network", ["0 ms", "20 ms"])
def test_a_drive_at_work_is_handed_over(tmp_path: Path, machine: Machine, network: str, most_rounds: int) -> None:
    """The far end's kernel keeps one connection all the time, and resets nothing."""
    with Host() as host, host.network(*NETWORKS[network]):
        rig = Rig(host, tmp_path)
        check_drive(machine, rig.give, tmp_path, rig.state, most_rounds)


def test_no_key_gets_lost_or_comes_twice(tmp_path: Path, machine: Machine, most_rounds: int) -> None:
    with Host() as host, host.network(*NETWORKS["20 ms"]):
        check_keyboard(machine, Rig(host, tmp_path).give, tmp_path, most_rounds)
