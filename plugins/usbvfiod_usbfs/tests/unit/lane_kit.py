"""A lane on a kernel that is a Python object."""

from __future__ import annotations

from fake_usbfs import FakeKernel, urbs_of
from usbvfiod_usbfs.lane import Lane
from usbvfiod_usbfs.urb import Urbs

from usbvfiod_core.testing.device_bench import WatchedTransfer
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.transfer import Transfer, TransferStatus, TransferType

BULK = TransferType.BULK
CUT = 64 << 10


class LaneKit:
    """A lane; what it completes is in `ended`."""

    def __init__(self, kernel: FakeKernel, loop: StepLoop, packet_size: int = 0) -> None:
        self.kernel, self.loop = kernel, loop
        self.lost = 0
        self.urbs: Urbs = urbs_of(kernel, loop, self._lost)
        self.lane = Lane(self.urbs, CUT, packet_size)
        self.ended: list[Transfer] = []

    def _lost(self) -> None:
        self.lost += 1

    def submit(
        self,
        data: bytes | int,
        *,
        endpoint: int | None = None,
        pieces: tuple[int, ...] = (),
        type: TransferType = BULK,
        setup: SetupPacket | None = None,
        stream_id: int = 0,
    ) -> WatchedTransfer:
        address = (0x81 if isinstance(data, int) else 0x02) if endpoint is None else endpoint
        transfer = WatchedTransfer(address, type, data, setup=setup, pieces=pieces, stream_id=stream_id)
        transfer.on_complete = self.ended.append
        self.lane.start(transfer)
        return transfer

    def finish(self, *results: tuple[int, bytes | int | None]) -> None:
        """End the oldest URBs and take them back."""
        for status, data in results or [(0, None)]:
            self.kernel.finish(self.kernel.inflight[0], status, data)
        self.loop.run_ready()


def result(transfer: WatchedTransfer) -> tuple[TransferStatus | None, int]:
    """How a transfer ended, after a look at everything else about it."""
    assert transfer.faults == []
    assert transfer.completions == (transfer.status is not None)
    return transfer.status, transfer.actual
