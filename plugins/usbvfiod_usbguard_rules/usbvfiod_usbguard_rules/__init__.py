"""Which devices virtual machines may have, by USBGuard's rules.

A plugin of usbvfiod, asked before a device is opened. `parser` reads the rules, `device` what sysfs says of a device,
and `policy` decides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from usbvfiod_core import DeviceInfo, RegisterOptions, hookimpl

from .options import ServerOptions

if TYPE_CHECKING:
    from .policy import Verdict

usbvfiod_requires = ">=1,<2"

_EMULATED = "virtual"
"""The backend whose devices are the server's own and no hardware."""


@hookimpl
def usbvfiod_register_options(register: RegisterOptions) -> None:
    register(config=ServerOptions)


@hookimpl
def usbvfiod_admit_device(info: DeviceInfo, config: ServerOptions) -> str | None:
    if config.policy is None or info.backend == _EMULATED:
        return None
    from .device import facts  # with what it needs, of which a server without rules has no use

    verdict = config.policy.decide(_name(info), facts(info))
    return None if verdict.allows else _reason(verdict, config)


@hookimpl
def usbvfiod_observe_attachments(info: DeviceInfo, event: str, config: ServerOptions) -> None:
    if config.policy is None or info.backend == _EMULATED:
        return
    if event == "plugged":
        config.policy.plugged(_name(info))
    else:
        config.policy.unplugged(_name(info))


def _name(info: DeviceInfo) -> str:
    return f"{info.backend}:{info.address}"


def _reason(verdict: Verdict, config: ServerOptions) -> str:
    if verdict.rule is None:
        files = ", ".join(str(path) for path in config.rules)
        return f"no rule of {files} allows it, and the default is {verdict.target.value}"
    return f"{verdict.rule.place}: {verdict.rule.text}"
