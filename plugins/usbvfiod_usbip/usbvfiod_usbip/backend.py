"""The backend `usbip`: finds devices at servers, and imports them."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Final, NamedTuple, TypeVar

from usbvfiod_core import (
    Backend,
    ConfigError,
    Device,
    DeviceAway,
    DeviceError,
    DeviceInfo,
    Handover,
    Loop,
    Speed,
)
from usbvfiod_core.remote import Place, parse_place

from .options import UsbipConfig, UsbipOptions
from .wire import PORT, Exported

HOSTS: Final = "USBVFIOD_USBIP_HOSTS"
"""In the environment: the hosts where there is no configuration, as for `usbvfiod devices`."""
LIST_SECONDS: Final = 3
"""For which a server is asked that nobody has named in a device's address."""
LIST_LIMIT: Final = 10.0
"""Seconds for which all of them are waited for: a resolver that hangs takes longer, and all devices of the plugin wait
for the list."""
SILENCE: Final = 30.0
"""Seconds for which a server that has not answered is not asked again what it exports, to list it."""

_BUSID: Final = re.compile(r"[A-Za-z0-9_.-]{1,31}")
_IDENTITY: Final = re.compile(r"([0-9A-Fa-f]{4}):([0-9A-Fa-f]{4})(?::(.+))?", re.DOTALL)
_FORMS: Final = "HOST[:PORT]/BUSID, HOST[:PORT]/VID:PID[:SERIAL] or */VID:PID[:SERIAL]"

T = TypeVar("T")


class Address(NamedTuple):
    """What follows `usbip:`. No `place`: wherever it is. A `busid`, or `identity` and perhaps `serial`."""

    place: Place | None
    busid: str = ""
    identity: str = ""
    serial: str | None = None


def parse_address(text: str) -> Address:
    """Raises ConfigError."""
    host, slash, device = text.partition("/")
    if not slash:
        raise ConfigError(f"{text!r} is not the address of a device at a server: {_FORMS}")
    place = None if host == "*" else parse_place(host, PORT)
    match = _IDENTITY.fullmatch(device)
    if match is not None:
        return Address(place, identity=f"{match[1]}:{match[2]}".lower(), serial=match[3])
    if place is None:
        raise ConfigError(f"{text!r}: a bus ID is one of a server; */VID:PID[:SERIAL] is wherever it is")
    if not _BUSID.fullmatch(device):
        raise ConfigError(f"{device!r} is neither a bus ID, as `usbip list -r {place.host}` shows it, nor VID:PID")
    return Address(place, busid=device)


class UsbipBackend(Backend):
    """`usbip:server/1-2`, `usbip:server/046d:c52b`, `usbip:*/046d:c52b:SERIAL`."""

    name = "usbip"
    options = UsbipOptions
    config = UsbipConfig()

    def __init__(self) -> None:
        self._silent: dict[Place, float] = {}

    def list_devices(self) -> list[DeviceInfo]:
        """What the configured hosts export; a host that does not answer is left out."""
        now = time.monotonic()
        places = [place for place in self.places() if now - self._silent.get(place, float("-inf")) > SILENCE]
        found = []
        for place, result in _listed(places):
            if isinstance(result, DeviceError):
                self._silent[place] = time.monotonic()
            else:
                self._silent.pop(place, None)
                found += [_info(f"{place}/{device.busid}", place, device) for device in result]
        return found

    def open(self, address: str, options: UsbipOptions, loop: Loop) -> Device:
        from .importing import import_device, import_with_serial

        parsed = parse_address(address)
        if parsed.serial is not None:
            return import_with_serial(address, parsed.serial, self._choose(parsed, options), options, loop)
        if parsed.place is not None and parsed.busid:
            place, busid = parsed.place, parsed.busid
        else:
            place, device = _only(address, self._choose(parsed, options))
            busid = device.busid
        return import_device(place, busid, options, loop, parsed.identity)

    def take_over(self, address: str, options: UsbipOptions, loop: Loop, handover: Handover) -> Device:
        from .importing import take_over

        return take_over(options, loop, handover)

    def check(self, address: str, options: UsbipOptions) -> Speed | None:
        if parse_address(address).place is None and not self.places():
            raise ConfigError('*/... looks at the hosts of [plugins.usbip], and there are none: hosts = ["server"]')
        return None

    def look_up(self, address: str, options: UsbipOptions) -> DeviceInfo | None:
        parsed = parse_address(address)
        chosen = self._choose(parsed, options)
        place, device = chosen[0] if parsed.serial is not None else _only(address, chosen)
        return _info(address, place, device, parsed.serial or "")

    def problems(self) -> Iterable[str]:
        for _, result in _listed(self.places()):
            if isinstance(result, DeviceError):
                yield str(result)

    def connects(self, address: str, options: UsbipOptions) -> Iterable[int]:
        try:
            place = parse_address(address).place
        except ConfigError:
            return ()
        if place is None:
            return [each.port for each in self.places()]
        return [place.port] if options.direct else ()

    # -- own -----------------------------------------------------------------------------------------------------------

    def places(self) -> list[Place]:
        """The configured hosts, or those of the environment. Raises ConfigError."""
        return [parse_place(host, PORT) for host in self.config.hosts or os.environ.get(HOSTS, "").split()]

    def _choose(self, address: Address, options: UsbipOptions) -> list[tuple[Place, Exported]]:
        """What an address may mean now. Raises DeviceError, DeviceAway if that is nothing."""
        if address.place is not None:
            exports = _exports(address.place, options)
            wanted = address.busid or address.identity
            found = [(address.place, each) for each in exports if wanted in (each.busid, each.identity)]
            if not found:
                said = ", ".join(f"{each.busid} ({each.identity})" for each in exports) or "nothing"
                raise DeviceAway(
                    f"{address.place} does not export {wanted}, or another importer has it; it offers {said}"
                )
            return found
        places = self.places()
        if not places:
            self.check("*/0000:0000", options)
        found, reasons = [], []
        for place, result in _each(places, lambda place: _exports(place, options)):
            if isinstance(result, DeviceError):
                reasons.append(str(result))
            else:
                found += [(place, each) for each in result if each.identity == address.identity]
        if not found:
            silent = f"; {'; '.join(reasons)}" if reasons else ""
            raise DeviceAway(f"no host exports {address.identity} that is free{silent}")
        return found


def _exports(place: Place, options: UsbipOptions) -> list[Exported]:
    """What a server exports now. Raises DeviceError."""
    from .importing import exports  # most users of the plugin list devices, and have none of another machine

    return exports(place, options)


def _only(address: str, found: Sequence[tuple[Place, Exported]]) -> tuple[Place, Exported]:
    if len(found) > 1:
        choices = ", ".join(f"{place}/{device.busid}" for place, device in found)
        raise DeviceError(f"{address} is ambiguous; give one of these: {choices}, or a serial number")
    return found[0]


def _info(address: str, place: Place, device: Exported, serial: str = "") -> DeviceInfo:
    name = f"{device.identity} at {place.host}"
    return DeviceInfo("usbip", address, device.vendor_id, device.product_id, name, serial, device.speed)


def _listed(places: Sequence[Place]) -> Iterator[tuple[Place, list[Exported] | DeviceError]]:
    """What they export, for a list that nobody waits long for."""
    return _each(places, lambda place: _exports(place, UsbipOptions(timeout=LIST_SECONDS)), LIST_LIMIT)


def _each(
    places: Sequence[Place], ask: Callable[[Place], T], limit: float | None = None
) -> Iterator[tuple[Place, T | DeviceError]]:
    """Ask all at the same time, as one that does not answer takes long; in their order. Those that have not answered
    after `limit` seconds are away; without one all are waited for, each as long as its question takes."""
    answers: SimpleQueue[tuple[int, T | BaseException]] = SimpleQueue()

    def run(number: int) -> None:
        try:
            answers.put((number, ask(places[number])))
        except BaseException as error:
            answers.put((number, error))

    for number in range(len(places)):
        threading.Thread(target=run, args=(number,), name="usbip-ask", daemon=True).start()
    results: dict[int, T | BaseException] = {}
    deadline = None if limit is None else time.monotonic() + limit
    with suppress(Empty):
        while len(results) < len(places):
            left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
            number, answer = answers.get(timeout=left)
            results[number] = answer
    for number, place in enumerate(places):
        late = DeviceAway(f"{place} has not answered in {limit or 0:.0f} s")
        result = results.get(number, late)
        if isinstance(result, BaseException) and not isinstance(result, DeviceError):
            raise result
        yield place, result
