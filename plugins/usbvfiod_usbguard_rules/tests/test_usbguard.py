"""Rules are read and applied as USBGuard itself reads and applies them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from usbguard_cases import RECORDED, judged, lines
from usbvfiod_usbguard_rules.parser import RuleError, parse
from usbvfiod_usbguard_rules.rules import Facts

HERE = Path(__file__).parent
PACKAGES = ("libusbguard1", "libusbguard-dev", "libqb100", "libprotobuf32", "libumockdev0", "libpcap0.8")


def ours(line: str) -> str:
    """What we say of a line of `usbguard_cases`, in the words of `judge.cpp`."""
    text, tab, device = line.partition("\t")
    try:
        rule = parse(text)
    except RuleError:
        return "refused"
    if not tab:
        return "read"
    assert rule is not None
    return "applies" if rule.matches(facts(device)) else "does not apply"


def facts(device: str) -> Facts:
    """The values of a device that is written as a rule."""
    rule = parse(device)
    assert rule is not None
    return {name: [str(value) for value in attribute.values] for name, attribute in rule.attributes.items()}


def recorded() -> Iterator[tuple[str, str]]:
    for line in RECORDED.read_text().splitlines():
        answer, _, case = line.partition("\t")
        yield answer, case


def test_what_was_recorded_is_of_these_lines() -> None:
    assert [case for _, case in recorded()] == lines()


def test_as_usbguard_was_seen_to() -> None:
    assert [(answer, case) for answer, case in recorded() if ours(case) != answer] == []


@pytest.mark.long
@pytest.mark.timeout(600)
def test_as_usbguard_does(tmp_path: Path) -> None:
    """Installs Debian's packages below a directory of its own, builds the judge and asks it."""
    for program in ("apt-get", "dpkg-deb", "g++"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")
    subprocess.run(["apt-get", "-qq", "download", *PACKAGES], cwd=tmp_path, check=True)
    for package in tmp_path.glob("*.deb"):
        subprocess.run(["dpkg-deb", "--extract", package, tmp_path / "root"], check=True)
    (libraries,) = {path.parent for path in tmp_path.glob("root/usr/lib/*/libusbguard.so")}
    build = f"g++ -std=c++17 {HERE}/judge.cpp -o judge -I root/usr/include -L {libraries} -lusbguard"
    subprocess.run([*build.split(), "-Wl,--allow-shlib-undefined"], cwd=tmp_path, check=True)
    places = [libraries, tmp_path / "root/lib" / libraries.name]
    environment = {**os.environ, "LD_LIBRARY_PATH": ":".join(map(str, places))}
    for seed in range(20):
        cases = lines(1000, seed)
        answers = judged(str(tmp_path / "judge"), cases, environment)
        assert [(answer, case) for answer, case in zip(answers, cases, strict=True) if ours(case) != answer] == []
