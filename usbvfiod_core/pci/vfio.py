"""The indices by which VFIO, and so vfio-user, names the regions and interrupts of a PCI device (linux/vfio.h)."""

from __future__ import annotations

from typing import Final

# Regions (vfio_pci_region_info).
BAR0_REGION: Final = 0
BAR5_REGION: Final = 5
ROM_REGION: Final = 6
CONFIG_REGION: Final = 7
VGA_REGION: Final = 8
NUM_REGIONS: Final = 9

# Interrupts (vfio_pci_irq_info).
INTX_IRQ: Final = 0
MSI_IRQ: Final = 1
MSIX_IRQ: Final = 2
ERR_IRQ: Final = 3
REQ_IRQ: Final = 4
NUM_IRQS: Final = 5
