"""`make bench-against`: that it measures what it says, and says what it cannot measure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench import against, against_guest, against_kit, plot, registers
from tests.bench.awake import awake
from tests.bench.builds import Build, extract, install
from tests.bench.guest_registers import at_slot
from tests.bench.interpreter import description
from tests.bench.programs import compiled, serving
from tests.bench.real_devices import Sample
from tests.bench.rows import Missing, Row, alternating, measured
from usbvfiod_core.errors import UsbvfiodError
from usbvfiod_core.pci.vfio import BAR0_REGION, CONFIG_REGION
from usbvfiod_core.testing.client import ReplyError, VfioUserClient
from usbvfiod_core.testing.limits import eventually
from usbvfiod_core.testing.vmm import CLOUD_HYPERVISOR

OURS = Build("ours", Path(sys.executable))
SVG = "{http://www.w3.org/2000/svg}"


def test_a_row() -> None:
    row = Row("reads", 2.0)
    row.compare([2.0, 9.0, 5.0], [1.0, 3.0, 2.0])
    assert row.ratios == [2.0, 3.0, 2.5]
    assert row.line().split()[1:] == ["2.50", "(2.00-3.00)", ">=", "2", "met"]
    assert json.loads(row.json()) == {
        "figure": "reads",
        "ratio": 2.5,
        "target": 2.0,
        "met": True,
        "relation": "at least",
        "low": 2.0,
        "high": 3.0,
    }
    row.most = True
    assert row.line().endswith("MISSED")
    assert json.loads(row.json())["met"] is False


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Missing("no compiler"), "no compiler"),
        (UsbvfiodError("it does not serve:\nno such option"), "no such option"),
        (OSError(), "OSError()"),
        (None, "nothing was measured"),
    ],
)
def test_what_cannot_be_measured_is_said(error: Exception | None, reason: str) -> None:
    def measure() -> None:
        rows[0].compare([1.0], [1.0])
        if error is not None:
            raise error

    rows = [Row("here", 1.0), Row("missing", 1.0, most=True)]
    here, missing = measured(rows, measure)
    assert (here.ratio, here.met, here.missing) == (1.0, True, "")
    assert missing.line().endswith(f"not measured: {reason}")
    found = json.loads(missing.json())
    assert (found["ratio"], found["met"], found["missing"]) == (None, None, reason)


def test_a_reference_of_nothing_is_no_ratio() -> None:
    with pytest.raises(Missing):
        Row("nothing", 1.0).compare([1.0], [0.0])


def test_rounds_alternate_and_the_first_is_not_counted() -> None:
    order: list[str] = []

    def note(name: str) -> float:
        order.append(name)
        return float(len(order))

    assert alternating(2, lambda: note("new"), lambda: note("old")) == [[4.0, 5.0], [3.0, 6.0]]
    assert order == ["new", "old", "old", "new", "new", "old"]


def test_one_build_beside_itself(tmp_path: Path) -> None:
    rows = list(against.figures(OURS, OURS, tmp_path, rounds=1, count=20, vm=False))
    kit, rest = rows[:7], rows[7:]
    assert [row.missing for row in kit] == [""] * 7
    assert all(row.ratios and row.ratios[0] > 0 for row in kit)
    assert [row.figure for row in rest[:5]] == [row.figure for row in against_guest.rows()]
    assert all(row.missing and row.met is None for row in rest[:5])
    assert [row.figure.split(":")[0] for row in rest[5:]] == [
        "usbfs, 64 KiB IN, kit as Cloud Hypervisor",
        "usbfs, 64 KiB OUT, kit as Cloud Hypervisor",
        "usbfs, 64 KiB IN",
        "usbfs, 64 KiB OUT",
    ]


def test_another_interpreter_serves_its_own_usbvfiod(tmp_path: Path) -> None:
    """Not the one of the working directory, where a checkout may be."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nprintf \'%s\\n\' "$@" > {tmp_path}/words\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    with against_kit.served(Build("another", python), tmp_path / "served", "virtual:keyboard") as (pid, [usb]):
        assert usb.descriptor is not None
        assert Path(f"/proc/{pid}").is_dir()
    assert (tmp_path / "words").read_text().split()[:3] == ["-P", "-m", "usbvfiod_core"]


def test_usbfs_is_compared_with_the_plain_program_and_with_rust() -> None:
    rates = {"plain": 100.0, "usbfs": 60.0, "peer": 20.0}
    samples = [
        Sample(what=f"{way} 64 KiB", who=who, rate=rate, cpu=0.0)
        for way in ("IN", "OUT")
        for who, rate in rates.items()
        if (way, who) != ("OUT", "peer")
    ]
    rows = list(against.usbfs_rows())
    against.take_usbfs(rows, samples)
    assert [row.ratio for row in rows] == [3.0, None, 0.6, 0.6]
    assert "cargo install" in rows[1].missing


@pytest.mark.long
def test_a_commit_is_extracted_and_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.chdir(tmp_path)
    commit = extract("HEAD", tmp_path / "source")
    build = install(tmp_path / "source", tmp_path / "installed", commit, compiles=False)
    command = [str(build.python), "-P", "-c", "import usbvfiod_core; print(usbvfiod_core.__file__)"]
    place = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert place.startswith(str(tmp_path / "installed"))
    with pytest.raises(Missing, match="nobody"):
        extract("nobody-has-made-this", tmp_path / "nothing")
    with pytest.raises(Missing, match="cannot be installed"):
        install(tmp_path / "nothing", tmp_path / "failed", "nothing", compiles=False)


def test_the_server_that_answers_constants(tmp_path: Path) -> None:
    socket = tmp_path / "constants.sock"
    try:
        program = compiled("constant_server", tmp_path, "-Wall", "-Wextra", "-Werror", "-Wno-parentheses")
    except Missing as error:
        pytest.skip(str(error))
    with serving([str(program), str(socket)], socket) as process:
        with VfioUserClient.connect(socket, vmm=CLOUD_HYPERVISOR) as client:
            assert client.get_info()[1:] == (9, 5)
            assert client.region_info(BAR0_REGION).size == 4096
            assert client.region_read(BAR0_REGION, 4, 4) == b"\x67\x45\x23\x01"
            client.region_write(CONFIG_REGION, 4, b"\x06\x00")
            assert client.region_read(CONFIG_REGION, 0, 6) == b"\x34\x12\xde\xc0\x06\x00"
            fd = os.memfd_create("ram")
            os.truncate(fd, 4096)
            client.dma_map(0, 4096, fd)
            client.dma_unmap(0, 4096)
            os.close(fd)
            assert client.irq_info(0).count == 0
            with pytest.raises(ReplyError):
                client.region_read(CONFIG_REGION, 250, 16)
            with pytest.raises(ReplyError):
                client.request(99)
        assert process.wait(60) == 0


def test_a_program_that_does_not_serve(tmp_path: Path) -> None:
    with pytest.raises(Missing, match="false does not serve"), serving(["false"], tmp_path / "none.sock"):
        pass


def test_register_reads_of_all_servers(tmp_path: Path) -> None:
    figures, left_out = registers.by_client(tmp_path, 2, 20, OURS)
    names = [figure.name for figure in figures]
    assert names[:2] == ["by the kit's client: usbvfiod", "by the kit's client: usbvfiod ours"]
    assert len(names) + len(left_out) == 4
    assert all(figure.median > 1 for figure in figures)


def test_places_in_a_guest_do_not_collide(tmp_path: Path) -> None:
    places = [at_slot(number, tmp_path) for number in range(3)] + [at_slot(3)]
    assert len({str(arguments).split("addr")[1][:9] for arguments in places}) == 4


def test_the_picture() -> None:
    rows = [Row("twice & better", 2.0), Row("slow", 0.5, most=True), Row("missing", 1.0, missing="no VM")]
    rows[0].compare([8.0], [1.0])
    rows[1].compare([1.0], [1.0])
    figures = [json.loads(row.json()) for row in rows]
    assert [plot.goodness(figure) for figure in figures[:2]] == [1.0, -0.5]
    drawn = ET.fromstring(plot.picture(figures))
    bars = [each.get("fill") for each in drawn.iter(f"{SVG}rect")][1:]
    assert bars == [plot.MET, plot.MISSED]
    words = [each.text for each in drawn.iter(f"{SVG}text")]
    assert {"twice & better", "8.00 (≥ 2)", "1.00 (≤ 0.5)", "not measured"} < set(words)


def test_how_the_interpreter_was_built_is_said() -> None:
    said = description()
    assert "-O" in said
    assert "profile-guided" in said


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def figures(*arguments: object, **options: object) -> Iterator[Row]:
        yield Row("reads", 2.0, ratios=[3.0])
        yield Row("guests", 1.0, missing="--no-vm")

    monkeypatch.setattr(against, "extract", lambda revision, directory: f"commit of {revision}")
    monkeypatch.setattr(against, "install", lambda source, directory, name, compiles: Build(name, directory))
    monkeypatch.setattr(against, "figures", figures)
    drawing = tmp_path / "figures.svg"
    monkeypatch.setattr(sys, "argv", ["bench-against", "HEAD", "--json", "--no-vm", "--svg", str(drawing)])
    assert against.main() == 0
    assert [json.loads(line)["met"] for line in capsys.readouterr().out.splitlines()] == [True, None]
    assert ET.parse(drawing).getroot().tag == f"{SVG}svg"
    monkeypatch.setattr(sys, "argv", ["bench-against", "HEAD"])
    assert against.main() == 0
    said = capsys.readouterr().out
    assert "this checkout beside commit of HEAD" in said
    assert "not measured: --no-vm" in said

    def fails(*arguments: object, **options: object) -> Build:
        raise Missing("it cannot be installed")

    monkeypatch.setattr(against, "install", fails)
    assert against.main() == 2
    assert capsys.readouterr().err == "bench-against: it cannot be installed\n"


def test_who_keeps_processors_awake_gives_way_to_all_others() -> None:
    with awake() as pids:
        assert eventually(lambda: all(os.sched_getscheduler(pid) == os.SCHED_IDLE for pid in pids))
        kept = [os.sched_getaffinity(pid) for pid in pids]
    assert kept == [{processor} for processor in sorted(os.sched_getaffinity(0))]
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.sched_getscheduler(pid)
