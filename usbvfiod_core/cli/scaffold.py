"""What `usbvfiod plugins new` writes: a whole package for each kind of plugin, whose tests pass as they are."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from string import Template

from ..installation import PLUGINS as OUR_PLUGINS
from . import scaffold_backend
from .scaffold_files import FILES

KINDS = ("backend", "interceptor", "quirk")

LINE_LENGTH = 120
"""Of what is written, as its `pyproject.toml` says to ruff."""

_INTERCEPTOR = '''\
"""The interceptor `$name`: counts what a device moves, and refuses to send, if it is asked to.

`$name.enabled=true` in a device's specification puts it in front of that device.
`$name.refuse-out=true` makes it refuse what the guest sends by bulk transfers.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass

from usbvfiod_core import InterceptedTransfer, Interceptor, RegisterOptions, hookimpl

usbvfiod_requires = ">=1,<2"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """The options of one device."""

    enabled: bool = False
    refuse_out: bool = False


class $cls(Interceptor):
    """In front of one device; `moved` is bytes by endpoint address."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.moved: Counter[int] = Counter()

    def bulk(self, transfer: InterceptedTransfer) -> None:
        """On the way to the device."""
        if self.options.refuse_out and not transfer.is_in:
            transfer.refuse()

    def bulk_completed(self, transfer: InterceptedTransfer) -> None:
        """On the way back to the guest."""
        self.moved[transfer.endpoint] += transfer.actual

    def closed(self) -> None:
        """The device has left."""
        for endpoint, moved in sorted(self.moved.items()):
            log.info("endpoint %#04x has moved %d bytes", endpoint, moved)


@hookimpl
def usbvfiod_register_options(register: RegisterOptions) -> None:
    """Called by usbvfiod."""
    register(device=Options)


@hookimpl
def usbvfiod_intercept_device(options: Options) -> Interceptor | None:
    """Called by usbvfiod for each device that is plugged in."""
    return $cls(options) if options.enabled else None
'''

_INTERCEPTOR_TESTS = '''\
"""The interceptor between a device that a test answers for and a guest's driver."""

from __future__ import annotations

import pytest
from usbvfiod_core.testing.driver import DriverError
from usbvfiod_core.testing.fake_device import BULK_IN, BULK_OUT, FakeDevice
from usbvfiod_core.testing.guest import Guest
from usbvfiod_core.testing.interception import intercepted

$imports


def test_what_is_moved_is_counted(usb_guest: Guest) -> None:
    fake, interceptor = FakeDevice(), $cls(Options())
    fake.auto_out.add(BULK_OUT)
    usb = usb_guest.plug(intercepted(fake, interceptor, usb_guest.bus.loop))
    fake.answers(BULK_IN, b"five5")
    assert usb.bulk_in(BULK_IN, 64) == b"five5"
    usb.bulk_out(BULK_OUT, b"seven77")
    assert interceptor.moved == {BULK_IN: 5, BULK_OUT: 7}


def test_sending_is_refused(usb_guest: Guest) -> None:
    fake, interceptor = FakeDevice(), $cls(Options(refuse_out=True))
    usb = usb_guest.plug(intercepted(fake, interceptor, usb_guest.bus.loop))
    with pytest.raises(DriverError, match="Stall"):
        usb.bulk_out(BULK_OUT, b"no")
    assert fake.received[BULK_OUT] == []


def test_only_devices_that_ask_for_it_are_intercepted() -> None:
    assert usbvfiod_intercept_device(options=Options()) is None
    assert isinstance(usbvfiod_intercept_device(options=Options(enabled=True)), $cls)
'''

_QUIRK = '''\
"""The quirk `$name`: devices that cannot wake the host, and say that they can, do not tell the guest so.

QUIRKS lists them. For any other device
`$name.remote-wakeup=false` in its specification does the same; `=true` leaves a device of QUIRKS alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from usbvfiod_core import DeviceInfo, InterceptedTransfer, Interceptor, RegisterOptions, hookimpl
from usbvfiod_core.usb.descriptors import ATTRIBUTE_REMOTE_WAKEUP, Configuration
from usbvfiod_core.usb.requests import FEATURE_DEVICE_REMOTE_WAKEUP, SET_FEATURE

usbvfiod_requires = ">=1,<2"

QUIRKS = {
    (0x1209, 0x0002),
}
"""Vendor and product IDs of devices that have it."""


@dataclass(frozen=True)
class Options:
    """The options of one device; None goes by QUIRKS."""

    remote_wakeup: bool | None = None


class $cls(Interceptor):
    """Edits what the device says of itself, and does not let the guest rely on it."""

    def configuration_descriptor(self, raw: bytes) -> bytes:
        """The configuration that the guest sees."""
        configuration = Configuration.unpack(raw)
        attributes = configuration.attributes & ~ATTRIBUTE_REMOTE_WAKEUP
        return replace(configuration, attributes=attributes).pack()

    def control(self, transfer: InterceptedTransfer) -> None:
        """A request on the way to the device."""
        setup = transfer.setup
        if setup is not None and (setup.request_type, setup.request) == (0, SET_FEATURE):
            if setup.value == FEATURE_DEVICE_REMOTE_WAKEUP:
                transfer.refuse()


@hookimpl
def usbvfiod_register_options(register: RegisterOptions) -> None:
    """Called by usbvfiod."""
    register(device=Options)


@hookimpl
def usbvfiod_intercept_device(info: DeviceInfo, options: Options) -> Interceptor | None:
    """Called by usbvfiod for each device that is plugged in."""
    works = options.remote_wakeup
    if works is None:
        works = (info.vendor_id, info.product_id) not in QUIRKS
    return None if works else $cls()
'''

_QUIRK_TESTS = '''\
"""The quirk between a keyboard, which can wake the host, and a guest's driver."""

from __future__ import annotations

import pytest
from usbvfiod_core import DeviceInfo
from usbvfiod_core.testing.driver import DriverError, UsbDevice
from usbvfiod_core.testing.guest import Guest
from usbvfiod_core.testing.interception import intercepted
from usbvfiod_core.usb.descriptors import ATTRIBUTE_REMOTE_WAKEUP
from usbvfiod_core.virtual.keyboard import Keyboard

$imports


def attributes(usb: UsbDevice) -> int:
    return usb.get_descriptor(2, 0, 9)[7]


def test_a_guest_is_not_told_of_remote_wakeup(usb_guest: Guest) -> None:
    loop = usb_guest.bus.loop
    plain = usb_guest.plug(Keyboard(loop))
    assert attributes(plain) & ATTRIBUTE_REMOTE_WAKEUP
    usb = usb_guest.plug(intercepted(Keyboard(loop), $cls(), loop))
    assert not attributes(usb) & ATTRIBUTE_REMOTE_WAKEUP
    with pytest.raises(DriverError, match="Stall"):
        usb.control_out(0, 3, 1, 0)


@pytest.mark.parametrize(
    ("vendor", "product", "remote_wakeup", "edited"),
    [
        (0x1209, 0x0002, None, True),
        (0x1209, 0x0003, None, False),
        (0x1209, 0x0002, True, False),
        (0x1209, 0x0003, False, True),
    ],
)
def test_which_devices_have_it(vendor: int, product: int, remote_wakeup: bool | None, edited: bool) -> None:
    info = DeviceInfo("virtual", "keyboard", vendor, product, "keyboard")
    interceptor = usbvfiod_intercept_device(info=info, options=Options(remote_wakeup))
    assert (interceptor is not None) == edited
'''

_CODE = {"backend": scaffold_backend.CODE, "interceptor": _INTERCEPTOR, "quirk": _QUIRK}
_TESTS = {"backend": scaffold_backend.TESTS, "interceptor": _INTERCEPTOR_TESTS, "quirk": _QUIRK_TESTS}
_WHAT = {
    "backend": "A backend of usbvfiod whose one device is a panel with lamps and a button.",
    "interceptor": "An interceptor of usbvfiod that counts what a device moves, and refuses to send if it is asked to.",
    "quirk": "A quirk of usbvfiod: devices that cannot wake the host do not say that they can.",
}
_USAGE = {
    "backend": "usbvfiod --socket-path /tmp/usb.sock --device '$name:panel?lit=5'",
    "interceptor": "usbvfiod --socket-path /tmp/usb.sock --device 'virtual:loopback?$name.enabled=true'",
    "quirk": "usbvfiod --socket-path /tmp/usb.sock --device 'virtual:keyboard?$name.remote-wakeup=false'",
}


_NAMES = {
    "backend": ("BUTTON", "GET_LAMPS", "LAMPS", "Panel", "SET_LAMP"),
    "interceptor": ("Options", "usbvfiod_intercept_device"),
    "quirk": ("Options", "usbvfiod_intercept_device"),
}
"""What the tests import of the module beside its class."""


def module_name(name: str) -> str:
    """The module of the plugin `name`."""
    return "usbvfiod_" + name.replace("-", "_")


def taken(name: str, plugins: Iterable[str]) -> str:
    """Why a plugin cannot be called `name`: there is something of that name already. Empty if it can. `plugins` are the
    names of those that are installed."""
    module = name.replace("-", "_")
    if name in plugins or name in OUR_PLUGINS:
        return f"there is a plugin {name} already"
    if module in sys.stdlib_module_names:
        return f"{module} is a module of Python's standard library"
    for package in (module_name(name), module):
        spec = find_spec(package)
        if spec is not None and spec.origin is not None:  # without, it is some directory of that name
            return f"there is a package {package} already"
    return ""


def _imports(module: str, names: Iterable[str]) -> str:
    """The statement that imports them, as ruff would order and break it."""
    ordered = sorted(names, key=lambda each: (not each.isupper(), each.islower(), each))
    line = f"from {module} import {', '.join(ordered)}"
    if len(line) <= LINE_LENGTH:
        return line
    return "\n".join((f"from {module} import (", *(f"    {each}," for each in ordered), ")"))


def package(name: str, kind: str) -> dict[Path, str]:
    """The files of a plugin of one of KINDS, by path; `name` has lower-case letters, digits and dashes."""
    module = module_name(name)
    cls = "".join(part.capitalize() for part in [*name.split("-"), kind])
    values = {"name": name, "module": module, "cls": cls, "what": _WHAT[kind]}
    values["imports"] = _imports(module, (cls, *_NAMES[kind]))
    values["year"] = str(date.today().year)
    values["usage"] = Template(_USAGE[kind]).substitute(values)
    files = {
        **FILES,
        f"{module}/__init__.py": _CODE[kind],
        f"{module}/py.typed": "",
        f"tests/test_{name.replace('-', '_')}.py": _TESTS[kind],
    }
    return {Path(path): Template(text).substitute(values) for path, text in files.items()}
