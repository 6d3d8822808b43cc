"""The flash drive of `virtual:flash` at SuperSpeed, and of `transport=uas`."""

from __future__ import annotations

from collections.abc import Sequence

from ..usb.descriptors import Configuration, Interface
from ..usb.device import Loop
from ..usb.handover import CannotHandOver
from ..usb.requests import SetupPacket
from ..usb.speed import Speed
from .bulk_only import BulkOnly
from .endpoint import VirtualEndpoint
from .flash import Flash
from .image import Image
from .transport_state import UasState
from .uas import Uas
from .uas_handover import take_uas_state, uas_state
from .uas_interface import INTERFACE_CLASS, STREAMS, pipes

PRODUCT_ID = 0x0011


class UasFlash(Flash):
    """A flash drive with both transports: alternate setting 0 is bulk-only, 1 is UAS."""

    product_id = PRODUCT_ID

    def __init__(
        self,
        image: Image,
        loop: Loop,
        *,
        speed: Speed = Speed.SUPER,
        serial: str = "",
        removable: bool = True,
        stalls: bool = False,
    ) -> None:
        super().__init__(image, loop, speed=speed, serial=serial, removable=removable, stalls=stalls)
        self.max_streams = STREAMS if speed.is_usb3 else 0
        self._uas = Uas(self.disk, loop, self.serve, self._thread_back)
        self._transport: BulkOnly | Uas = self.bulk_only

    def describe(self, speed: Speed) -> list[Configuration]:
        [configuration] = super().describe(speed)
        if speed == Speed.FULL:
            return [configuration]
        setting = Interface(0, *INTERFACE_CLASS, pipes(speed), alternate=1)
        return [Configuration((*configuration.interfaces, setting))]

    def process(self, endpoint: VirtualEndpoint) -> None:
        self._transport.process(endpoint)

    def restart(self, endpoints: Sequence[VirtualEndpoint]) -> None:
        if self.alternates.get(0) == 1:
            self._transport = self._uas
            self.bulk_only.stop()
            self._uas.start(self.endpoints, streams=self.max_streams > 0, held=self.bulk_only.working)
        else:
            self._transport = self.bulk_only
            self._uas.stop()
            self.bulk_only.start(self.endpoints, held=self._uas.working > 0)
            if not endpoints:
                self.disk.reset()

    def control_request(self, setup: SetupPacket, data: bytes) -> bytes | None:
        return None if self._chosen else super().control_request(setup, data)

    def closed(self) -> None:
        self._uas.stop()
        super().closed()

    @property
    def is_busy(self) -> bool:
        return self.bulk_only.working or self._uas.working > 0

    def uas_state(self) -> UasState | None:
        return uas_state(self._uas) if self._chosen else None

    def take_uas_state(self, state: UasState) -> None:
        if not self._chosen:
            raise CannotHandOver(f"{self.name} has not chosen UAS, and has commands of it")
        take_uas_state(self._uas, state)

    @property
    def _chosen(self) -> bool:
        """Whether the driver has chosen UAS."""
        return self._transport is self._uas

    def _thread_back(self) -> None:
        if not self.bulk_only.working:
            self._uas.release()
        if not self._uas.working:
            self.bulk_only.release()
        super()._thread_back()
