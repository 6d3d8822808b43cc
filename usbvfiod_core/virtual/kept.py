"""What every virtual device keeps when another process goes on with it: what the driver has made of its descriptors.

A driver has read the descriptors, and does not read them again. So a device of another version that would describe
itself otherwise does not take the place of this one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..state import U8, U16
from ..usb import descriptors
from ..usb.handover import CannotHandOver, Handover
from .digest import sha256
from .endpoint import VirtualEndpoint
from .standard import StandardRequests


@dataclass
class StandardState:
    """The state behind the standard requests (USB 2.0 9.4, USB 3.2 9.4)."""

    description: bytes
    """A digest of all descriptors."""
    configuration: U8 | None
    """bConfigurationValue of the chosen one."""
    alternates: dict[str, U8] = field(default_factory=dict)
    """By the interface's number."""
    halted: list[U8] = field(default_factory=list)
    """Addresses of endpoints."""
    remote_wakeup: bool = False
    u1: bool = False
    u2: bool = False
    ltm: bool = False
    exit_latencies: bytes = bytes(6)
    isochronous_delay: U16 = 0


def standard_state(device: StandardRequests) -> StandardState:
    """What a driver has done to a device by standard requests."""
    return StandardState(
        _description(device),
        None if device.configuration is None else device.configuration.value,
        {str(number): alternate for number, alternate in device.alternates.items()},
        [address for address, endpoint in device.endpoints.items() if endpoint.halted],
        device.remote_wakeup_enabled,
        device.u1_enabled,
        device.u2_enabled,
        device.ltm_enabled,
        device.exit_latencies,
        device.isochronous_delay,
    )


def take_standard_state(device: StandardRequests, state: StandardState) -> None:
    """Make a new device what another one was. Raises CannotHandOver if it is not the same one."""
    if state.description != _description(device):
        raise CannotHandOver(f"{device.product} has other descriptors here than those that its driver has read")
    if state.configuration is not None:
        known = {each.value: each for each in device.configurations}
        if state.configuration not in known:
            raise CannotHandOver(f"{device.product} has no configuration {state.configuration}")
        interfaces = known[state.configuration].interfaces
        chosen = {each.number: state.alternates.get(str(each.number), 0) for each in interfaces}
        active = [each for each in interfaces if chosen[each.number] == each.alternate]
        if len(active) != len(chosen) or len(state.alternates) > len(chosen):
            raise CannotHandOver(f"{device.product} has no such alternate settings: {state.alternates}")
        device.begin_configured(
            known[state.configuration], chosen, [VirtualEndpoint(item) for each in active for item in each.endpoints]
        )
    for address in state.halted:
        endpoint = device.endpoints.get(address)
        if endpoint is None:
            raise CannotHandOver(f"{device.product} has no endpoint {address:#04x}")
        endpoint.halted = True
    device.remote_wakeup_enabled = state.remote_wakeup
    device.u1_enabled, device.u2_enabled, device.ltm_enabled = state.u1, state.u2, state.ltm
    device.exit_latencies = state.exit_latencies
    device.isochronous_delay = state.isochronous_delay


def descriptor(handover: Handover, name: str) -> int:
    """The open file of this name that was handed over. Raises CannotHandOver if there is none."""
    fd = handover.descriptors.get(name)
    if fd is None:
        raise CannotHandOver(f"the descriptor {name!r} has not come with it")
    return fd


def _description(device: StandardRequests) -> bytes:
    texts = [descriptors.string_descriptor(text) for text in device.strings]
    return sha256(
        b"".join((device.device_descriptor.pack(), *(each.pack() for each in device.configurations), *texts))
    )[:16]
