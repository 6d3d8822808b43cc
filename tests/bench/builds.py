"""Builds of usbvfiod to compare: this checkout's and another commit's, installed into environments of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from tests.bench.rows import Missing

ROOT = Path(__file__).resolve().parents[2]
WHEELHOUSE = Path(sys.prefix) / "wheelhouse"
COMPILE = "USBVFIOD_COMPILE"


@dataclass(frozen=True)
class Build:
    """An installed usbvfiod: what it is called, and the interpreter that imports it."""

    name: str
    python: Path


def install(source: Path, directory: Path, name: str, *, compiles: bool) -> Build:
    """Make an environment in `directory` with the usbvfiod of `source`; compiled, if it can be and USBVFIOD_COMPILE is
    set. Raises Missing."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    if not compiles:
        kept.pop(COMPILE, None)
    if WHEELHOUSE.is_dir():
        kept["PIP_FIND_LINKS"] = f"{kept.get('PIP_FIND_LINKS', '')} {WHEELHOUSE}".strip()
    python = directory / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--python", str(python)]
    for command in ([sys.executable, "-m", "venv", "--without-pip", str(directory)], [*pip, "install", str(source)]):
        result = subprocess.run(command, env=kept, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if result.returncode:
            reason = (result.stderr.strip() or "no reason given").splitlines()[-1]
            raise Missing(f"{name} cannot be installed: {reason}")
    return Build(name, python)


def extract(revision: str, directory: Path) -> str:
    """Put the files of a commit into `directory`; its abbreviated name. Raises Missing."""
    commit = _git("rev-parse", "--verify", "--short", f"{revision}^{{commit}}").decode().strip()
    with tarfile.open(fileobj=BytesIO(_git("archive", "--format=tar", commit))) as archive:
        archive.extractall(directory, filter="data")
    return commit


def last_tag() -> str:
    """The last release. Raises Missing if there is none."""
    tags = _git("tag", "--sort=-v:refname", "--list", "v*").decode().split()
    if not tags:
        raise Missing("no release has been tagged")
    return tags[0]


def _git(*words: str) -> bytes:
    try:
        result = subprocess.run(["git", *words], cwd=ROOT, capture_output=True)
    except FileNotFoundError:
        raise Missing("no git") from None
    if result.returncode:
        raise Missing(f"git {' '.join(words)}: {result.stderr.decode(errors='replace').strip()}")
    return result.stdout
