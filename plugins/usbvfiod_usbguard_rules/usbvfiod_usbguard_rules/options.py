"""The plugin's configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from usbvfiod_core import option


@dataclass(frozen=True)
class ServerOptions:
    """Which rules hold for all devices of a server."""

    rules: tuple[Path, ...] = option((), "Files of rules, and directories whose *.conf are such files, in this order.")
    default: Literal["allow", "block"] = option("block", "What becomes of a device to which no rule applies.")
    policy: Any = field(init=False, compare=False, repr=False, default=None)
    """The `Policy`; None without files, when nothing is imported for it either."""

    def __post_init__(self) -> None:
        if self.rules:
            from .policy import Policy
            from .rules import Target

            object.__setattr__(self, "policy", Policy(self.rules, Target(self.default)))
