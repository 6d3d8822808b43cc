"""The backend `usbredir`: the other ends that addresses name, and the devices behind them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from usbvfiod_core import (
    Backend,
    ConfigError,
    Device,
    DeviceInfo,
    Handover,
    Loop,
    SettingError,
    Speed,
)
from usbvfiod_core.state import pack, unpack
from usbvfiod_core.usb.descriptors import DeviceDescriptor

from .address import Address, parse_address
from .options import UsbredirOptions

if TYPE_CHECKING:
    from .pool import Pool
    from .state import PoolState


class UsbredirBackend(Backend):
    """`usbredir:HOST:PORT`, `usbredir:unix=PATH`, `usbredir:listen=HOST:PORT`, `usbredir:listen=PATH`.

    What speaks the protocol is imported with the first device: many have the plugin, and none of another machine.
    """

    name = "usbredir"
    options = UsbredirOptions

    def __init__(self) -> None:
        self._pools: dict[str, Pool] = {}
        self._lock = threading.Lock()
        self._loop: Loop | None = None
        self._listeners: list[Callable[[], object]] = []

    def list_devices(self) -> list[DeviceInfo]:
        """None: what is behind an address shows when it is connected, and stock hosts serve one connection."""
        return []

    def check(self, address: str, options: UsbredirOptions) -> Speed | None:
        where = parse_address(address)
        if where.listens:
            for key in ("unix", "command", "tls"):
                if getattr(options, key):
                    raise SettingError(key, f"{key} is a way to the other end; {where} waits for it to come")
        elif where.path is not None and not options.direct:
            raise SettingError("unix", f"{where} is the way to the other end already")
        return None

    def look_up(self, address: str, options: UsbredirOptions) -> DeviceInfo | None:
        if self._loop is None:
            return None  # no server: looking would use up the connection
        from .opening import look_at

        where = self._checked(address, options)
        found = look_at(self._pool(where, self._loop), where, options)
        device = DeviceDescriptor.unpack(found.descriptors)
        return DeviceInfo(
            self.name, address, device.vendor_id, device.product_id, found.name, found.serial, found.speed
        )

    def open(self, address: str, options: UsbredirOptions, loop: Loop) -> Device:
        from .opening import open_device

        where = self._checked(address, options)
        return open_device(self._pool(where, loop), where, options, loop)

    def take_over(self, address: str, options: UsbredirOptions, loop: Loop, handover: Handover) -> Device:
        from .opening import take_over

        return take_over(self._pool(parse_address(address), loop), options, loop, handover)

    def hand_over_shared(self) -> Handover:
        from .state import SharedState

        pools: dict[str, PoolState] = {}
        descriptors: dict[str, int] = {}
        for where, pool in self._pools.items():
            state, own = pool.pause()
            if state.listener is not None or state.waiting:
                descriptors.update((f"{len(pools)}/{name}", fd) for name, fd in own.items())
                pools[where] = state
        return Handover(pack(SharedState(pools)), descriptors) if pools else Handover()

    def take_over_shared(self, loop: Loop, handover: Handover) -> None:
        from .state import SharedState

        for number, (where, state) in enumerate(unpack(SharedState, handover.state).pools.items()):
            prefix = f"{number}/"
            own = {
                name.removeprefix(prefix): fd for name, fd in handover.descriptors.items() if name.startswith(prefix)
            }
            self._pool(parse_address(where), loop).take_over(state, own)

    def go_on_shared(self) -> None:
        for pool in self._pools.values():
            pool.go_on()

    def watch(self, loop: Loop, changed: Callable[[], object]) -> Callable[[], object]:
        self._loop = loop
        self._listeners.append(changed)

        def stop() -> None:
            self._listeners.remove(changed)
            with self._lock:
                pools, self._pools = list(self._pools.values()), {}
            for pool in pools:
                pool.close()
            self._loop = None

        return stop

    def opens(self, address: str, options: UsbredirOptions) -> Iterable[Path]:
        path = _known(address).path
        return [*super().opens(address, options), *([path] if path is not None else [])]

    def connects(self, address: str, options: UsbredirOptions) -> Iterable[int]:
        where = _known(address)
        return [where.place.port] if where.place is not None and not where.listens and options.direct else []

    def listens(self, address: str, options: UsbredirOptions) -> Iterable[int]:
        where = _known(address)
        return [where.place.port] if where.place is not None and where.listens else []

    # -- own ---------------------------------------------------------------------------------------------------------

    def _checked(self, address: str, options: UsbredirOptions) -> Address:
        self.check(address, options)
        return parse_address(address)

    def _pool(self, where: Address, loop: Loop) -> Pool:
        from .pool import Pool

        with self._lock:
            pool = self._pools.get(where.text)
            if pool is None:
                pool = self._pools[where.text] = Pool(self._loop or loop, where, self._tell)
            return pool

    def _tell(self) -> None:
        for changed in [*self._listeners]:
            changed()


def _known(address: str) -> Address:
    """As `parse_address`, of one that may be wrong."""
    try:
        return parse_address(address)
    except ConfigError:
        return Address(address)
