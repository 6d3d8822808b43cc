"""What quickstarts have typed on the host, as it stands there; `tests/vm/test_quickstarts.py` has the VMM's part."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.e2e.process import COMMAND
from tests.e2e.venv import ROOT
from usbvfiod_core.testing.limits import PATIENCE, wait_until


def blocks(page: str) -> list[str]:
    """The blocks of a page that a shell gets, without those that start the VM."""
    text = (ROOT / f"docs/quickstart/{page}.md").read_text()
    found: list[str] = re.findall(r"^```sh\n(.*?)^```$", text, re.M | re.S)
    return [block for block in found if "usbvfiod " in block]


@pytest.mark.parametrize("page", ["qemu", "cloud-hypervisor"])
def test_the_pages_are_found_to_have_a_server_and_commands(page: str) -> None:
    assert [block.count("usbvfiod ") for block in blocks(page)] == [1, 3]


def test_a_server_is_started_and_a_keyboard_comes_and_goes(tmp_path: Path) -> None:
    assert blocks("cloud-hypervisor") == blocks("qemu"), "so they are tried once"
    server, commands = (block.replace("/tmp/", f"{tmp_path}/") for block in blocks("qemu"))
    program = f'usbvfiod() {{ {shlex.join(map(str, COMMAND))} "$@"; }}\n'
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "USBVFIOD_CONTROL": str(tmp_path)}
    with subprocess.Popen(
        ["bash", "-ec", program + server], cwd=tmp_path, env=environment, start_new_session=True
    ) as process:
        try:
            control = tmp_path / "control.sock"
            wait_until(lambda: control.exists() or process.poll() is not None, "the server makes its sockets")
            said = subprocess.check_output(
                ["bash", "-ec", program + commands], cwd=tmp_path, env=environment, text=True, timeout=PATIENCE
            )
        finally:
            os.killpg(process.pid, 15)
    lines = said.splitlines()
    assert lines[0] == "keys: usbvfiod Keyboard is plugged into port 1"
    assert [line.split()[:3] for line in lines[2:4]] == [["1", "plugged", "9"], ["2", "keys", "plugged"]]
    assert lines[4] == "keys: detached; `usbvfiod attach 'virtual:keyboard?name=keys'` plugs it in again"
