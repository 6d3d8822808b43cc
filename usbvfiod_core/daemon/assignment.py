"""Which of the devices that a backend lists goes to which attachment."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, TypeAlias

from ..errors import ConfigError, DeviceError
from ..usb.backend import DeviceInfo
from .intents import Attachment
from .matching import Kind, describe, find_again, kind_of, rank, same_place_and_kind

Choice: TypeAlias = "DeviceInfo | ConfigError | DeviceError | None"
"""The device; or why it cannot be told which (ConfigError), or that another attachment has it (DeviceError); or None:
it is not there."""

_KIND_ONLY: Final = (Kind.IDENTITY, False)
"""The `rank` of addresses that say what kind of device it is, and not which."""


def assign(
    attachments: Iterable[Attachment], pending: Sequence[Attachment], devices: Sequence[DeviceInfo]
) -> dict[Attachment, Choice]:
    """A choice for each of `pending`, in their order.

    A device that can only be in one place goes to one attachment. Attachments whose address says more
    about the device choose before those whose address says less. Of those whose addresses say only what kind it is,
    those choose first whose device is where it was: of several that are alike, as adapters without serial numbers
    behind a hub that was switched off and on, each is again whose it was, whichever comes first.
    """
    held = {each.info.port_path: each for each in attachments if each.holds}
    choices: dict[Attachment, Choice] = dict.fromkeys(pending)
    for attachment in sorted(pending, key=lambda each: _turn(each, devices)):
        choice = choices[attachment] = _choose(attachment, devices, held)
        if isinstance(choice, DeviceInfo):
            held[choice.port_path] = attachment
    return choices


def check_given(attachments: Iterable[Attachment], attachment: Attachment, info: DeviceInfo) -> None:
    """Raise ConfigError or DeviceError if an attachment may not have the device behind a descriptor that was given for
    it: another attachment has it, or it is not the device that is meant."""
    choice = assign((each for each in attachments if each is not attachment), [attachment], [info])[attachment]
    if isinstance(choice, ConfigError | DeviceError):
        raise choice
    if choice is None and kind_of(attachment.spec.address) is not Kind.OWN:
        raise DeviceError(f"the descriptor is of another device, {describe(info)}")


def _turn(attachment: Attachment, devices: Sequence[DeviceInfo]) -> tuple[object, ...]:
    own, last = rank(attachment.spec.address), attachment.last
    back = last is not None and any(same_place_and_kind(info, last) for info in devices)
    return min(own, _KIND_ONLY), not back, own


def _choose(attachment: Attachment, devices: Sequence[DeviceInfo], held: dict[str, Attachment]) -> Choice:
    address, last, follow_port = attachment.spec.address, attachment.known, attachment.spec.follow_port
    free = [info for info in devices if not info.port_path or info.port_path not in held]
    try:
        info = find_again(address, last, free, follow_port=follow_port)
        if info is None and len(free) < len(devices):
            taken = find_again(address, last, devices, follow_port=follow_port)
            if taken is not None:
                return DeviceError(f"{taken.address} is taken by {held[taken.port_path]}")
    except ConfigError as error:
        return error
    return info
