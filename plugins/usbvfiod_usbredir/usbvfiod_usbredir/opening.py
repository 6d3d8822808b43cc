"""Opening a device: the other end that an address means, with a device to give, and what that device is; in threads."""

from __future__ import annotations

import logging
from dataclasses import replace

from usbvfiod_core import Device, DeviceAway, DeviceError, DeviceWithheld, Handover, Loop
from usbvfiod_core.host.description import Description
from usbvfiod_core.remote import LinkLost, Patience, PeerError, Place, connect, link_taken_over
from usbvfiod_core.state import unpack

from .address import Address
from .description import describe
from .device import UsbredirDevice
from .filters import accepts, parse_filter
from .options import UsbredirOptions
from .peer import Peer
from .pool import LEFT, Pool
from .state import UsbredirState

log = logging.getLogger(__name__)


def look_at(pool: Pool, where: Address, options: UsbredirOptions) -> Description:
    """What the device is, which whoever opens it next gets. Raises DeviceError."""
    peer, description = _found(pool, where, options)
    peer.description = description
    pool.offer(peer, news=False)
    return description


def open_device(pool: Pool, where: Address, options: UsbredirOptions, loop: Loop) -> Device:
    """Raises DeviceError."""
    peer, description = _found(pool, where, options)
    return UsbredirDevice(loop, peer, description, options, free=lambda peer: pool.park(peer, LEFT))


def take_over(pool: Pool, options: UsbredirOptions, loop: Loop, handover: Handover) -> Device:
    """As `Backend.take_over`."""
    state = unpack(UsbredirState, handover.state)
    with link_taken_over(handover) as link:
        peer = Peer.taken_over(link, state.peer)
        description = Description(
            name=state.name, speed=state.speed, descriptors=state.descriptors, max_streams=state.max_streams
        )
        device = UsbredirDevice(loop, peer, description, options, free=lambda peer: pool.park(peer, LEFT))
        device.take_state(state)
    return device


# -- own ---------------------------------------------------------------------------------------------------------------


def _found(pool: Pool, where: Address, options: UsbredirOptions) -> tuple[Peer, Description]:
    if where.listens:
        pool.listen(options.timeout, options.filter)
    while (peer := pool.take()) is not None:
        try:
            return _accepted(peer, options)
        except DeviceAway:
            _park(pool, peer)
        except (LinkLost, PeerError) as error:
            peer.link.close()
            log.info("%s: a client is of no use: %s", where, error)
        except BaseException:
            peer.link.close()
            raise
    if pool.waits:
        # It says when it has one, or is sent away; what is tried behind that is the first try.
        raise DeviceWithheld(
            "no client has a device to give" if where.listens else f"{where} has no device to give now"
        )
    if where.listens:
        raise DeviceAway("no client has come")
    link = connect(where.place or Place("", 0), _on_the_way(where, options))
    peer = Peer(link, str(where), options.filter)
    try:
        return _accepted(peer, options)
    except DeviceAway:
        _park(pool, peer)
        raise
    except (LinkLost, PeerError) as error:
        link.close()
        raise DeviceAway(f"{where}: {error}") from None
    except BaseException:
        link.close()
        raise


def _accepted(peer: Peer, options: UsbredirOptions) -> tuple[Peer, Description]:
    if peer.description is not None:
        description, peer.description = peer.description, None
        return peer, description
    patience = Patience(options.timeout)
    device = peer.wait_for_device(patience)
    if options.filter is not None and not accepts(parse_filter(options.filter), device, peer.interfaces):
        peer.reject(patience)
        raise DeviceError(f"{peer.name}: the filter refuses {device.vendor_id:04x}:{device.product_id:04x}")
    return peer, describe(peer, patience)


def _park(pool: Pool, peer: Peer) -> None:
    """It has no device now. It may still have its first one, and has some time for the next after that."""
    pool.park(peer, LEFT if peer.had_device else None)


def _on_the_way(where: Address, options: UsbredirOptions) -> UsbredirOptions:
    return options if where.path is None else replace(options, unix=where.path)
