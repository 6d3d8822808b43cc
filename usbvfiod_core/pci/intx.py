"""The interrupt pin (PCI 3.0 2.2.6), as a client of VFIO takes part in it.

The pin is a level, and an eventfd only says that it has risen. So the client is told once and the pin is masked from
then on, until it unmasks: VFIO's AUTOMASKED. It does that when the guest has done something about the interrupt (QEMU
and Cloud Hypervisor: at the next access to a BAR; with KVM: when the guest ends the interrupt). If the level is high
then, it is told again; whether it has been low in between does not matter.
"""

from __future__ import annotations

from collections.abc import Callable

Target = Callable[[], None]
"""Tells the client; never blocks, never raises."""


class Intx:
    """INTA. `level` says whether the function asserts it now; it is only asked when the answer matters."""

    def __init__(self, level: Callable[[], bool]) -> None:
        self._level = level
        self._target: Target | None = None
        self._enabled = False
        self._masked = False
        self._told = False

    @property
    def target(self) -> Target | None:
        """Who is told; None while the client has not asked to be."""
        return self._target

    def raised(self) -> None:
        """The level is high: tell the client, unless it knows."""
        target = self._target
        if target is not None and self._enabled and not self._masked and not self._told:
            self._told = True
            target()

    def assign(self, target: Target | None) -> None:
        """Set or take away who is told. A new one has not been told of anything yet."""
        self._target = target
        self._told = False
        self._look()

    def enable(self, enabled: bool) -> None:
        """Whether the pin is in use: no message is, and the command register does not disable it (bit 10)."""
        if enabled and not self._enabled:
            self._told = False
        self._enabled = enabled
        self._look()

    def mask(self) -> None:
        """The client wants to hear nothing until `unmask`."""
        self._masked = True

    def unmask(self) -> None:
        """The client wants to hear of the next interrupt, which may be the one that it has heard of."""
        self._masked = self._told = False
        self._look()

    def reset(self, *, enabled: bool) -> None:
        """The function is reset, so the level is about to be low. Target and mask stay, they are the client's."""
        self._enabled = enabled
        self._told = False

    @property
    def masked(self) -> bool:
        """Whether the client wants to hear nothing."""
        return self._masked

    @property
    def told(self) -> bool:
        """Whether the client knows of the level, and has not unmasked since."""
        return self._told

    def take_over(self, *, enabled: bool, masked: bool, told: bool) -> None:
        """Go on where another process was; nothing is told now."""
        self._enabled, self._masked, self._told = enabled, masked, told

    def _look(self) -> None:
        if self._target is not None and self._enabled and self._level():
            self.raised()
