"""An interceptor in front of a device, as the server puts it there."""

from __future__ import annotations

from ..hooks.interception import intercept
from ..hooks.interceptor import Interceptor
from ..usb.device import Device, Loop


def intercepted(device: Device, interceptor: Interceptor, loop: Loop, plugin: str = "test") -> Device:
    """`device` behind `interceptor`; what it does wrong is logged under the name of `plugin`."""
    return intercept(device, interceptor, plugin, loop)
