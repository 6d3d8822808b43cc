"""Nothing that a device, a guest or a peer calls itself makes a line of what commands print, or acts on a terminal."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from usbvfiod_core import Backend, Device, DeviceError, DeviceInfo, Loop, Speed, hookimpl
from usbvfiod_core.cli import changes, completing, look, main, output
from usbvfiod_core.daemon import report
from usbvfiod_core.hooks.registry import Registry
from usbvfiod_core.hooks.settings import PluginSelection

CLI = Path(look.__file__).parent
OWN_WORDS = {"output.py", "completion.py", "man.py", "server_options.py"}
"""What prints by itself: texts that are ours, and `output`."""

HOSTILE = "Drive\n\r\x1b[2J\x9b2J\u202e\u2028forged"


def test_commands_print_through_one_file() -> None:
    printing = {path.name for path in CLI.glob("*.py") if re.search(r"click\.echo\(|(?<!_)\bprint\(", path.read_text())}
    assert printing == OWN_WORDS


class Evil(Backend):
    name = "evil"

    def list_devices(self) -> list[DeviceInfo]:
        about = {"serial": HOSTILE, "driver": HOSTILE, "note": HOSTILE, "in_use": HOSTILE}
        return [DeviceInfo("evil", "3-1", 1, 2, HOSTILE, speed=Speed.HIGH, port_path="3-1", **about)]

    def open(self, address: str, options: object, loop: Loop) -> Device:
        raise DeviceError(HOSTILE)


class EvilPlugin:
    __name__ = "evil"

    @hookimpl
    def usbvfiod_register_backends(self, register: Callable[[Backend], None]) -> None:
        register(Evil())


@pytest.fixture(autouse=True)
def evil(monkeypatch: pytest.MonkeyPatch) -> None:
    def discover(registry: Registry, selection: PluginSelection) -> None:
        registry.register(EvilPlugin(), "evil")

    monkeypatch.setattr(Registry, "discover", discover)


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], list[str]]]:
    """What was printed; harmless, whatever it is."""

    def printed() -> list[str]:
        captured = capsys.readouterr()
        printed = (captured.out + captured.err).split("\n")
        assert all(line.isprintable() for line in printed), printed
        assert not any(line.startswith("forged") for line in printed)
        return printed

    yield printed
    printed()


SHOWN = "Drive\\n\\r\\x1b[2J\\x9b2J\\u202e\\u2028forged"


def test_devices(lines: Callable[[], list[str]]) -> None:
    assert main(["devices"]) == 0
    [_, row, _] = lines()
    assert SHOWN in row
    assert main(["devices", "--json"]) == 0
    assert json.loads("\n".join(lines()))["devices"][0]["name"] == HOSTILE


def test_why(lines: Callable[[], list[str]]) -> None:
    main(["why", "evil:3-1"])
    assert any(SHOWN in line for line in lines())


def test_an_error(tmp_path: Path, lines: Callable[[], list[str]]) -> None:
    assert main(["--socket-path", str(tmp_path / "usb.sock"), "--device", "evil:3-1", "--sandbox", "off"]) == 4
    assert any(line.startswith("usbvfiod: error: device evil:3-1: Drive \\x1b[2J") for line in lines())


ENDPOINT = {"address": 0x81, "type": "bulk", "state": "RUNNING", "transfers": 0, "bytes": 0, "errors": {HOSTILE: 1}}
ATTACHMENT = {
    "number": 1,
    "name": HOSTILE,
    "spec": HOSTILE,
    "state": "plugged",
    "reason": HOSTILE,
    "note": HOSTILE,
    "port": 1,
    "ports": [1],
    "next_try": None,
    "product": HOSTILE,
    "device": {"vendor_id": 1, "product_id": 2, "serial": HOSTILE, "port_path": HOSTILE},
    "endpoints": [ENDPOINT | {"missed": 0, "p50": None, "p90": None, "p99": None}],
}
SERVER = {"pid": 1, "serving": False, "missing": [HOSTILE], "seconds": 1.0, "socket": HOSTILE}
SERVER |= {"build": HOSTILE, "sandbox": {"stages": [HOSTILE], "missing": [HOSTILE]}}
STATUS = {
    "server": SERVER,
    "client": {"name": HOSTILE, "version": HOSTILE, "pid": 2},
    "memory": {"shared": 0, "unshared": 0},
    "attachments": [ATTACHMENT],
}


@pytest.mark.parametrize(
    "show",
    [
        lambda: look._print_attachments([ATTACHMENT]),
        lambda: look._print_status(STATUS),
        lambda: output.say(report.sentence({"event": "attachment", "attachment": ATTACHMENT})),
        lambda: output.say(report.sentence({"event": HOSTILE})),
        lambda: output.print_one_line(STATUS),
        lambda: output.print_object(STATUS),
        lambda: changes._show(ATTACHMENT, as_json=False),
        lambda: changes._show(ATTACHMENT, as_json=True),
    ],
)
def test_what_a_server_answers(show: Callable[[], None], lines: Callable[[], list[str]]) -> None:
    show()
    assert any("forged" in line for line in lines())


def test_what_shells_offer() -> None:
    choices: list[tuple[str, str]] = [("evil:a", HOSTILE), ("evil:b\nplain,evil", "x")]
    offer: Any = completing._offering(lambda context: choices)
    assert [(item.value, item.help) for item in offer(None, None, "evil")] == [("evil:a", SHOWN)]
