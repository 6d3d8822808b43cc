"""`usbvfiod why`: whether a device can be attached, who decides that, and what would allow it."""

from __future__ import annotations

import shlex
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

import click

from ..daemon.beforehand import device_errors
from ..daemon.config import DeviceSpec, check_backend, host_backend, parse_device
from ..daemon.guest_ports import GuestPorts
from ..daemon.matching import Kind, describe, find, kind_of, missing
from ..daemon.server_settings import ServerSettings
from ..errors import ConfigError, ConfigErrors, DeviceAway, DeviceError, UsbvfiodError, each_error
from ..hooks.options import backend_options
from ..hooks.registry import Registry
from ..host.options import InUse
from ..host.paths import NotUsb
from ..host.sysfs import ALLOW, DEVICES, RULE
from ..host.usage import Usage
from ..usb.backend import DeviceInfo
from . import completing
from .control import Connect, optional_control
from .output import print_object, print_table, say, say_lines


@dataclass(frozen=True, slots=True)
class Step:
    """What one who decides says: "yes", "no", or "later" for a device that is not there. `fix` is what would help."""

    who: str
    answer: str
    text: str
    fix: str = ""


@click.command()
@click.argument("spec", shell_complete=completing.explained)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@optional_control
@click.pass_obj
def why(registry: Registry, spec: str, as_json: bool, connect: Connect | None) -> None:
    """Say whether a device can be attached, who decides that, and what would allow it.

    SPEC is a device specification as for --device, or the number or name of an attachment of a running server. No
    device is opened. With the control socket of a running server also what became of it there.
    """
    ports, attachments = _at_server(connect)
    attachment = next((each for each in attachments if spec in (str(each["number"]), each["name"], each["spec"])), None)
    if attachment is not None:
        spec = attachment["spec"]
    steps, info = decide(registry, spec, ports)
    if attachment is None and info is not None:
        attachment = _with_this(attachments, info, registry)
    elif attachment is None and steps[-1].answer == "later":
        attachment = _waiting(attachments, spec, registry.backends())
    refused = [step for step in steps if step.answer == "no"]
    if attachment is not None:
        steps.append(_attached(attachment))
    elif connect is not None:
        fix = "" if refused else f"usbvfiod attach {shlex.quote(spec)}"
        steps.append(Step("server", "later", "it is not attached", fix))
    if as_json:
        print_object({"allowed": not refused, "steps": [asdict(step) for step in steps]})
    else:
        print_table(("WHO", "ANSWER", "WHY"), [(step.who, step.answer, step.text) for step in steps])
        for step in steps:
            if step.fix:
                say()
                say(f"what would help ({step.who}):")
                say_lines(step.fix)
    if refused and refused[0].who == "specification":
        raise ConfigErrors(ConfigError(step.text) for step in refused)
    if refused:
        raise DeviceError(f"device {spec} cannot be attached: {refused[0].text}")


def _with_this(attachments: list[dict[str, Any]], info: DeviceInfo, registry: Registry) -> dict[str, Any] | None:
    """The attachment that has this device of the host, by whatever name and backend."""
    hosts = [name for name, backend in registry.backends().items() if backend.of_host]
    if info.backend not in hosts or not info.port_path:
        return None
    for each in attachments:
        device = each["device"]
        if device is not None and device["backend"] in hosts and device["port_path"] == info.port_path:
            return each
    return None


def _waiting(attachments: list[dict[str, Any]], spec: str, backends: Collection[str]) -> dict[str, Any] | None:
    """The attachment that waits for a device that is not there, by whatever backend and with whatever options."""
    address = _address(spec, backends)
    return next((each for each in attachments if _address(each["spec"], backends) == address), None)


def _address(spec: str, backends: Collection[str]) -> str:
    """Of a specification, which may do without the name of the backend."""
    named = spec.partition("?")[0]
    backend, _, address = named.partition(":")
    return address if backend in backends else named


def decide(registry: Registry, text: str, ports: GuestPorts) -> tuple[list[Step], DeviceInfo | None]:
    """Everybody's answer, in the order in which they are asked, and the device if it is there; nobody is asked who
    depends on one that says no."""
    backends = registry.backends()
    try:
        spec = parse_device(text, backends, None, registry.declared(), host_backend(backends))
    except ConfigError as error:
        return [Step("specification", "no", str(each)) for each in each_error(error)], None
    steps = [Step("specification", "yes", f"{spec.address} of backend {check_backend(spec.backend, backends)}")]
    try:
        info = find(spec.address, backends[spec.backend].list_devices(), either_side=spec.follow_port)
    except NotUsb as error:
        return [Step("specification", "no", str(error))], None
    except ConfigError as error:
        fix = "Give the port path or the serial number of the one you mean."
        return [*steps, Step("device", "no", str(error), fix)], None
    except Exception as error:
        return [*steps, Step("device", "no", f"backend {spec.backend} cannot list its devices: {error}")], None
    if info is None:
        if kind_of(spec.address) is not Kind.OWN:
            return [*steps, Step("device", "later", f"{missing(spec.address)}; it is plugged in when it comes")], None
        try:
            info = backends[spec.backend].look_up(
                spec.address, backend_options(backends[spec.backend], spec.address, spec.options)
            )
        except DeviceAway as error:
            return [*steps, Step("device", "later", f"{error}; it is plugged in when that has changed")], None
        except UsbvfiodError as error:
            return [*steps, Step("device", "no", str(error))], None
    if info is None:
        info = spec.unseen
        steps.append(Step("device", "yes", "the backend can say more only when it opens it"))
    else:
        identity = f"{info.vendor_id:04x}:{info.product_id:04x}"
        steps.append(Step("device", "yes", f"{info.name}, {identity}, {describe(info)}"))
    steps += (Step("start", "no", str(error)) for error in device_errors(ports, spec, backends[spec.backend]))
    if info.note:
        steps.append(_access(info))
    if info.in_use:
        steps.append(_use(info, spec, backend_options(backends[spec.backend], spec.address, spec.options)))
    losers = Usage().programs(DEVICES / info.port_path) if info.port_path and not info.in_use else []
    if losers:
        steps.append(Step("programs", "yes", f"{'; '.join(losers)}, and loses it"))
    if info.driver:
        steps.append(Step("host driver", "yes", f"{info.driver} gives it up, and gets it back at the end"))
    steps.append(_plugins(registry, spec, info))
    return steps, info


def _at_server(connect: Connect | None) -> tuple[GuestPorts, list[dict[str, Any]]]:
    """The ports and attachments of the running server, or the ports that one has if nothing is said."""
    if connect is None:
        defaults = ServerSettings()
        return GuestPorts(defaults.usb2_ports, defaults.usb3_ports), []
    with connect() as server:
        status = server.request("status")
    return GuestPorts(status["server"]["usb2_ports"], status["server"]["usb3_ports"]), status["attachments"]


def _access(info: DeviceInfo) -> Step:
    """What prevents the use of a device, with what to paste if it says what would help."""
    reason, found, rule = info.note.partition(RULE)
    if found:
        return Step("access", "no", reason, udev_advice(rule))
    reason, found, command = info.note.partition(ALLOW)
    return Step("host" if found else "access", "no", reason, command)


def _use(info: DeviceInfo, spec: DeviceSpec, options: Any) -> Step:
    """Whether a device is taken away from who uses it on the host."""
    if getattr(options, "in_use", None) is InUse.TAKE:
        return Step("host", "yes", f"it is taken although it is in use: {info.in_use}")
    fix = f"End that (umount, swapoff, ip link set ... down), or take it all the same: {spec.text}"
    fix += f"{'&' if '?' in spec.text else '?'}in-use={InUse.TAKE.value}"
    return Step("host", "no", f"it is in use: {info.in_use}", fix)


def udev_advice(rule: str) -> str:
    """How to put a udev rule into effect, to paste into a shell."""
    return (
        f"sudo tee /etc/udev/rules.d/70-usbvfiod.rules <<'END'\n{rule}\nEND\n"
        "sudo udevadm control --reload && sudo udevadm trigger --subsystem-match=usb"
    )


def _plugins(registry: Registry, spec: DeviceSpec, info: DeviceInfo) -> Step:
    refusal = registry.refusal(info, spec.settings)
    if refusal is None:
        return Step("plugins", "yes", "no plugin refuses it")
    return Step("plugins", "no", refusal, "Change the plugin's options, or leave it out with --no-plugin NAME.")


def _attached(attachment: dict[str, Any]) -> Step:
    reason = f": {attachment['reason']}" if attachment["reason"] else ""
    where = f" into port {attachment['port']}" if attachment["port"] else ""
    fix = ""
    if attachment["state"] in ("held", "asking"):
        fix = f"usbvfiod attach {shlex.quote(attachment['name'] or str(attachment['number']))}"
    return Step("server", "yes", f"attachment {attachment['number']} is {attachment['state']}{where}{reason}", fix)
