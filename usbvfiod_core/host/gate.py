"""What every device of the host passes, in a thread, before it is opened: whether it may be taken from the host now.
And why its node could not be opened then."""

from __future__ import annotations

import errno
import logging
from typing import Final

from ..errors import DeviceError, DeviceWithheld
from ..rights import has_opener
from .options import HostOptions, InUse
from .sysfs import ALLOW, CONTAINER, SysfsDevice, access_problem, not_authorized, programs, unfitness, users

log = logging.getLogger(__name__)

ADVICE: Final = "end that, or give it the option in-use=take"
_UNIT: Final = "for a unit of systemd: DeviceAllow=char-usb_device rw"
_NAMED: Final = 4
"""Uses that are named; a drive can have many partitions."""


def admit(device: SysfsDevice, options: HostOptions) -> SysfsDevice:
    """The device as it is now, if it may be taken.

    Called in a thread, before its node is opened or what was opened is used; may wait for the host. Raises DeviceError
    for one that cannot be given to a guest, DeviceWithheld for one that can when the host is done with it: it is not
    authorized, or in use and the user has not said to take it nevertheless.
    """
    device = device.now()
    reason = unfitness(device)
    if reason is not None:
        raise DeviceError(f"{device.label} ({device.name}): {reason}")
    forbidden = not_authorized(device)
    if forbidden is not None:
        raise DeviceWithheld(forbidden)
    uses = users(device)
    if uses:
        more = [f"and {len(uses) - _NAMED} more"] if len(uses) > _NAMED else []
        text = f"it is in use on this host: {'; '.join([*uses[:_NAMED], *more])}"
        if options.in_use is InUse.REFUSE:
            raise DeviceWithheld(f"{text}; {ADVICE}")
        log.warning("%s (%s) is taken although %s", device.label, device.name, text)
    losers = programs(device)
    if losers:
        log.info("%s (%s) is taken from programs of this host: %s", device.label, device.name, "; ".join(losers))
    return device


def open_problem(device: SysfsDevice, error: OSError) -> str:
    """Why the device's node could not be opened, and what would help. Linux refuses by EPERM what a container or a unit
    of systemd keeps from its processes, whatever the node's mode says: all devices, or those that came later than it.
    """
    if isinstance(error, PermissionError | FileNotFoundError):
        problem = access_problem(device)
        if problem is not None:
            return problem
    refused = f"{device.node}: {error.strerror}"
    if error.errno == errno.EPERM and not has_opener():
        return f"{refused}, whatever its mode says{ALLOW}{CONTAINER}; {_UNIT}"
    return refused
