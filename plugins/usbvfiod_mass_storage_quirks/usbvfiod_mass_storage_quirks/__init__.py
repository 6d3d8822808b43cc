"""USB mass storage for guests: read-only if wanted, with the quirks of real drives, and a log of commands.

A plugin of usbvfiod. `interceptor` stands between the guest and one device; `bulk_only` and `uas` follow the two
transports, and `commands` decides what a device gets.
"""

from __future__ import annotations

from usbvfiod_core import DeviceInfo, Interceptor, RegisterOptions, hookimpl

from . import quirks
from .options import DeviceOptions, ServerOptions

usbvfiod_requires = ">=1,<2"


@hookimpl
def usbvfiod_register_options(register: RegisterOptions) -> None:
    register(device=DeviceOptions, config=ServerOptions)


@hookimpl
def usbvfiod_admit_device(info: DeviceInfo, options: DeviceOptions, config: ServerOptions) -> str | None:
    if quirks.Quirk.IGNORE_DEVICE in _quirks(info, options, config):
        return "it has the mass-storage quirk i: not to be used"
    return None


@hookimpl
def usbvfiod_intercept_device(info: DeviceInfo, options: DeviceOptions, config: ServerOptions) -> Interceptor:
    from .interceptor import MassStorageQuirks  # whoever only asks for help need not wait for it

    readonly = config.readonly if options.readonly is None else options.readonly
    return MassStorageQuirks(info.name, options, _quirks(info, options, config), readonly=readonly)


def _quirks(info: DeviceInfo, options: DeviceOptions, config: ServerOptions) -> quirks.Quirks:
    entries = quirks.parse_entries(config.quirks)
    return quirks.find(info.vendor_id, info.product_id, options.quirks, entries)
