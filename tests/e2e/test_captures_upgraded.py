"""Captures while another process takes the place of their server: the same files go on, and so do the clients."""

from __future__ import annotations

import os
from collections import Counter
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from tests.e2e.test_capture import Capture
from tests.e2e.upgrade_rig import GuestAtWork, Upgradable
from tests.unit.capture.rig import read, records
from usbvfiod_core.capture import usbmon
from usbvfiod_core.capture.recorder import SNAP_LENGTH
from usbvfiod_core.cli.control import ControlConnection
from usbvfiod_core.testing.limits import PATIENCE, wait_until


def check(path: Path, *names: str) -> list[usbmon.Record]:
    """The records of a whole file, of which none is missing, with these interfaces; each transfer ends once."""
    found = records(path)
    reader = read(path)
    counted = Counter(packet.interface.name for packet in reader)
    assert sorted(each.name for each in reader.interfaces) == sorted(names)
    assert {each.name: (each.received, each.dropped) for each in reader.interfaces} == {
        name: (count, 0) for name, count in counted.items()
    }
    assert reader.skipped == 0
    running: set[int] = set()
    for packet, record in found:
        assert packet.dropped == 0
        if record.kind == usbmon.SUBMIT:
            assert record.id not in running
            running.add(record.id)
        else:
            running.remove(record.id)
    assert [packet.time for packet, _ in found] == sorted(packet.time for packet, _ in found)
    return [record for _, record in found]


def grown(file: Path, size: int) -> bool:
    return file.stat().st_size > size


@pytest.mark.parametrize("times", [1, pytest.param(20, marks=pytest.mark.long)])
def test_captures_go_on_in_the_same_files(tmp_path: Path, times: int) -> None:
    every, one, late = tmp_path / "all.pcapng", tmp_path / "one.pcapng", tmp_path / "late.pcapng"
    reading, writing = os.pipe()
    with Upgradable(tmp_path, ["--pcap-path", every]) as rig, closing(GuestAtWork(rig)) as guest:
        capture = Capture("--control-path", rig.control, "bot", "-w", one)
        assert capture.first == "capturing bot (usbvfiod Flash Drive (bot.img), port 9); Ctrl+C ends it"
        with ControlConnection(rig.control, PATIENCE) as somebody:
            number = somebody.request("capture", fd=True, fds=[writing], snap_length=SNAP_LENGTH)["capture"]
            guest.step()  # more than there is room for in a pipe
            for turn in range(times):
                size = one.stat().st_size
                rig.upgrade()
                guest.step()
                wait_until(partial(grown, one, size), "it is captured on")
                if not turn:
                    told = somebody.wait_for("capture")
        assert (told["capture"], told["reason"]) == (number, "the server was replaced while nobody read it")
        assert told["packets"] > 0
        # Begun afterwards: the devices' descriptors were asked for in another process.
        with ControlConnection(rig.control, PATIENCE) as somebody, late.open("wb") as file:
            behind = somebody.request("capture", fd=True, fds=[file.fileno()])
            guest.step()
            assert somebody.request("capture-end", capture=behind["capture"])["dropped"] == 0
        assert behind["capture"] == 3, "a number was used twice"
        code, said = capture.end()
        assert code == 0
        guest.check()
    os.close(reading)
    os.close(writing)
    assert said == f"{len(check(one, 'bot'))} packets"
    check(every, "bot", "uas", "keys")
    repeated = [packet for packet, _ in records(late) if packet.comment == "from before this capture"]
    assert {packet.interface.name for packet in repeated} == {"bot", "uas", "keys"}
    check(late, "bot", "uas", "keys")


@pytest.mark.long
def test_a_configuration_that_names_other_files(tmp_path: Path) -> None:
    """A file that it does not name any more is whole, and nothing is written to one that nobody has opened."""
    first, second = tmp_path / "first.pcapng", tmp_path / "second.pcapng"
    with Upgradable(tmp_path, ["--pcap-path", first]) as rig, closing(GuestAtWork(rig)) as guest:
        guest.step()
        same = ("--socket-path", str(rig.server.socket_path), "--control-path", str(rig.control))
        bot, uas = rig.images
        rig.upgrade(
            *("--", *same, "--pcap-path", str(second)),
            *("--device", f"virtual:flash?image={bot}&transport=bot&name=bot&mass-storage-quirks.quirks=kw"),
            *("--device", f"virtual:flash?image={uas}&transport=uas&name=uas&mass-storage-quirks.quirks=kw"),
            *("--device", "virtual:keyboard?name=keys"),
        )
        guest.step()
        assert f"pcap: nothing is captured to {second}, which is opened when a server starts" in rig.server.log
    check(first, "bot", "uas", "keys")
    assert not second.exists()
