"""The state of a PCI function that goes on in another process; its interrupts' eventfds are the client's."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class FunctionState:
    """A function.

    mechanisms        the ways to interrupt that the driver is offered, sorted: "intx", "msi", "msix". Those of the
                      function that goes on have to be the same
    config            configuration space, up to its last byte that is not 0
    msix_table        the vector table
    by_configuration  the driver has enabled messages in configuration space since the function was reset
    pin_masked        the client wants to hear nothing of the pin until it unmasks it
    pin_told          the client has been told that the pin is high
    """

    config: bytes
    mechanisms: list[str] = field(default_factory=list)
    msix_table: bytes = b""
    by_configuration: bool = False
    pin_masked: bool = False
    pin_told: bool = False
