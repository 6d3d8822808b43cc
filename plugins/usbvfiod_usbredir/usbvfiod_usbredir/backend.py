"""The backend `usbredir`: the other ends that addresses name, and the devices behind them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from usbvfiod_core import (
    Backend,
    ConfigError,
    Device,
    DeviceError,
    DeviceInfo,
    Handover,
    Loop,
    SettingError,
    Speed,
)
from usbvfiod_core.errors import DeviceAway
from usbvfiod_core.remote import LinkLost, Patience, PeerError, connect, link_taken_over
from usbvfiod_core.remote.place import Place
from usbvfiod_core.state import pack, unpack

from .address import Address, parse_address
from .description import describe
from .device import UsbredirDevice
from .filters import accepts, parse_filter
from .options import UsbredirOptions
from .peer import Description, Peer
from .pool import LEFT, Pool
from .state import PoolState, SharedState, UsbredirState

log = logging.getLogger(__name__)


class UsbredirBackend(Backend):
    """`usbredir:HOST:PORT`, `usbredir:unix=PATH`, `usbredir:listen=HOST:PORT`, `usbredir:listen=PATH`."""

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
        peer, device = self._described(address, options, self._loop)
        peer.description = device
        self._pool(parse_address(address), self._loop).offer(peer, news=False)
        return DeviceInfo(
            self.name, address, device.vendor_id, device.product_id, device.name, device.serial, device.speed
        )

    def open(self, address: str, options: UsbredirOptions, loop: Loop) -> Device:
        peer, device = self._described(address, options, loop)
        pool = self._pool(parse_address(address), loop)
        return UsbredirDevice(
            loop,
            peer,
            name=device.name,
            speed=device.speed,
            descriptors=device.descriptors,
            configuration=device.configuration,
            options=options,
            max_streams=device.max_streams,
            free=lambda peer: pool.park(peer, LEFT),
        )

    def take_over(self, address: str, options: UsbredirOptions, loop: Loop, handover: Handover) -> Device:
        state = unpack(UsbredirState, handover.state)
        pool = self._pool(parse_address(address), loop)
        with link_taken_over(handover) as link:
            device = UsbredirDevice(
                loop,
                Peer.taken_over(link, state.peer),
                name=state.name,
                speed=state.speed,
                descriptors=state.descriptors,
                configuration=None,
                options=options,
                max_streams=state.max_streams,
                free=lambda peer: pool.park(peer, LEFT),
            )
            device.take_state(state)
        return device

    def hand_over_shared(self) -> Handover:
        pools: dict[str, PoolState] = {}
        descriptors: dict[str, int] = {}
        for where, pool in self._pools.items():
            state, own = pool.pause()
            if state.listener is not None or state.waiting:
                descriptors.update((f"{len(pools)}/{name}", fd) for name, fd in own.items())
                pools[where] = state
        return Handover(pack(SharedState(pools)), descriptors) if pools else Handover()

    def take_over_shared(self, loop: Loop, handover: Handover) -> None:
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

    def _pool(self, where: Address, loop: Loop) -> Pool:
        with self._lock:
            pool = self._pools.get(where.text)
            if pool is None:
                pool = self._pools[where.text] = Pool(self._loop or loop, where, self._tell)
            return pool

    def _tell(self) -> None:
        for changed in [*self._listeners]:
            changed()

    def _described(self, address: str, options: UsbredirOptions, loop: Loop) -> tuple[Peer, Description]:
        """The other end that an address means, with a device to give, and what the device is. Raises DeviceError."""
        where = parse_address(address)
        self.check(address, options)
        pool = self._pool(where, loop)
        if where.listens:
            pool.listen(options.timeout, options.filter)
        while (peer := pool.take()) is not None:
            try:
                return self._accepted(peer, options)
            except DeviceAway:
                pool.park(peer)
            except (LinkLost, PeerError) as error:
                peer.link.close()
                log.info("%s: a client is of no use: %s", where, error)
            except BaseException:
                peer.link.close()
                raise
        if where.listens:
            raise DeviceAway("no client has come" if not pool.waits else "no client has a device to give")
        if pool.waits:
            raise DeviceAway(f"{where} has no device to give now")
        link = connect(where.place or Place("", 0), _on_the_way(where, options))
        peer = Peer(link, str(where), options.filter)
        try:
            return self._accepted(peer, options)
        except DeviceAway:
            pool.park(peer)
            raise
        except (LinkLost, PeerError) as error:
            link.close()
            raise DeviceAway(f"{where}: {error}") from None
        except BaseException:
            link.close()
            raise

    def _accepted(self, peer: Peer, options: UsbredirOptions) -> tuple[Peer, Description]:
        if peer.description is not None:
            description, peer.description = peer.description, None
            return peer, description
        patience = Patience(options.timeout)
        device = peer.wait_for_device(patience)
        if options.filter is not None and not accepts(parse_filter(options.filter), device, peer.interfaces):
            peer.reject(patience)
            raise DeviceError(f"{peer.name}: the filter refuses {device.vendor_id:04x}:{device.product_id:04x}")
        return peer, describe(peer, patience)


def _known(address: str) -> Address:
    """As `parse_address`, of one that may be wrong."""
    try:
        return parse_address(address)
    except ConfigError:
        return Address(address)


def _on_the_way(where: Address, options: UsbredirOptions) -> UsbredirOptions:
    return options if where.path is None else replace(options, unix=where.path)
