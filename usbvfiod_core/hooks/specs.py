"""Every hook of usbvfiod, and the version of them.

A plugin is a module named by an entry point of the group `usbvfiod`. It implements the hooks it needs as functions of
these names, marked with `usbvfiod_core.hookimpl`, and may take fewer arguments than a hook offers. Hooks are called
when something is registered, attached or started, never for a transfer: what a plugin does to transfers it does in the
`Device` it opens, or in the `Interceptor` it returns.

`options` and `config` are the plugin's own: see `usbvfiod_register_options`. `backend_options` are what the device's
specification gives its backend, as text.

Order, for every hook: implementations marked `tryfirst`, then the rest in alphabetical order of the plugins' names,
then those marked `trylast`. Each implementation is called on its own; what an exception does is said per hook, and it
is always logged with the plugin's name. Hook wrappers are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import click

    from ..needs import RegisterNeeds
    from ..usb.backend import Backend, DeviceInfo
    from ..usb.device import Device
    from .interceptor import Interceptor
    from .options import RegisterOptions

PLUGIN_API = 1
"""Version of the hooks and of the names in `usbvfiod_core`. It grows when a plugin written for the version before it
would break; a new hook or a new argument leaves it alone. A module says which versions it works with by
`usbvfiod_requires = ">=1,<2"`; without that it is taken to work with every one."""


def usbvfiod_register_backends(register: Callable[[Backend], None]) -> None:
    """Register backends by calling `register` for each.

    When: once for each command that needs devices, before any is listed or opened. On the main thread.
    An exception: this plugin's backends registered so far stay, the rest are missing. `register` raises PluginError
    for a name that is malformed or taken.
    """


def usbvfiod_register_options(register: RegisterOptions) -> None:
    """Say which options this plugin has: `register(device=DeviceOptions, config=PluginConfig)`, either or both.

    Each is a dataclass whose fields have defaults, of the types that `usbvfiod_core.options` lists. The first is
    what the user may set for each device (`PLUGIN.key=value` in a specification, `[device.plugins.PLUGIN]` in a file),
    and hooks get an instance as `options`; the second is what may be set once (`[plugins.PLUGIN]`), and hooks
    get it as `config`. A kind that is not registered is None there.

    When: once for each command that needs devices, before any is parsed. On the main thread.
    An exception: the plugin is not used. `register` raises PluginError for a dataclass that cannot be used.
    """


def usbvfiod_take_config(config: Any) -> None:
    """Learn the plugin's configuration, for what no other hook gives it to, such as a backend that looks for devices.

    When: in a server, after its configuration was read and before needs are registered and devices opened. On the main
    thread; only cheap work.
    An exception: the plugin goes on with what it had.
    """


def usbvfiod_register_needs(register: RegisterNeeds) -> None:
    """Say what this plugin needs of the system that not every server does, by calling `register`. A server with a
    sandbox lets nothing else through. Files that the user names, in options of the type `Path`, need no word.

    When: once in a server, before any device is opened. On the main thread; only cheap work.
    An exception: what this plugin has registered so far holds. `register` raises PluginError for what there is not.
    """


def usbvfiod_admit_device(
    info: DeviceInfo, backend_options: Mapping[str, str], options: Any, config: Any
) -> str | None:
    """Say whether a device may be attached: None for yes, a str is a refusal and its reason, for people.

    When: once for each attachment, before the device is opened, so a refused device is not disturbed. In a thread of
    its own; it may block. `info` is what the backend lists; for a device it cannot list, vendor and product are 0 and
    the name is the address. The first refusal decides.
    An exception refuses the device, and so does a result that is neither None nor a str.
    """


def usbvfiod_wrap_device(
    device: Device, info: DeviceInfo, backend_options: Mapping[str, str], options: Any, config: Any
) -> Device | None:
    """Return a Device that takes the place of `device`, or None to leave it as it is: the low-level door, for what
    `usbvfiod_intercept_device` does not offer.

    When: once for each attachment, after the device was opened and before it is plugged in. On the loop's thread; it
    must not block. Implementations called later wrap what those before them returned, and all interceptors are nearer
    to the guest than any wrapper. The wrapper owns what it wraps and must pass on `close`; `WrappedDevice` is a base
    class that passes on everything, and at no cost what is not overridden.
    An exception, or a result that is no Device, fails the attachment: a device that should have been wrapped is never
    given to a guest bare.
    """


def usbvfiod_intercept_device(
    info: DeviceInfo, backend_options: Mapping[str, str], options: Any, config: Any
) -> Interceptor | None:
    """Return an Interceptor of this device's transfers, a new one each time, or None to leave the device alone.

    When: once for each attachment, after the device was opened and wrapped and before it is plugged in. On the loop's
    thread; it must not block. The interceptor of an implementation called later is nearer to the guest: it sees a
    transfer first on the way down, and last on the way up.
    An exception, or a result that is no Interceptor, fails the attachment: a device that should have been intercepted
    is never given to a guest bare.
    """


def usbvfiod_observe_attachments(info: DeviceInfo, port_id: int, event: str, config: Any) -> None:
    """Learn that a device was plugged into a port of the controller or has left it.

    When: after it happened; `event` is "plugged" or "unplugged", `port_id` counts from 1. On the loop's thread; it
    must not block. An exception changes nothing; after three in a row the implementation is not called any more.
    """


def usbvfiod_register_commands(group: click.Group) -> None:
    """Add commands to the command line: `group.add_command(...)`, or `@group.command()`.

    When: once, before the arguments of `usbvfiod` are read, unless they are only the options of a server. Import click
    inside the hook, for servers do without it, and what is slow inside the command. On the main thread. A command whose
    name is taken is dropped, and logged.
    An exception: this plugin's commands are missing.
    """
