"""What is asked of servers, in a thread: what they export now, and one of these devices.

It is imported when the first server is asked. Many have the plugin, and no device of another machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Final, TypeVar

from usbvfiod_core import Device, DeviceAway, DeviceError, Handover, Loop
from usbvfiod_core.host.configurations import endpoints
from usbvfiod_core.host.description import Description
from usbvfiod_core.remote import Link, Patience, Place, connect, link_taken_over
from usbvfiod_core.state import unpack
from usbvfiod_core.usb.descriptors import DeviceDescriptor
from usbvfiod_core.usb.told_speed import believable

from .asking import Asking, RequestFailed
from .options import UsbipOptions
from .session import Session
from .state import UsbipState
from .turns import ServerAway, Turns
from .wire import Exported

_TURNS: Final = Turns()

T = TypeVar("T")


def exports(place: Place, options: UsbipOptions) -> list[Exported]:
    """What a server exports now. Raises DeviceError."""

    def question() -> list[Exported]:
        with closing(_connect(place, options)) as link:
            return Asking(link, str(place), Patience(options.timeout)).exported()

    return _in_turn(place, options, question)


def import_device(place: Place, busid: str, options: UsbipOptions, loop: Loop, identity: str = "") -> Device:
    """Take a device, of this vendor and product if that is given. Raises DeviceError."""
    link, session, description = _imported(place, busid, options, identity)
    return _opened(loop, link, session, description, options, place)


def import_with_serial(
    address: str, serial: str, chosen: Sequence[tuple[Place, Exported]], options: UsbipOptions, loop: Loop
) -> Device:
    """The one of `chosen` with this serial number, which only an imported device tells. Raises DeviceError."""
    others = []
    for place, device in chosen:
        link, session, description = _imported(place, device.busid, options)
        if description.serial == serial:
            return _opened(loop, link, session, description, options, place)
        link.close()
        others.append(description.serial or "none")
    raise DeviceAway(f"{address}: there are only others of its kind, with the serial numbers {', '.join(others)}")


def take_over(options: UsbipOptions, loop: Loop, handover: Handover) -> Device:
    """As `Backend.take_over`."""
    from .device import UsbipDevice

    state = unpack(UsbipState, handover.state)
    session = Session.made_of(state.session)
    with link_taken_over(handover) as link:
        description = Description(name=state.name, speed=state.speed, descriptors=state.descriptors)
        device = UsbipDevice(loop, link, session, description, options, where=state.where)
        device.take_state(state)
    return device


def _imported(place: Place, busid: str, options: UsbipOptions, identity: str = "") -> tuple[Link, Session, Description]:
    """Import a device. Raises DeviceError."""

    def question() -> tuple[Link, Asking, Exported]:
        link = _connect(place, options)
        try:
            asking = Asking(link, str(place), Patience(options.timeout))
            return link, asking, asking.take(busid)
        except BaseException:
            link.close()
            raise

    # What is asked next the device's kernel answers, and not the server.
    link, asking, exported = _in_turn(place, options, question)
    try:
        descriptors = asking.descriptors()
        device = DeviceDescriptor.unpack(descriptors[:18])
        found = f"{device.vendor_id:04x}:{device.product_id:04x}"
        if identity not in ("", found):
            raise DeviceAway(f"{place}/{busid} has become another device, {found}")
        words = [asking.string(device.manufacturer), asking.string(device.product)]
        description = Description(
            name=" ".join(filter(None, words)) or found,
            serial=asking.string(device.serial_number),
            speed=believable(exported.speed, device, endpoints(descriptors)),
            descriptors=descriptors,
        )
        return link, Session(exported.number, asking.sequence), description
    except RequestFailed as error:
        link.close()
        raise DeviceError(f"{place}/{busid} does not tell what it is: {error}") from None
    except BaseException:
        link.close()
        raise


def _opened(
    loop: Loop, link: Link, session: Session, description: Description, options: UsbipOptions, place: Place
) -> Device:
    try:
        from .device import UsbipDevice  # whoever only lists devices need not wait for it

        return UsbipDevice(loop, link, session, description, options, where=str(place))
    except BaseException:
        link.close()
        raise


def _in_turn(place: Place, options: UsbipOptions, question: Callable[[], T]) -> T:
    return _TURNS.ask(options.unix or options.command or place, options.timeout, question)


def _connect(place: Place, options: UsbipOptions) -> Link:
    try:
        return connect(place, options)
    except DeviceAway as error:
        raise ServerAway(str(error)) from error
