"""The conformance suites: what every `Device` and every `Backend` must do, as pytest base classes.

    from usbvfiod_core.testing.conformance import DeviceConformance

    class TestMyDevice(DeviceConformance):
        def make_device(self, loop):
            return MyDevice(loop)

device        `DeviceConformance`: any device, virtual or real
slow          `SlowDeviceConformance`: one that moves a transfer bit by bit, and is told to stop in the middle
source_sink   `SourceSinkConformance`: a backend that moves data, tried on gadget zero
backend       `BackendConformance`: names, lists, options, errors

on_bench      what those for devices have in common: `timeout`, `submit_limit`, `make_device`, `unplug`, `bench`

All tests run in real time against a `StepLoop`; a device that needs a host's hardware works too.
"""

from __future__ import annotations

from .backend import BackendConformance
from .device import DeviceConformance
from .slow import SlowDeviceConformance
from .source_sink import SourceSinkConformance

__all__ = ["BackendConformance", "DeviceConformance", "SlowDeviceConformance", "SourceSinkConformance"]
