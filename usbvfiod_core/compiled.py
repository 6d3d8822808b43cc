"""Whether this copy runs compiled modules or their sources. This module is compiled with the others."""

from __future__ import annotations

from typing import Final, Literal

BUILD: Final[Literal["compiled", "pure"]] = "pure" if __file__.endswith(".py") else "compiled"
"""For people: `usbvfiod --version`, `usbvfiod status`."""
