"""A device whose plugin answers late, never, twice, with lengths that cannot be, and with exceptions: a guest that uses
it finds out, and nobody else."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from tests.e2e.attacked import FAR, LINES, Attacked
from tests.e2e.hostile_plugin import Ways
from usbvfiod_core.testing.driver import DriverError, UsbDevice
from usbvfiod_core.testing.limits import eventually

PLUGIN = Path(__file__).with_name("hostile_plugin.py")
LENGTH = 5000
WAYS = [name for name in vars(Ways) if not name.startswith("_")]


def use(device: UsbDevice) -> list[int]:
    """Read and write, cancel, begin anew, as far as that can be; the completion codes."""
    codes = []
    for address, data in ((0x81, None), (0x01, bytes(LENGTH))):
        pipe = device.pipe(address)
        tds = [pipe.submit(data, LENGTH) for _ in range(4)]
        device.driver.bus.pause(0.05)
        device.driver.handle_events()
        with suppress(DriverError):  # it is gone
            pipe.flush()
        codes += [td.completion_code for td in tds if td.done]
    return codes


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("way", WAYS)
def test_it_hurts_only_itself(tmp_path: Path, way: str) -> None:
    plugin = ("--plugin-files", "--plugin", PLUGIN)
    with Attacked(tmp_path, f"hostile:{way}", *plugin, tracebacks=way == "raises") as victim:
        device = victim.take()
        for _ in range(3):
            with suppress(DriverError):
                print(f"{way}: completion codes {use(device)}")
            print(f"{way}: {victim.check_delay()}; idle: {victim.idle}")
        if victim.attachment()["state"] == "plugged":
            victim.ask("detach", attachment="far", hold=True)
        assert eventually(lambda: not victim.driver.port(FAR).connected), "it is still there"
        print(f"{way}, afterwards: {victim.check(lines=2 * LINES)}")  # of an exception there are many
