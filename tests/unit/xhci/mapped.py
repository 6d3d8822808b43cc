"""A bus whose guest reaches the interrupters' registers in a page that it has mapped, as under Cloud Hypervisor."""

from __future__ import annotations

import mmap
from typing import Any

from usbvfiod_core.testing.bus import DirectBus
from usbvfiod_core.xhci import registers as reg


class MappedBus(DirectBus):
    """Like DirectBus, but the controller is told nothing of what is written to the page."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.controller.share(True)
        area = self.controller.shared
        assert area is not None
        self.page = mmap.mmap(area.fd, area.size, offset=area.offset)

    def read(self, offset: int, size: int = 4) -> int:
        at = offset - reg.INTERRUPTER_PAGE
        if 0 <= at < len(self.page):
            self.run()
            return int.from_bytes(self.page[at : at + size], "little")
        return super().read(offset, size)

    def write(self, offset: int, value: int, size: int = 4) -> None:
        at = offset - reg.INTERRUPTER_PAGE
        if 0 <= at < len(self.page):
            self.page[at : at + size] = value.to_bytes(size, "little")
        else:
            super().write(offset, value, size)

    def close(self) -> None:
        super().close()
        self.controller.share(False)
        self.page.close()
