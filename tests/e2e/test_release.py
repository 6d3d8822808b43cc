"""`make release`: what is published. Needs a package index, for what makes the bill of materials."""

from __future__ import annotations

import hashlib
import json
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.e2e.venv import ROOT
from usbvfiod_core.testing.limits import scaled

pytestmark = [pytest.mark.long, pytest.mark.timeout(2700)]

DISTRIBUTIONS = {
    "usbvfiod",
    "usbvfiod_libusb",
    "usbvfiod_mass_storage_quirks",
    "usbvfiod_usbfs",
    "usbvfiod_usbguard_rules",
    "usbvfiod_usbip",
    "usbvfiod_usbredir",
    "usbvfiod_web",
}


def release(tree: Path) -> dict[str, str]:
    """Run it in a source tree; the checksums by file name."""
    result = subprocess.run(["make", "release"], cwd=tree, capture_output=True, text=True, timeout=scaled(1200))
    assert result.returncode == 0, result.stdout + result.stderr
    lines = [line.split() for line in (tree / "dist/SHA256SUMS").read_text().splitlines()]
    return {name: checksum for checksum, name in lines}


def test_the_same_commit_gives_the_same_files(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "elsewhere/second"
    for tree in (first, second):
        subprocess.run(["git", "clone", "-q", ROOT, tree], check=True)
    sums = release(first)
    assert release(second) == sums
    assert len([name for name in sums if name.endswith(".whl")]) == len(DISTRIBUTIONS)
    for name, checksum in sums.items():
        data = (first / "dist" / name).read_bytes()
        assert hashlib.sha256(data).hexdigest() == checksum
        assert str(tmp_path).encode() not in data
    for name in DISTRIBUTIONS:
        (wheel,) = first.glob(f"dist/{name}-*.whl")
        (source,) = first.glob(f"dist/{name}-*.tar.gz")
        assert f"{name}/__init__.py".replace("usbvfiod/", "usbvfiod_core/") in zipfile.ZipFile(wheel).namelist()
        with tarfile.open(source) as archive:
            assert any(member.endswith("/pyproject.toml") for member in archive.getnames())
    (path,) = first.glob("dist/*.cdx.json")
    bill = json.loads(path.read_text())
    assert bill["bomFormat"] == "CycloneDX"
    assert bill["metadata"]["component"]["name"] == "usbvfiod"
    parts = {part["name"] for part in bill["components"]}
    assert {"click", "pluggy", "libusb1", "usbvfiod-usbfs"} <= parts
    assert not parts & {"pytest", "mypy", "pip", "hatchling"}
