"""How this copy of usbvfiod was installed, and so which command adds a package to it.

Every piece of advice to install something asks here. No advice names one of our distributions alone: usbvfiod is on no
package index, and whoever took such a name there would be obeyed. So they are named by their place in the source tree
that this copy was installed from, or by the file of a Debian package. Servers load this, and seldom give advice: what
that needs is imported where it is needed.
"""

from __future__ import annotations

import json
import shlex
import sys
from enum import Enum, auto
from pathlib import Path
from typing import NamedTuple

from .installed import distribution

DISTRIBUTION = "usbvfiod"
PLUGINS = ("usbfs", "libusb", "usbip", "usbredir", "mass-storage-quirks", "usbguard-rules", "web")
"""The plugins of this project. Each is the distribution and Debian package `usbvfiod-NAME`."""

_DEBIAN = Path("/usr/lib/python3/dist-packages")
_PACKAGE = Path(__file__).resolve().parent
_IN_SOURCES = "    # in usbvfiod's source tree"


class Kind(Enum):
    """What has to be asked for another package."""

    DEBIAN = auto()
    PIPX = auto()
    PIP = auto()
    """pip in a virtual environment, or wherever else this Python keeps its packages."""


class Installation(NamedTuple):
    """One way in which usbvfiod was installed."""

    kind: Kind
    python: str
    """The interpreter's path."""
    environment: str = ""
    """The name of pipx's environment."""
    sources: Path | None = None
    """The source tree that it was installed from, if that is still there."""
    editable: bool = False
    managed: bool = False
    """Whether the system's packages own this Python, so that pip has to be told that it may."""

    def plugin(self, name: str) -> str:
        """The command that adds one of `PLUGINS`, for a shell."""
        if self.kind is Kind.DEBIAN:
            return f"sudo apt install ./{DISTRIBUTION}-{name}_*_all.deb    # built by `make deb`"
        directory = f"plugins/{DISTRIBUTION}_{name.replace('-', '_')}"
        if self.sources is None:
            return self._add(f"./{directory}") + _IN_SOURCES
        return self._add(*["--editable"] * self.editable, str(self.sources / directory))

    def library(self, name: str, *, debian: str) -> str:
        """The command that adds somebody else's package, by its name on PyPI and Debian's for it."""
        return f"sudo apt install {debian}" if self.kind is Kind.DEBIAN else self._add(name)

    def development(self) -> str:
        """The commands that install the plugin whose source tree one stands in, with its tests, and run these."""
        if self.kind is Kind.PIP:
            pip, python = self._add("--editable", ".[test]"), shlex.quote(self.python)
            return f"{pip} && {python} -m pytest"
        pip = ".venv/bin/python -m pip install"
        if self.kind is Kind.DEBIAN:
            make = "python3 -m venv --system-site-packages .venv"
        else:
            make = "python3 -m venv .venv"
            pip += f" {shlex.quote(str(self.sources))}" if self.sources else " PATH_OF_USBVFIOD"
        return f"{make} && {pip} --editable '.[test]' && .venv/bin/python -m pytest"

    def _add(self, *arguments: str) -> str:
        if self.kind is Kind.PIPX:
            return shlex.join(["pipx", "inject", self.environment, *arguments])
        allowed = ["--break-system-packages"] * self.managed
        return shlex.join([self.python, "-m", "pip", "install", *allowed, *arguments])


def installation() -> Installation:
    """How the running copy was installed."""
    sources, editable = _sources()
    prefix = Path(sys.prefix)
    if _PACKAGE.parent == _DEBIAN:
        return Installation(Kind.DEBIAN, sys.executable)
    if (prefix / "pipx_metadata.json").exists():
        return Installation(Kind.PIPX, sys.executable, prefix.name, sources, editable)
    import sysconfig

    managed = sys.prefix == sys.base_prefix and Path(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED").exists()
    return Installation(Kind.PIP, sys.executable, "", sources, editable, managed)


def _sources() -> tuple[Path | None, bool]:
    """The source tree, and whether what runs is that itself. pip notes where it found a package (PEP 610)."""
    from urllib.parse import unquote, urlsplit

    try:
        this = distribution(DISTRIBUTION)
        text = this.read_text("direct_url.json") if this is not None else ""
        origin = json.loads(text) if text else {}
        place = urlsplit(origin.get("url", ""))
        editable = bool(origin.get("dir_info", {}).get("editable"))
    except (ValueError, AttributeError):
        return None, False
    path = Path(unquote(place.path))
    if place.scheme != "file" or not (path / "plugins").is_dir():
        return None, False
    return path, editable
