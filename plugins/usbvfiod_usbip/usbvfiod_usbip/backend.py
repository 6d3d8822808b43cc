"""The backend `usbip`: finds devices at servers, and imports them."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from queue import SimpleQueue
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
from usbvfiod_core.remote import Link, Patience, Place, connect, link_taken_over, parse_place
from usbvfiod_core.state import unpack
from usbvfiod_core.usb.descriptors import DeviceDescriptor

from .asking import Asking, RequestFailed
from .options import UsbipConfig, UsbipOptions
from .session import Session
from .wire import PORT, Exported

HOSTS: Final = "USBVFIOD_USBIP_HOSTS"
"""In the environment: the hosts where there is no configuration, as for `usbvfiod devices`."""
LIST_SECONDS: Final = 3
"""For which a server is asked that nobody has named in a device's address."""
SILENCE: Final = 30.0
"""Seconds for which a server that has not answered is not asked again what it exports, to list it."""

_SUPER_PACKET: Final = 9
"""bMaxPacketSize0 of a SuperSpeed device, an exponent (USB 3.2 table 9-11)."""
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
        for place, result in _each(places, lambda place: _exports(place, UsbipOptions(timeout=LIST_SECONDS))):
            if isinstance(result, DeviceError):
                self._silent[place] = time.monotonic()
            else:
                self._silent.pop(place, None)
                found += [_info(f"{place}/{device.busid}", place, device) for device in result]
        return found

    def open(self, address: str, options: UsbipOptions, loop: Loop) -> Device:
        parsed = parse_address(address)
        if parsed.serial is not None:
            return _with_serial(address, parsed.serial, self._choose(parsed, options), options, loop)
        if parsed.place is not None and parsed.busid:
            place, busid = parsed.place, parsed.busid
        else:
            place, device = _only(address, self._choose(parsed, options))
            busid = device.busid
        link, session, made = _imported(place, busid, options, parsed.identity)
        return _device(loop, link, session, options, place, made)

    def take_over(self, address: str, options: UsbipOptions, loop: Loop, handover: Handover) -> Device:
        from .device import UsbipDevice
        from .state import UsbipState

        state = unpack(UsbipState, handover.state)
        session = Session.made_of(state.session)
        with link_taken_over(handover) as link:
            device = UsbipDevice(
                loop,
                link,
                session,
                options,
                where=state.where,
                name=state.name,
                speed=state.speed,
                descriptors=state.descriptors,
            )
            device.take_state(state)
        return device

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
        for _, result in _each(self.places(), lambda place: _exports(place, UsbipOptions(timeout=LIST_SECONDS))):
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
    with closing(connect(place, options)) as link:
        return Asking(link, str(place), Patience(options.timeout)).exported()


def _only(address: str, found: Sequence[tuple[Place, Exported]]) -> tuple[Place, Exported]:
    if len(found) > 1:
        choices = ", ".join(f"{place}/{device.busid}" for place, device in found)
        raise DeviceError(f"{address} is ambiguous; give one of these: {choices}, or a serial number")
    return found[0]


def _info(address: str, place: Place, device: Exported, serial: str = "") -> DeviceInfo:
    name = f"{device.identity} at {place.host}"
    return DeviceInfo("usbip", address, device.vendor_id, device.product_id, name, serial, device.speed)


def _each(places: Sequence[Place], ask: Callable[[Place], T]) -> Iterator[tuple[Place, T | DeviceError]]:
    """Ask all at the same time, as one that does not answer takes long; in their order."""
    answers: SimpleQueue[tuple[int, T | BaseException]] = SimpleQueue()

    def run(number: int) -> None:
        try:
            answers.put((number, ask(places[number])))
        except BaseException as error:
            answers.put((number, error))

    for number in range(len(places)):
        threading.Thread(target=run, args=(number,), name="usbip-ask", daemon=True).start()
    results = dict(answers.get() for _ in places)
    for number, place in enumerate(places):
        result = results[number]
        if isinstance(result, BaseException) and not isinstance(result, DeviceError):
            raise result
        yield place, result


def _with_serial(
    address: str, serial: str, chosen: Sequence[tuple[Place, Exported]], options: UsbipOptions, loop: Loop
) -> Device:
    """The one with this serial number, which only an imported device tells."""
    others = []
    for place, device in chosen:
        link, session, made = _imported(place, device.busid, options)
        if made.serial == serial:
            return _device(loop, link, session, options, place, made)
        link.close()
        others.append(made.serial or "none")
    raise DeviceAway(f"{address}: there are only others of its kind, with the serial numbers {', '.join(others)}")


class _Made(NamedTuple):
    """What is known of an imported device."""

    name: str
    serial: str
    speed: Speed
    descriptors: bytes


def _imported(place: Place, busid: str, options: UsbipOptions, identity: str = "") -> tuple[Link, Session, _Made]:
    """Import a device. Raises DeviceError."""
    link = connect(place, options)
    try:
        asking = Asking(link, str(place), Patience(options.timeout))
        exported = asking.take(busid)
        descriptors = asking.descriptors()
        device = DeviceDescriptor.unpack(descriptors[:18])
        found = f"{device.vendor_id:04x}:{device.product_id:04x}"
        if identity not in ("", found):
            raise DeviceAway(f"{place}/{busid} has become another device, {found}")
        words = [asking.string(device.manufacturer), asking.string(device.product)]
        made = _Made(
            " ".join(filter(None, words)) or found,
            asking.string(device.serial_number),
            _speed(exported, device),
            descriptors,
        )
        return link, Session(exported.number, asking.sequence), made
    except RequestFailed as error:
        link.close()
        raise DeviceError(f"{place}/{busid} does not tell what it is: {error}") from None
    except BaseException:
        link.close()
        raise


def _speed(exported: Exported, device: DeviceDescriptor) -> Speed:
    """There are servers that call SuperSpeed devices high-speed ones."""
    if exported.speed is None:
        raise DeviceError(f"{exported.busid} has a speed that is not known")
    if device.usb_version >= 0x0300 and device.max_packet_size_0 == _SUPER_PACKET and not exported.speed.is_usb3:
        return Speed.SUPER
    return exported.speed


def _device(loop: Loop, link: Link, session: Session, options: UsbipOptions, place: Place, made: _Made) -> Device:
    try:
        from .device import UsbipDevice  # whoever only lists devices need not wait for it

        where, descriptors = str(place), made.descriptors
        return UsbipDevice(
            loop, link, session, options, where=where, name=made.name, speed=made.speed, descriptors=descriptors
        )
    except BaseException:
        link.close()
        raise
