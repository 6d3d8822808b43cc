"""`usbvfiod doctor`: what is wrong on this host, and the fix."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from ..daemon import places
from ..daemon.config import OWN_BACKENDS
from ..errors import UsbvfiodError
from ..hooks.registry import Registry
from ..host import hotplug, sysfs
from ..host.usage import Usage
from ..installation import installation
from ..memory import HOW_TO_SHARE, NOTICED_SIZE
from .control import Connect, optional_control
from .output import print_object, print_table, say, say_lines
from .why import udev_advice

USBFS_MEMORY = Path("/sys/module/usbcore/parameters/usbfs_memory_mb")
ENOUGH_MEMORY = 64
"""MiB: what a few fast devices with deep queues have in flight at once."""


class SomethingIsWrong(UsbvfiodError):
    """The doctor has found something that keeps devices from working."""


@dataclass(frozen=True, slots=True)
class Finding:
    """`verdict` is "ok", "note" for what may be intended, or "wrong"."""

    check: str
    verdict: str
    text: str
    fix: str = ""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@optional_control
@click.pass_obj
def doctor(registry: Registry, as_json: bool, connect: Connect | None) -> None:
    """Find out what keeps devices from working, and say what would help.

    Looks at the plugins, the host's USB, rights, drivers, memory for transfers and power saving; with the control
    socket of a running server at that too. Nothing is changed or opened.
    """
    findings = [
        *_plugins(registry),
        *_remote(registry),
        *_host(any(each.of_host for each in registry.backends().values())),
    ]
    findings += [*_devices(sysfs.scan(sysfs.DEVICES)), *_memory()]
    findings += _servers() if connect is None else _server(connect)
    wrong = [finding for finding in findings if finding.verdict == "wrong"]
    if as_json:
        print_object({"healthy": not wrong, "findings": [asdict(finding) for finding in findings]})
    else:
        print_table(("CHECK", "VERDICT", "WHAT"), [(each.check, each.verdict, each.text) for each in findings])
        checks = [finding.check for finding in findings if finding.fix]
        for finding in findings:
            if finding.fix:
                say()
                which = finding.check if checks.count(finding.check) == 1 else f"{finding.check}: {finding.text}"
                say(f"what would help ({which}):")
                say_lines(finding.fix)
    if wrong:
        be = "is" if len(wrong) == 1 else "are"
        names = ", ".join(dict.fromkeys(finding.check for finding in wrong))
        raise SomethingIsWrong(f"{len(wrong)} of {len(findings)} findings {be} wrong: {names}")


def _plugins(registry: Registry) -> Iterator[Finding]:
    for plugin in registry.failures:
        yield Finding("plugins", "wrong", f"plugin {plugin.name} is not used: {plugin.error}")
    backends = registry.backends()
    real = [name for name in sorted(OWN_BACKENDS) if name in backends]
    if real:
        yield Finding("backends", "ok", f"{', '.join(real)} for devices of this host")
    else:
        text = "there is no backend for devices of this host"
        yield Finding("backends", "note", text, installation().plugin(OWN_BACKENDS[0]))


def _remote(registry: Registry) -> Iterator[Finding]:
    for name, backend in sorted(registry.backends().items()):
        for problem in backend.problems():
            yield Finding(name, "wrong", problem)


def _host(wanted: bool) -> Iterator[Finding]:
    """`wanted`: there is a backend for its devices."""
    lack = "wrong" if wanted else "note"
    if not sysfs.DEVICES.is_dir():
        text = f"{sysfs.DEVICES} does not exist: the kernel has no USB, or this is a container without it"
        yield Finding("usb", lack, text, "sudo modprobe usbcore    # of a container, on its host")
        return
    if not sysfs.NODES.is_dir():
        yield Finding("usb", lack, f"{sysfs.NODES} does not exist: there is no udev, or this container has no nodes")
    else:
        yield Finding("usb", "ok", f"{sysfs.DEVICES} and {sysfs.NODES} are there")
    try:
        hotplug.uevent_socket().close()
    except OSError as error:
        text = f"no uevents ({error.strerror}): devices that come and go are noticed by their nodes alone"
        yield Finding("events", "note", text, "Allow AF_NETLINK (systemd: RestrictAddressFamilies=AF_UNIX AF_NETLINK).")
    else:
        yield Finding("events", "ok", "devices that come and go are noticed")


def _devices(devices: list[sysfs.SysfsDevice]) -> Iterator[Finding]:
    usage = Usage()
    for device in devices:
        label = f"{device.name} {device.vendor_id:04x}:{device.product_id:04x} {device.label}"
        forbidden = sysfs.not_authorized(device)
        if forbidden is not None and sysfs.unfitness(device) is None:
            reason, _, command = forbidden.partition(sysfs.ALLOW)
            yield Finding("authorization", "note", f"{label}: {reason}", command)
        for use in sysfs.users(device, usage):
            text = f"{label}: {use}, so a guest gets it when that has ended, or with in-use=take"
            yield Finding("in use", "note", text)
    usable = [device for device in devices if sysfs.refusal(device) is None]
    rules = []
    closed = 0
    for device in usable:
        label = f"{device.name} {device.vendor_id:04x}:{device.product_id:04x} {device.label}"
        problem = sysfs.access_problem(device)
        if problem is not None and sysfs.RULE in problem:
            rules.append(sysfs.udev_rule(device))
            yield Finding("rights", "wrong", f"no permission for {label}")
        elif problem is not None:
            reason, _, fix = problem.partition(sysfs.ALLOW)
            closed += 1
            yield Finding("rights", "wrong", f"{label}: {reason}", fix)
        if device.drivers:
            drivers = ", ".join(sorted(set(device.drivers.values())))
            yield Finding("drivers", "note", f"{drivers} has {label}; it gives it up while a guest has it")
        if _autosuspends(device):
            text = f"the host suspends {label} while nobody uses it"
            fix = f"If it does not survive that: echo on | sudo tee {sysfs.DEVICES / device.name}/power/control"
            yield Finding("autosuspend", "note", text, fix)
    if rules:
        yield Finding("rights", "note", "a udev rule gives them to the group plugdev", udev_advice("\n".join(rules)))
    elif usable and not closed:
        yield Finding("rights", "ok", f"all {len(usable)} devices may be opened")
    elif not usable:
        yield Finding("devices", "note", "no device is connected that could be given to a guest")


def _autosuspends(device: sysfs.SysfsDevice) -> bool:
    try:
        return (sysfs.DEVICES / device.name / "power" / "control").read_text().strip() == "auto"
    except OSError:
        return False


def _memory() -> Iterator[Finding]:
    try:
        limit = int(USBFS_MEMORY.read_text())
    except (OSError, ValueError):
        return
    if limit == 0 or limit >= ENOUGH_MEMORY:
        yield Finding("usbfs memory", "ok", "no limit" if limit == 0 else f"{limit} MiB for transfers in flight")
        return
    text = f"all programs together may have {limit} MiB of transfers in flight, which is little for fast devices"
    fix = f"echo 1000 | sudo tee {USBFS_MEMORY}    # and usbcore.usbfs_memory_mb=1000 on the kernel's command line"
    yield Finding("usbfs memory", "note", text, fix)


def _servers() -> Iterator[Finding]:
    """What there is to say where no server is looked at."""
    found = places.servers(places.directory(os.environ))
    if found:
        yield Finding("server", "note", f"{len(found)} servers run: {', '.join(found)}", "usbvfiod doctor --vm NAME")
    else:
        yield Finding("server", "note", "no server of this user is found", "usbvfiod --socket-path PATH")


def _server(connect: Connect) -> Iterator[Finding]:
    with connect() as server:
        status = server.request("status")
    server_status, memory = status["server"], status["memory"]
    if server_status["serving"]:
        yield Finding("server", "ok", f"process {server_status['pid']} serves")
    else:
        missing = ", ".join(server_status["missing"])
        yield Finding("server", "wrong", f"it does not serve until these required devices are there: {missing}")
    where = server_status["socket"] or "the socket that the server has inherited"
    if status["client"] is None:
        yield Finding("vm", "note", "no VMM is connected", f"Start a VM that connects to {where}.")
    elif memory["unshared"] and not memory["shared"]:
        fix = "QEMU: -object memory-backend-memfd,share=on,...; Cloud Hypervisor: --memory size=...,shared=on"
        yield Finding("vm", "wrong", "the guest's memory is not shared with the server, so no device can work", fix)
    elif memory["unshared"] >= NOTICED_SIZE:
        size = f"{memory['unshared'] >> 20} MiB"
        yield Finding("vm", "wrong", f"{size} of the guest's memory are not shared; transfers there fail", HOW_TO_SHARE)
    else:
        yield Finding("vm", "ok", f"process {status['client']['pid']} is connected and shares its memory")
    for attachment in status["attachments"]:
        label = attachment["name"] or attachment["spec"]
        verdict = {"plugged": "ok", "retrying": "wrong", "refused": "wrong"}.get(attachment["state"], "note")
        reason = f": {attachment['reason']}" if attachment["reason"] else ""
        fix = f"usbvfiod why {shlex.quote(attachment['spec'])}" if verdict == "wrong" else ""
        yield Finding("attachment", verdict, f"{label} is {attachment['state']}{reason}", fix)
