"""The part of the contract of `Device` that only those can be held to that move a transfer bit by bit."""

from __future__ import annotations

from ...usb.device import Device
from ...usb.transfer import TransferStatus
from ..device_bench import DeviceBench
from .enumeration import configure
from .on_bench import OnBench

SLOW_LENGTH = 200_000


class SlowDeviceConformance(OnBench):
    """Cancellation in the middle of a transfer. A subclass writes `make_device` and `moved`.

    slow_endpoints    addresses of bulk or interrupt endpoints where a transfer of SLOW_LENGTH bytes moves bit by bit,
                      and does not come to its end while nothing happens to the device
    """

    slow_endpoints: tuple[int, ...]

    def moved(self, device: Device, endpoint: int) -> int:
        """How many bytes the device has taken from one of `slow_endpoints`, or given to it, since it was made."""
        raise NotImplementedError

    def test_a_cancelled_transfer_tells_what_it_has_moved(self, bench: DeviceBench) -> None:
        """The driver goes on behind that: what it is told too little, comes twice."""
        interfaces = configure(bench).interfaces
        for address in self.slow_endpoints:
            endpoint = next(each for setting in interfaces for each in setting.endpoints if each.address == address)
            data: int | bytes = SLOW_LENGTH if endpoint.is_in else bytes(SLOW_LENGTH)
            told = 0
            for _ in range(3):
                transfers = [bench.submit(address, endpoint.type, data) for _ in range(3)]
                bench.loop.advance(0.05)
                for transfer in reversed(transfers):
                    bench.cancel(transfer)
                    bench.wait(transfer)
                assert transfers[0].status is TransferStatus.CANCELLED, "it has come to its end after all"
                assert [transfer.actual for transfer in transfers[1:]] == [0, 0], "it is not its turn"
                told += transfers[0].actual
                assert told == self.moved(bench.device, address) > 0
