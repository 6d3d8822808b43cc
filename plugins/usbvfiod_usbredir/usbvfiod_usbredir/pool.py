"""Other ends that are there and that no device of ours uses: clients that have come, and those without a device now.

One that nothing is to be read of is *parked*: the loop watches its link. When something comes it is *ready*, and
whoever wants a device behind its address may take it. Somebody who waits for a device is told by `changed`.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

from usbvfiod_core import CannotHandOver, Loop, Timer
from usbvfiod_core.remote import ACCEPT_PAUSE, Adopted, Link, LinkLost, Listener, PeerError, Place
from usbvfiod_core.state import require

from .address import Address
from .peer import Peer
from .state import PoolState, WaitingState

log = logging.getLogger(__name__)

MOST_WAITING: Final = 8
"""Clients of one address that are to be heard, and as many that are to be taken. When one more comes, one of the origin
with most of them is sent away: the oldest of those to be heard, the newest of those to be taken."""
MOST_UNREAD: Final = 1 << 16
"""Bytes of what one of them has said and nobody has looked at, which are handed over."""
UNCLAIMED: Final = 60.0
"""Seconds that a client with a device waits for somebody who wants it."""
LEFT: Final = 3.0
"""Seconds that another end whose device has gone has for bringing the next one. usbredirect never does. It stays
connected, and its service starts it again, for a device that is back, only when it has ended."""


class Pool:
    """Those of one address. `take`, `listen`, `park` and `offer` are called in any thread, all else on the loop's.

    Who gives one back finds it there at once: threads that look at a device and open it follow each other faster than
    the loop takes a turn, and a second connection to a stock host is never answered.
    """

    def __init__(self, loop: Loop, address: Address, changed: Callable[[], object]) -> None:
        self._loop = loop
        self._address = address
        self._changed = changed
        self._lock = threading.Lock()
        self._ready: list[Peer] = []
        self._served = b""
        """The origin of the one that was taken last."""
        self._parked: dict[Peer, float | None] = {}
        """With the seconds that each has."""
        self._timers: dict[Peer, list[Timer]] = {}
        self._listener: Listener | None = None
        self._timeout = 10
        self._filter: str | None = None
        self._paused = False
        """Whether all of it may be another process's."""
        self.closed = False

    def take(self) -> Peer | None:
        """One that has something to say; it belongs to the caller then. It is the one that was looked at, if there is
        one. Else origins take turns: with each that says hello and nothing more, the caller waits for a while."""
        with self._lock:
            if not self._ready:
                return None
            known = (each for each in self._ready if each.description is not None)
            other = (each for each in self._ready if each.link.origin != self._served)
            peer = next(known, None) or next(other, self._ready[0])
            self._ready.remove(peer)
            self._served = peer.link.origin
            return peer

    @property
    def waits(self) -> bool:
        """Whether somebody is there who has no device to give now."""
        return bool(self._parked)

    @property
    def listens(self) -> bool:
        """Whether clients may come."""
        return self._listener is not None

    def listen(self, timeout: int, filter: str | None) -> None:
        """Begin to wait for clients, before the loop knows of it; in any thread. Raises DeviceError."""
        with self._lock:
            self._timeout, self._filter = timeout, filter
            if self._listener is not None:
                return
            self._listener = Listener(self._place, timeout)
        self._loop.call_soon_threadsafe(self._watch)

    def park(self, peer: Peer, patience: float | None = None) -> None:
        """Wait until it says something, and no longer than `patience` if that is given: then it is sent away."""
        with self._lock:
            closed = self.closed
            if not closed:
                self._parked[peer] = patience
        if closed:
            peer.link.close()
        else:
            self._loop.call_soon_threadsafe(self._wait_for, peer)

    def offer(self, peer: Peer, news: bool = True) -> None:
        """It may be taken; for a while. `news`: others are told; on the loop's thread then."""
        with self._lock:
            self._ready.insert(len(self._ready) if news else 0, peer)
            leaver = None
            if self.closed or len(self._ready) > MOST_WAITING:
                leaver = peer if self.closed else _one_of_the_most(reversed(self._ready))
                self._ready.remove(leaver)
        if leaver is not None:
            leaver.link.close()
            self._loop.call_soon_threadsafe(self._end_timers, leaver)
            if leaver is peer:
                return
        self._loop.call_soon_threadsafe(self._wait_for_somebody, peer)
        if news:
            self._changed()

    def close(self) -> None:
        """Send all away; nobody comes any more. Between `pause` and `go_on` they are left to the other process."""
        self._rest()
        with self._lock:
            self.closed = True
            peers = [*self._parked, *self._ready]
            self._parked, self._ready = {}, []
            listener, self._listener = self._listener, None
        for peer in peers:
            peer.link.forget() if self._paused else peer.link.close()
        if listener is not None:
            listener.forget() if self._paused else listener.close()

    # -- going on in another process -----------------------------------------------------------------------------------

    def pause(self) -> tuple[PoolState, dict[str, int]]:
        """What another process has to know, with the descriptors, which stay here. Until `go_on` nobody is let in,
        heard or sent away."""
        self._make_room()
        self._paused = True
        self._rest()
        fds = {}
        if self._listener is not None:
            fds["listener"] = self._listener.fileno()
        with self._lock:
            peers = [*self._parked.items(), *((peer, None) for peer in self._ready)]
            ready = set(self._ready)
        waiting: list[WaitingState] = []
        for peer, patience in peers:
            state = peer.waiting_state(ready=peer in ready, patience=patience)
            try:
                if len(state.unread) <= MOST_UNREAD:
                    fds[str(len(waiting))] = peer.link.hand_over()
                    waiting.append(state)
            except CannotHandOver:
                pass  # it ends with this process
        listener = None if self._listener is None else self._listener.state
        return PoolState(self._timeout, self._filter, listener, waiting), fds

    def take_over(self, state: PoolState, descriptors: Mapping[str, int]) -> None:
        """Go on, as a new pool, with what another process has said in `pause`, from `go_on` on. Raises StateError and
        DeviceError."""
        self._paused = True
        self._timeout, self._filter = state.timeout, state.filter
        require(len(state.waiting) <= 2 * MOST_WAITING, "waiting", f"there are {len(state.waiting)}")
        for index, each in enumerate(state.waiting):
            peer = Peer.taken_over_waiting(Link.taken_over(descriptors[str(index)]), each)
            if each.ready:
                self._ready.append(peer)
            else:
                self._parked[peer] = each.patience
        if state.listener is not None:
            adopted = Adopted(state.listener, descriptors["listener"])
            self._listener = Listener(self._place, state.timeout, adopted)

    def go_on(self) -> None:
        """Let clients in, and hear them."""
        if not self._paused:
            return
        self._paused = False
        self._let_in()
        for peer in [*self._parked]:
            self._wait_for(peer)
        for peer in self._ready:
            self._wait_for_somebody(peer)
        if self._ready:
            self._changed()

    # -- own ---------------------------------------------------------------------------------------------------------

    @property
    def _place(self) -> Place | Path:
        place = self._address.path or self._address.place
        assert place is not None
        return place

    def _watch(self) -> None:
        if self._listener is not None:
            log.info("usbredir: waiting for clients at %s", str(self._address).removeprefix("listen="))
            self._let_in()

    def _let_in(self) -> None:
        if self._listener is not None and not self._paused:
            self._loop.add_reader(self._listener.fileno(), self._came)

    def _came(self) -> None:
        """Somebody has connected."""
        if self._listener is None:
            return
        try:
            link = self._listener.accept()
        except OSError as error:
            log.warning("%s: a client cannot be accepted: %s", self._address, error.strerror)
            self._loop.remove_reader(self._listener.fileno())
            self._loop.call_later(ACCEPT_PAUSE, self._let_in)
            return
        if link is None:
            return
        self.park(Peer(link, f"the client of {self._address}", self._filter))

    def _make_room(self) -> None:
        """Send those away that are too many."""
        while len(self._parked) > MOST_WAITING:
            leaver = _one_of_the_most([*self._parked])
            log.warning("%s: more than %d clients wait, and one is sent away", self._address, MOST_WAITING)
            self._leave(leaver)
            leaver.link.close()

    def _wait_for(self, peer: Peer) -> None:
        if not self._paused:
            self._make_room()
        if self._paused or peer not in self._parked:
            return
        self._end_timers(peer)
        patience = self._parked[peer]
        self._loop.add_reader(peer.link.fileno(), self._spoke, peer)
        self._timers[peer] = timers = []
        if patience is not None:
            timers.append(self._loop.call_later(patience, self._too_late, peer))
        if self._address.listens and not peer.said_hello:
            timers.append(self._loop.call_later(self._timeout, self._mute, peer))
        if peer.has_unread or peer.link.pending:
            self._leave(peer)
            self.offer(peer)

    def _spoke(self, peer: Peer) -> None:
        if peer not in self._parked:
            return
        try:
            peer.read()
        except (LinkLost, PeerError) as error:
            log.info("%s: %s has nothing to say any more: %s", self._address, peer.name, error)
            self._leave(peer)
            peer.link.close()
        else:
            self._leave(peer)
            self.offer(peer)

    def _leave(self, peer: Peer) -> None:
        with self._lock:
            del self._parked[peer]
        self._loop.remove_reader(peer.link.fileno())
        self._end_timers(peer)

    def _too_late(self, peer: Peer) -> None:
        """It has brought no other device. Whoever connects it may do so again."""
        self._leave(peer)
        peer.link.close()
        self._changed()

    def _mute(self, peer: Peer) -> None:
        """It has not even said hello in time."""
        if not peer.said_hello:
            self._leave(peer)
            peer.link.close()

    def _wait_for_somebody(self, peer: Peer) -> None:
        if not self._paused and peer in self._ready:
            self._end_timers(peer)
            self._timers[peer] = [self._loop.call_later(UNCLAIMED, self._unclaimed, peer)]

    def _unclaimed(self, peer: Peer) -> None:
        self._timers.pop(peer, None)
        with self._lock:
            if peer not in self._ready:
                return
            self._ready.remove(peer)
        peer.link.close()

    def _end_timers(self, peer: Peer) -> None:
        for timer in self._timers.pop(peer, ()):
            timer.cancel()

    def _rest(self) -> None:
        """Hear nobody."""
        for peer in [*self._timers]:
            self._end_timers(peer)
        for peer in [*self._parked]:
            self._loop.remove_reader(peer.link.fileno())
        if self._listener is not None:
            self._loop.remove_reader(self._listener.fileno())


def _one_of_the_most(peers: Iterable[Peer]) -> Peer:
    """The first of those whose origin has most of them."""
    each = [(peer, peer.link.origin) for peer in peers]
    has = Counter(origin for _, origin in each)
    return max(each, key=lambda pair: has[pair[1]])[0]
