"""The contract of `Backend`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import pytest

from ...errors import ConfigError, UsbvfiodError
from ...hooks.options import backend_schema
from ...usb.backend import Backend, DeviceInfo
from ...usb.descriptors import DEVICE
from ...usb.transfer import TransferStatus
from ..backend import open_device
from ..device_bench import DeviceBench
from ..loop import StepLoop
from .enumeration import get_descriptor


class BackendConformance:
    """The contract of `Backend`, tested. A subclass writes `make_backend`, and gives `address` and its `options`."""

    address: str
    options: Mapping[str, str] = MappingProxyType({})

    def make_backend(self) -> Backend:
        """The backend."""
        raise NotImplementedError

    def test_it_has_a_name_for_specifications(self) -> None:
        name = self.make_backend().name
        assert name
        assert all(letter.isalnum() or letter == "-" for letter in name)

    def test_it_lists_devices(self) -> None:
        backend = self.make_backend()
        for info in backend.list_devices():
            assert isinstance(info, DeviceInfo)
            assert info.backend == backend.name
            assert info.address

    def test_it_opens_a_device_anew_each_time(self) -> None:
        for _ in range(2):
            loop = StepLoop(virtual_time=False)
            device = open_device(self.make_backend(), self.address, self.options, loop)
            bench = DeviceBench(device, loop)
            assert get_descriptor(bench, DEVICE, 0, 18).status is TransferStatus.COMPLETED
            bench.close()

    def test_an_unknown_option_is_named(self) -> None:
        loop = StepLoop()
        with pytest.raises(ConfigError, match="no-such-option"):
            open_device(self.make_backend(), self.address, {**self.options, "no-such-option": "1"}, loop)
        loop.close()

    def test_every_option_says_what_it_is_for(self) -> None:
        backend = self.make_backend()
        for address in backend.kinds or (self.address,):
            for field in backend_schema(backend, address).fields.values():
                assert field.help, f"{address}: give {field.name} an option(default, help)"

    def test_what_it_lists_is_of_its_kinds(self) -> None:
        backend = self.make_backend()
        if backend.kinds:
            listed = {info.address for info in backend.list_devices()}
            assert listed <= set(backend.kinds)

    def test_an_unknown_address_is_refused(self) -> None:
        loop = StepLoop()
        with pytest.raises(UsbvfiodError):
            open_device(self.make_backend(), "no such device", {}, loop)
        loop.close()
