"""A network adapter of the real process, with a program at the other end of its cable."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Run, Serve
from tests.lab.guest_classes import NetworkAdapter
from usbvfiod_core.testing.limits import PATIENCE, wait_until

FRAMES = [bytes.fromhex("020000000001 020000000002 0800") + bytes([number]) * 1000 for number in range(50)]


@pytest.fixture
def program(tmp_path: Path) -> Iterator[tuple[Path, socket.socket]]:
    path = tmp_path / "cable"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.settimeout(PATIENCE)
        listening.bind(str(path))
        listening.listen()
        yield path, listening


def test_frames_and_what_the_user_sees(
    run: Run, serve: Serve, tmp_path: Path, program: tuple[Path, socket.socket]
) -> None:
    path, listening = program
    control = tmp_path / "control.sock"

    def note() -> str:
        listed = run("list", "--control-path", control, "--json")
        return str(json.loads(listed.stdout)["attachments"][0]["note"])

    server = serve("--control-path", control, "--device", f"virtual:network?socket={path}&name=lan")
    peer, _ = listening.accept()
    peer.settimeout(PATIENCE)
    with peer, peer.makefile("rb") as incoming, server.guest() as driver:
        adapter = NetworkAdapter(driver.enumerate())
        adapter.send(FRAMES[:10])
        for frame in FRAMES[:10]:
            (length,) = struct.unpack(">I", incoming.read(4))
            assert incoming.read(length) == frame
        peer.sendall(b"".join(struct.pack(">I", len(frame)) + frame for frame in FRAMES))
        assert [adapter.receive() for _ in FRAMES] == FRAMES
        assert run("send", "--control-path", control, "lan", "link", "down").returncode == 0
        assert note() == f"the other end is {path}; the link is down"
        assert run("send", "--control-path", control, "lan", "link", "up").returncode == 0
        adapter.device.bulk_out(adapter.bulk_out, b"nonsense")
        wait_until(lambda: note() == f"the other end is {path}; 1 malformed block from the guest", "the count")
    assert not [line for line in server.errors if "is not understood" not in line]


def test_a_cable_that_leads_nowhere_is_tried_again(
    run: Run, serve: Serve, tmp_path: Path, program: tuple[Path, socket.socket]
) -> None:
    path, _ = program
    path.rename(tmp_path / "later")
    server = serve("--control-path", tmp_path / "control.sock")
    attached = run("attach", "--control-path", tmp_path / "control.sock", f"virtual:network?socket={path}")
    assert attached.returncode != 0
    assert f"virtual:network: socket={path}: No such file or directory" in attached.stderr
    assert server.process.poll() is None
