"""The flash drive of `virtual:flash` at SuperSpeed, and of `transport=uas`."""

from __future__ import annotations

from collections.abc import Sequence

from ..usb.descriptors import Configuration, Interface
from ..usb.device import Loop
from ..usb.handover import CannotHandOver
from ..usb.requests import SetupPacket
from ..usb.speed import Speed
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
        self._uas = Uas(self.disk, loop, self.serve, self._uas_back)
        self._chosen = False

    def describe(self, speed: Speed) -> list[Configuration]:
        [configuration] = super().describe(speed)
        if speed == Speed.FULL:
            return [configuration]
        setting = Interface(0, *INTERFACE_CLASS, pipes(speed), alternate=1)
        return [Configuration((*configuration.interfaces, setting))]

    def process(self, endpoint: VirtualEndpoint) -> None:
        if self._chosen:
            self._uas.process(endpoint)
        else:
            super().process(endpoint)

    def restart(self, endpoints: Sequence[VirtualEndpoint]) -> None:
        self._chosen = self.alternates.get(0) == 1
        if self._chosen:
            self.suspend_transport()
            self._uas.start(self.endpoints, streams=self.max_streams > 0, held=self.is_working)
        else:
            self._uas.stop()
            self.hold(self._uas.working > 0)
            super().restart(endpoints)

    def control_request(self, setup: SetupPacket, data: bytes) -> bytes | None:
        return None if self._chosen else super().control_request(setup, data)

    def closed(self) -> None:
        self._uas.stop()
        super().closed()

    def given_back(self) -> None:
        if not self._uas.working:
            super().given_back()

    def thread_back(self) -> None:
        self._uas.release()

    def uas_state(self) -> UasState | None:
        return uas_state(self._uas) if self._chosen else None

    def take_uas_state(self, state: UasState) -> None:
        if not self._chosen:
            raise CannotHandOver(f"{self.name} has not chosen UAS, and has commands of it")
        take_uas_state(self._uas, state)

    @property
    def is_busy(self) -> bool:
        return super().is_busy or self._uas.working > 0

    def _uas_back(self) -> None:
        if not self._closed:
            if not self._chosen:
                self.hold(False)
        elif not self.is_working:
            super().given_back()
        self.settled()
