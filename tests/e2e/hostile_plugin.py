"""A plugin whose devices answer as their addresses say, and never as they should. A plugin file, used by tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from usbvfiod_core import Backend, Speed, Transfer, TransferStatus, TransferType, hookimpl
from usbvfiod_core.usb.descriptors import Configuration, Endpoint, Interface
from usbvfiod_core.virtual.device import VirtualDevice

ENDPOINTS = (Endpoint(0x81, TransferType.BULK, 512), Endpoint(0x01, TransferType.BULK, 512))
LATE = 1.5
"""Seconds: longer than the controller waits for what was cancelled."""


class Hostile(VirtualDevice):
    """`way` is a function of `Ways`."""

    product = "Hostile device"

    def __init__(self, way: str, loop: Any) -> None:
        super().__init__(Speed.HIGH)
        self.answer: Callable[[Any, Any], None] = getattr(Ways, way)
        self.way = way
        self.loop = loop
        self.told: Any = None

    def describe(self, speed: Speed) -> list[Configuration]:
        return [Configuration((Interface(0, class_code=0xFF, endpoints=ENDPOINTS),))]

    def attach(self, events: Any) -> None:
        super().attach(events)
        self.told = events

    def route(self, endpoint: int, type: TransferType) -> Callable[[Transfer], None]:
        return self.submit

    def submit(self, transfer: Transfer) -> None:
        if transfer.type is TransferType.BULK:
            self.answer(self, transfer)
        else:
            super().submit(transfer)

    def cancel(self, transfer: Transfer) -> None:
        if self.way == "raises":
            raise RuntimeError("I will not stop")
        if transfer.type is not TransferType.BULK:
            super().cancel(transfer)

    def reset(self, done: Callable[[], object]) -> None:
        super().reset(done)
        if self.way == "raises":
            raise RuntimeError("I will not begin anew")

    def closed(self) -> None:
        if self.way == "raises":
            raise RuntimeError("I stay")


class Ways:
    """What becomes of a bulk transfer."""

    @staticmethod
    def late(device: Any, transfer: Any) -> None:
        windows = list(transfer.windows)

        def answer() -> None:
            for window in windows:
                if transfer.is_in:
                    window[:] = b"L" * len(window)
            transfer.complete(TransferStatus.COMPLETED, transfer.length)

        device.loop.call_later(LATE, answer)

    @staticmethod
    def never(device: Any, transfer: Any) -> None:
        pass

    @staticmethod
    def twice(device: Any, transfer: Any) -> None:
        for _ in range(3):
            transfer.complete(TransferStatus.COMPLETED, transfer.length)
        device.loop.call_soon(transfer.complete, TransferStatus.STALL)

    @staticmethod
    def more(device: Any, transfer: Any) -> None:
        transfer.complete(TransferStatus.COMPLETED, transfer.length + 1000)

    @staticmethod
    def less(device: Any, transfer: Any) -> None:
        transfer.complete(TransferStatus.COMPLETED, -1)

    @staticmethod
    def much(device: Any, transfer: Any) -> None:
        transfer.complete(TransferStatus.COMPLETED, 1 << 70)

    @staticmethod
    def status(device: Any, transfer: Any) -> None:
        transfer.complete("well done", 8)

    @staticmethod
    def length(device: Any, transfer: Any) -> None:
        transfer.complete(TransferStatus.COMPLETED, "all of it")

    @staticmethod
    def missed(device: Any, transfer: Any) -> None:
        transfer.complete(TransferStatus.MISSED)

    @staticmethod
    def windows(device: Any, transfer: Any) -> None:
        transfer.windows.clear()
        transfer.length = 1 << 40
        transfer.complete(TransferStatus.COMPLETED, 1 << 40)

    @staticmethod
    def released(device: Any, transfer: Any) -> None:
        for window in transfer.windows:
            window.release()
        if transfer.is_in:
            transfer.complete(TransferStatus.COMPLETED, transfer.length)

    @staticmethod
    def parts(device: Any, transfer: Any) -> None:
        transfer.complete(TransferStatus.COMPLETED, 0.5)

    @staticmethod
    def outcomes(device: Any, transfer: Any) -> None:
        transfer.complete(["well", "done"], transfer.length)

    @staticmethod
    def afterwards(device: Any, transfer: Any) -> None:
        """The first answer comes last, when all the others have been changed."""
        device.kept = [*getattr(device, "kept", ()), transfer]
        if len(device.kept) == 4:
            for each in reversed(device.kept):
                each.complete(TransferStatus.COMPLETED, each.length)
                each.length, each.actual, each.status = -1, "all of it", {}
                each.windows = each.packets = each.endpoint = each.type = each.on_complete = None
            device.kept.clear()

    @staticmethod
    def raises(device: Any, transfer: Any) -> None:
        raise RuntimeError("not with me")

    @staticmethod
    def talks(device: Any, transfer: Any) -> None:
        for number in range(1000):
            device.told.note(f"\x1b[31m{number}\n" * 50)
        transfer.complete(TransferStatus.ERROR)

    @staticmethod
    def wakes(device: Any, transfer: Any) -> None:
        for _ in range(1000):
            device.told.remote_wakeup()
        transfer.complete(TransferStatus.COMPLETED, 0)

    @staticmethod
    def leaves(device: Any, transfer: Any) -> None:
        device.told.disconnected()
        device.told.disconnected()
        transfer.complete(TransferStatus.COMPLETED, 0)


class HostileBackend(Backend):
    name = "hostile"

    def list_devices(self) -> list[Any]:
        return []

    def open(self, address: str, options: Any, loop: Any) -> Hostile:
        return Hostile(address, loop)


@hookimpl
def usbvfiod_register_backends(register: Callable[[Backend], None]) -> None:
    register(HostileBackend())
