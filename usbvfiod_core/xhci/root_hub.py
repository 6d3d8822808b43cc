"""The root hub: which devices are plugged into which ports, and what the ports want done (4.19)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

from ..errors import ConfigError
from ..state import require
from ..usb.device import Device, Loop
from ..usb.guarded import tell
from ..usb.transfer import TransferType
from . import spec
from .endpoint import Endpoint
from .interrupters import Interrupters
from .journal import Journal
from .ports import Port
from .registers import RegisterFile
from .slot import when_all
from .slot_table import SlotTable
from .state import PortState
from .statistics import EndpointCounters, EndpointStatistics, describe
from .xhc import Tap

MISSED_SECONDS: Final = 5.0
"""Time that a driver has to disable the next slot of a device that has not come from another process, until another
device appears at its port. Linux goes through the ports, and takes a fraction of a second for each. If it sees a
SuperSpeed device there already, it asks the one that is gone whether it is still the same, and waits for the answer
for as long as this."""
_PAUSE: Final = 0.02
"""Seconds between two looks at such slots."""


class HubHost(Protocol):
    """What the root hub needs of the controller."""

    @property
    def running(self) -> bool: ...

    table: SlotTable
    interrupters: Interrupters
    """Where port events are published."""

    def work_due(self) -> None:
        """Call `RootHub.flush` soon."""
        ...

    @property
    def loop(self) -> Loop: ...

    @property
    def journal(self) -> Journal: ...

    def microframe(self) -> int:
        """MFINDEX now."""
        ...

    def report_ended(self, endpoints: list[Endpoint]) -> None:
        """Tell the driver which transfers of these endpoints have ended well, unless guest memory has to be left
        alone now."""
        ...


class _Events:
    """What a device tells of itself, bound to the port it is plugged into."""

    def __init__(self, hub: RootHub, port: Port, device: Device) -> None:
        self._hub = hub
        self._port = port
        self._device = device

    def disconnected(self) -> None:
        if self._port.occupant is self._device:
            self._hub.unplug(self._port.port_id)

    def remote_wakeup(self) -> None:
        if self._port.device is self._device:
            self._port.remote_wakeup()

    def note(self, text: str) -> None:
        self._hub.noted(self._device, text)

    def microframe(self) -> int:
        return self._hub.microframe()


class RootHub:
    """`ports[port_id - 1]`: USB 2 ports from port 1 on, then USB 3 ports.

    `leaving` and `unplugged`, set by the owner, are called with port id and device when a device is unplugged, by
    whomever: when the port is empty, and when the transfers are back and the device was closed and has given back all.
    `noted` is called with a device and what it has told with `DeviceEvents.note`.
    `withholding`: the driver sees all ports empty, whatever is or will be plugged in; see `withhold`.
    """

    def __init__(self, registers: RegisterFile, usb2_ports: int, usb3_ports: int, host: HubHost) -> None:
        self._host = host
        self.dirty: list[Port] = []
        """Ports for which `flush` is wanted; always the same list."""
        self.ports = [
            Port(port_id, port_id > usb2_ports, registers, self) for port_id in range(1, usb2_ports + usb3_ports + 1)
        ]
        self._taken_over: list[tuple[Port, bool]] = []
        self.leaving: Callable[[int, Device], None] = lambda port_id, device: None
        self.unplugged: Callable[[int, Device], None] = lambda port_id, device: None
        self.noted: Callable[[Device, str], None] = lambda device, text: None
        self.withholding = False
        self.microframe = host.microframe

    # -- devices -------------------------------------------------------------------------------------------------

    def plug(self, device: Device, port_id: int | None) -> int:
        """See `Controller.plug`."""
        kind = "USB 3" if device.speed.is_usb3 else "USB 2"
        fitting = [port for port in self.ports if port.is_usb3 == device.speed.is_usb3]
        if port_id is None:
            port = next((each for each in fitting if each.occupant is None), None)
            if port is None:
                raise ConfigError(f"no free {kind} port for {device.name}; detach a device first")
        else:
            if not self.has_port(port_id):
                raise ConfigError(f"port {port_id} does not exist; the ports are 1 to {len(self.ports)}")
            port = self.ports[port_id - 1]
            if port not in fitting:
                usable = f"{fitting[0].port_id} to {fitting[-1].port_id}"
                raise ConfigError(f"{device.name} needs a {kind} port, and port {port_id} is not one; use {usable}")
            if port.occupant is not None:
                raise ConfigError(f"port {port_id} is taken by {port.occupant.name}")
        device.attach(_Events(self, port, device))
        if self.withholding or port.missed:
            port.withheld = device
        else:
            port.plug(device)
        return port.port_id

    def unplug(self, port_id: int) -> None:
        """See `Controller.unplug`."""
        port = self.ports[port_id - 1]
        device = port.occupant
        if device is None:
            return
        endpoints = self._host.table.endpoints(port_id)
        self._host.report_ended(endpoints)
        port.unplug()
        self.leaving(port_id, device)

        told = False

        def closed() -> None:
            nonlocal told
            if not told:
                told = True
                self.unplugged(port_id, device)

        def idle() -> None:
            try:
                device.close()
                device.when_closed(closed)
            except Exception as error:
                tell(device, "close", error)
                closed()

        when_all([endpoint.device_gone for endpoint in endpoints], idle)

    def withhold(self) -> None:
        """For the driver every device is pulled out, and none is plugged in, until `reveal`. The devices stay as they
        are, at their ports; their transfers are taken back."""
        self.withholding = True
        for port in self.ports:
            device = port.device
            if device is None:
                continue
            slot = self._host.table.slot_of(device)
            if slot is not None:
                slot.device = None  # when the device is seen again it is another one for this slot
            endpoints = self._host.table.endpoints(port.port_id)
            self._host.report_ended(endpoints)
            port.withhold()
            port.draining = True
            when_all([endpoint.device_gone for endpoint in endpoints], partial(self._drained, port))

    def reveal(self) -> None:
        """For the driver every device is plugged in where it was, as soon as its transfers are back."""
        self.withholding = False
        for port in self.ports:
            self._show(port)

    @property
    def unreleased(self) -> list[int]:
        """The ports whose device is withheld and has transfers that are not back, or whose slot the driver has not
        disabled yet (4.6.4), which is the last that drivers do for a device that was pulled out. While the controller
        does not run no driver hears of anything, and only transfers count."""
        return [
            port.port_id
            for port in self.ports
            if port.draining
            or (port.withheld is not None and self._host.running and self._host.table.endpoints(port.port_id))
        ]

    def has_port(self, port_id: int) -> bool:
        """Whether there is this port."""
        return 1 <= port_id <= len(self.ports)

    def name_at(self, port_id: int) -> str:
        """The name of the device at a port; empty if there is none."""
        device = self.ports[port_id - 1].occupant
        return "" if device is None else device.name

    def device_at(self, port_id: int, *, enabled: bool) -> Device | None:
        """The device at a port that is connected (and, if asked for, enabled)."""
        if not self.has_port(port_id):
            return None
        port = self.ports[port_id - 1]
        return port.device if port.enabled or not enabled else None

    def counters_at(self, port_id: int, address: int, type: TransferType) -> EndpointCounters:
        """The counters of an endpoint of the device at a port, since it was plugged in."""
        counters = self.ports[port_id - 1].counters
        found = counters.get(address)
        if found is None:
            found = counters[address] = EndpointCounters(type)
        found.type = type
        return found

    def tap(self, port_id: int, tap: Tap | None) -> None:
        """Let `tap` see the transfers of the device at a port from now on, in the place of whoever saw them before.

        Until the device is unplugged. `tap` is asked once for each endpoint, now or when the driver configures it."""
        self.ports[port_id - 1].tap = tap
        for endpoint in self._host.table.endpoints(port_id):
            endpoint.tap(tap)

    def tap_at(self, port_id: int) -> Tap | None:
        """Who looks on at the transfers of the device at a port."""
        return self.ports[port_id - 1].tap

    def statistics(self) -> list[EndpointStatistics]:
        """See `Controller.statistics`."""
        live = self._live()
        found = []
        for port in self.ports:
            here = [(address, counters, live.get(id(counters))) for address, counters in sorted(port.counters.items())]
            slot_id = next((endpoint.slot_id for _, _, endpoint in here if endpoint is not None), 0)
            for address, counters, endpoint in here:
                state, queued = (spec.EP_DISABLED, 0) if endpoint is None else (endpoint.state, endpoint.outstanding)
                found.append(describe(port.port_id, address, counters, slot_id=slot_id, state=state, queued=queued))
        return found

    def counted(self) -> dict[int, list[tuple[int, EndpointCounters, int]]]:
        """The counters behind `statistics` by port, for who asks often: for each endpoint its address, its counters,
        which go on to count, and the transfers that the device has now."""
        queued = {key: endpoint.outstanding for key, endpoint in self._live().items()}
        return {
            port.port_id: [
                (address, counters, queued.get(id(counters), 0)) for address, counters in port.counters.items()
            ]
            for port in self.ports
        }

    def _live(self) -> dict[int, Endpoint]:
        """The endpoints of slots by the identity of their counters: a slot may be left over from a device that was
        here before, and has others."""
        return {id(endpoint.counters): endpoint for endpoint in self._host.table.endpoints()}

    def bandwidth(self, usb_speed: int) -> bytes | None:
        """The Port Bandwidth Context for a speed ID (6.2.6), byte 0 reserved; None for a speed that is none.

        All of it is free: 80 % of a High Speed bus, 90 % of the others (USB 2.0 5.5.4); 0 for ports of another kind.
        """
        if not 1 <= usb_speed <= 5:
            return None
        percent = 80 if usb_speed == 3 else 90
        return bytes([0, *(percent if port.is_usb3 == (usb_speed >= 4) else 0 for port in self.ports)])

    # -- going on in another process -----------------------------------------------------------------------------

    @property
    def resetting(self) -> bool:
        """Whether a device is being reset."""
        return any(port.resetting for port in self.ports)

    def saved_state(self) -> list[PortState]:
        """What another process needs to go on with the ports, beside their registers."""
        return [saved for port in self.ports if (saved := port.saved_state()) is not None]

    def take_over(self, saved: list[PortState], device_of: Callable[[int], Device | None]) -> None:
        """Go on, once the controller does, where another process was. Raises StateError."""
        seen: set[int] = set()
        for index, each in enumerate(saved):
            path = f"ports[{index}]"
            require(self.has_port(each.port_id), f"{path}.port_id", "there is no such port")
            require(each.port_id not in seen, f"{path}.port_id", "there are two of them")
            seen.add(each.port_id)
            device = device_of(each.port_id) if each.occupied else None
            port = self.ports[each.port_id - 1]
            port.take_over(each, device, path)
            self._taken_over.append((port, each.occupied and not each.withheld))
        for port in self.ports:
            require(not port.resetting, f"registers['PORTSC{port.port_id}']", "the port is being reset")

    def go_on(self) -> None:
        """The controller goes on: tell devices that came from another process that they are plugged in, and the driver
        which have not come."""
        taken_over, self._taken_over = self._taken_over, []
        for port, occupied in taken_over:
            device = port.occupant
            if device is not None:
                try:
                    device.attach(_Events(self, port, device))
                except Exception as error:
                    tell(device, "attach", error)
                    self.unplug(port.port_id)
            port.go_on(missing=occupied and device is None)
        for port in self.ports:
            port.missed = port.device is None and bool(self._host.table.endpoints(port.port_id))
        self._look_for_missed(0, 0.0)
        if self.dirty:
            self._host.work_due()

    # -- work ----------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Start resets and publish change events that are due."""
        ports = self.dirty.copy()
        self.dirty.clear()
        for port in ports:
            port.queued = False
            port.flush()

    def run_started(self) -> None:
        for port in self.ports:
            port.run_started()

    def controller_reset(self) -> None:
        for port in self.ports:
            port.controller_reset()

    # -- what the ports need -------------------------------------------------------------------------------------

    def port_dirty(self, port: Port) -> None:
        if not port.queued:
            port.queued = True
            self.dirty.append(port)
            self._host.work_due()

    def call_later(self, delay: float, callback: Callable[[], object]) -> None:
        self._host.loop.call_later(delay, callback)

    def port_event(self, port_id: int) -> bool:
        if not self._host.running:
            return False
        status = spec.CC_SUCCESS << spec.EVENT_CODE_SHIFT
        self._host.interrupters.post(
            0, port_id << 24, status, spec.TRB_PORT_STATUS_CHANGE << spec.TRB_TYPE_SHIFT, False
        )
        return True

    def say(self, port: Port, text: str) -> None:
        self._host.journal.say(port.port_id, text)

    def rewind_port(self, port: Port, then: Callable[[], None]) -> None:
        when_all([endpoint.rewind for endpoint in self._host.table.endpoints(port.port_id)], then)

    # -- own -----------------------------------------------------------------------------------------------------

    def _look_for_missed(self, count: int, deadline: float) -> None:
        """Show what is plugged in where the driver has let go of the device before it. It was to do so at `count` ports
        when this was called last, and has until `deadline` for the next one."""
        now = self._host.loop.time()
        late = not self._host.running or (count and now >= deadline)
        for port in self.ports:
            port.missed = port.missed and not late and bool(self._host.table.endpoints(port.port_id))
            self._show(port)
        left = sum(port.missed for port in self.ports)
        if left:
            until = deadline if left == count else now + MISSED_SECONDS
            self._host.loop.call_later(_PAUSE, self._look_for_missed, left, until)

    def _drained(self, port: Port) -> None:
        port.draining = False
        self._show(port)

    def _show(self, port: Port) -> None:
        if not (self.withholding or port.draining or port.missed):
            port.reveal()
