"""Which way an interrupt takes to the client: MSI-X, MSI or the interrupt pin (PCI 3.0 6.8, 2.2.6; xHCI 1.2 4.17).

The driver decides by the enable bits in configuration space, MSI-X before MSI before the pin, and the client by what it
has assigned eventfds to; they do so in either order. Nothing is kept here that could get lost on the way from one
mechanism to the other: an interrupt that could not be sent stays pending with the controller (IMAN.IP), and whenever
something has changed here the controller is asked to deliver what is pending. So the Pending Bit Array and the status
register's bit are looked up there as well.

A message is a write to memory, so none is sent while the command register forbids the function to be bus master. The
client keeps the tables of addresses and of masks to itself: what it does not want to hear of has no eventfd.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum
from typing import Final, NamedTuple, Protocol

from ..state import require
from .intx import Intx, Target
from .state import FunctionState
from .vfio import INTX_IRQ, MSI_IRQ, MSIX_IRQ

MAX_VECTORS: Final = 32
"""Messages that MSI has at most (PCI 3.0 6.8.1.3), and the interrupters that use them."""


class Mechanism(Enum):
    """How a function interrupts; the value is the name that users give it."""

    MSIX = "msix"
    MSI = "msi"
    INTX = "intx"


ALL: Final = frozenset(Mechanism)


class Enables(NamedTuple):
    """What a driver has set in configuration space. `messages` is how many MSI vectors it has allocated."""

    msix: bool = False
    msi: bool = False
    messages: int = 1
    intx_disabled: bool = False
    bus_master: bool = False


class InterruptSource(Protocol):
    """What interrupts: the controller, or a test's stand-in."""

    @property
    def pending_interrupts(self) -> int:
        """Bit n: interrupter n wants to interrupt and is allowed to."""
        ...

    def deliver_interrupts(self) -> None:
        """Call `Interrupts.signal` for each of them; one for which it returns True is not pending any more."""
        ...


class Interrupts:
    """The interrupts of one function, which offers `mechanisms` and has `vectors` interrupters, a power of two.

    `signal` is for the source, which is bound once. The rest are the function's and the client's sides.
    """

    def __init__(self, vectors: int, mechanisms: Collection[Mechanism] = ALL) -> None:
        if not 1 <= vectors <= MAX_VECTORS or vectors & vectors - 1:
            raise ValueError(f"a power of two of interrupt vectors, at most {MAX_VECTORS}")
        if not mechanisms:
            raise ValueError("a function needs a way to interrupt")
        self.vectors: Final = vectors
        self.mechanisms: Final = frozenset(mechanisms)
        self._source: InterruptSource | None = None
        self._intx: Final = Intx(lambda: bool(self._pending))
        self._targets: Final[dict[Mechanism, list[Target | None]]] = {
            each: [None] * vectors for each in (Mechanism.MSIX, Mechanism.MSI)
        }
        self._enables = Enables()
        self._by_configuration = False
        self._in_force = Mechanism.INTX
        self._routes: list[Target | None] = [None] * vectors

    def bind(self, source: InterruptSource) -> None:
        """Say who interrupts."""
        self._source = source

    # -- the source's side -------------------------------------------------------------------------------------------

    def signal(self, interrupter: int) -> bool:
        """An interrupter wants to interrupt: tell the client. True: a message was sent, and it is done with; False: it
        stays pending, because the pin is a level or because nobody hears messages yet."""
        target = self._routes[interrupter]
        if target is not None:
            target()
            return True
        if self._in_force is Mechanism.INTX:
            self._intx.raised()
        return False

    # -- the function's side -----------------------------------------------------------------------------------------

    @property
    def pin_asserted(self) -> bool:
        """The status register's Interrupt Status: pending, and not a matter of messages (PCI 3.0 6.2.3)."""
        return self._in_force is Mechanism.INTX and Mechanism.INTX in self.mechanisms and bool(self._pending)

    @property
    def pending_messages(self) -> int:
        """The Pending Bit Array of MSI-X: bit n is vector n."""
        return self._pending if self._in_force is Mechanism.MSIX else 0

    def configure(self, enables: Enables) -> None:
        """Configuration space says this now."""
        if enables != self._enables:
            self._enables = enables
            self._by_configuration |= enables.msix or enables.msi
            self._update()

    def reset(self) -> None:
        """DEVICE_RESET: configuration space is as at power-on, and the source is about to be. Targets stay."""
        self._enables = Enables()
        self._by_configuration = False
        self._route()
        self._intx.reset(enabled=self._in_force is Mechanism.INTX)

    # -- the client's side -------------------------------------------------------------------------------------------

    def count(self, index: int) -> int:
        """Vectors of a VFIO interrupt index."""
        mechanism = _MECHANISMS.get(index)
        if mechanism not in self.mechanisms:
            return 0
        return 1 if mechanism is Mechanism.INTX else self.vectors

    def assign(self, index: int, vector: int, target: Target | None) -> None:
        """Set or take away who is told of a vector, which the index has. What is pending is told at once."""
        mechanism = _MECHANISMS[index]
        if mechanism is Mechanism.INTX:
            self._intx.assign(target)
        else:
            self._targets[mechanism][vector] = target
        self._update()

    def mask(self) -> None:
        """Do not tell of the pin until `unmask`."""
        self._intx.mask()

    def unmask(self) -> None:
        """Tell of the pin again, at once if it is asserted."""
        self._intx.unmask()

    # -- going on in another process ---------------------------------------------------------------------------------

    def saved_state(self, into: FunctionState) -> None:
        """Add what another process needs to go on with them, beside configuration space and targets."""
        into.mechanisms = sorted(each.value for each in self.mechanisms)
        into.by_configuration = self._by_configuration
        into.pin_masked, into.pin_told = self._intx.masked, self._intx.told

    def take_over(self, saved: FunctionState, enables: Enables) -> None:
        """Go on where another process was. The targets have been assigned; what is pending is told when the controller
        goes on. Raises StateError."""
        offered = sorted(each.value for each in self.mechanisms)
        require(saved.mechanisms == offered, "mechanisms", f"the function offers {', '.join(offered)}")
        self._enables = enables
        self._by_configuration = saved.by_configuration
        self._route()
        enabled = self._in_force is Mechanism.INTX and not enables.intx_disabled
        self._intx.take_over(enabled=enabled, masked=saved.pin_masked, told=saved.pin_told)

    # -- own ---------------------------------------------------------------------------------------------------------

    @property
    def _pending(self) -> int:
        return self._source.pending_interrupts if self._source is not None else 0

    def _update(self) -> None:
        """Something has changed: find the way again, and let what is pending take it."""
        self._route()
        self._intx.enable(self._in_force is Mechanism.INTX and not self._enables.intx_disabled)
        if self._source is not None:
            self._source.deliver_interrupts()

    def _route(self) -> None:
        mechanism = self._in_force = self._choose()
        enables, vectors = self._enables, self.vectors
        self._routes = [None] * vectors
        if mechanism is not Mechanism.INTX and enables.bus_master:
            targets = self._targets[mechanism]
            used = min(enables.messages, vectors) if mechanism is Mechanism.MSI and enables.msi else vectors
            self._routes = [targets[number % used] for number in range(vectors)]

    def _choose(self) -> Mechanism:
        """MSI-X before MSI before the pin, as the driver has enabled them. A client that never has them enabled goes
        by its eventfds alone, which is all that VFIO in the kernel asks of a program."""
        if self._enables.msix:
            return Mechanism.MSIX
        if self._enables.msi:
            return Mechanism.MSI
        if not self._by_configuration and self._intx.target is None:
            for mechanism, targets in self._targets.items():
                if any(target is not None for target in targets):
                    return mechanism
        return Mechanism.INTX


_MECHANISMS: Final = {INTX_IRQ: Mechanism.INTX, MSI_IRQ: Mechanism.MSI, MSIX_IRQ: Mechanism.MSIX}
