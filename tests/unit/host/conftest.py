"""A device of a host that is a script: it notes what reaches it, and answers what a test tells it to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest

from usbvfiod_core.host import reading
from usbvfiod_core.host.description import Description
from usbvfiod_core.host.device import HostDevice
from usbvfiod_core.host.operations import OperationFailed
from usbvfiod_core.host.options import HostOptions
from usbvfiod_core.host.ownership import Ownership
from usbvfiod_core.testing.device_bench import DeviceBench
from usbvfiod_core.testing.limits import PATIENCE
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb.descriptors import Configuration, DeviceDescriptor, Interface, bulk_endpoint
from usbvfiod_core.usb.device import Loop
from usbvfiod_core.usb.speed import Speed
from usbvfiod_core.usb.transfer import Transfer, TransferStatus

IN, OUT = 0x81, 0x02
ENDPOINTS = (bulk_endpoint(IN, Speed.HIGH), bulk_endpoint(OUT, Speed.HIGH))
INTERFACES = (Interface(0, 255, 0, 0, ENDPOINTS), Interface(0, 255, 0, 0, ENDPOINTS, 1), Interface(1, 255, 0, 0, ()))
FIRST = Configuration(INTERFACES, 1, attributes=0xA0).pack()
SECOND = Configuration(INTERFACES[:1], 2).pack()
DESCRIPTORS = DeviceDescriptor(0x200, 0, 0, 0, 64, 0x1209, 0x0001, 0x100, num_configurations=2).pack() + FIRST + SECOND
DESCRIPTION = Description(name="scripted", speed=Speed.HIGH, descriptors=DESCRIPTORS, configuration=1)


@pytest.fixture(autouse=True)
def host_that_answers_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that the tests' host is done with is read in time, however busy the machine is."""
    monkeypatch.setattr(reading, "PATIENCE", PATIENCE)


class ScriptedDevice(HostDevice):
    """`calls` is what was asked of it, in order; `failures` says which operations fail, by name, and how."""

    def __init__(
        self,
        loop: Loop,
        options: HostOptions,
        description: Description = DESCRIPTION,
        ownership: Ownership | None = None,
    ) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.failures: dict[str, TransferStatus | Exception] = {}
        self.answers: dict[int, tuple[TransferStatus, bytes]] = {}
        self.in_flight: list[Transfer] = []
        self.unclaimed: dict[int, str] = {}
        super().__init__(loop, description, options, ownership)

    def asked(self) -> list[tuple[object, ...]]:
        """What was asked of it since the last time."""
        calls, self.calls = self.calls, []
        return [call for call in calls if call[0] not in ("pause", "resume")]

    def start(self, transfer: Transfer) -> None:
        self.calls.append(("start", transfer.endpoint if transfer.setup is None else transfer.setup.request))
        answer = self.answers.get(transfer.endpoint)
        if answer is None:
            self.in_flight.append(transfer)
        else:
            status, data = answer
            transfer.complete(status, transfer.write(data) if transfer.is_in else transfer.length)

    def stop(self, transfer: Transfer) -> None:
        self.calls.append(("stop", transfer.endpoint))
        self.in_flight.remove(transfer)
        transfer.complete(TransferStatus.CANCELLED)

    def pause(self) -> None:
        self.calls.append(("pause",))

    def resume(self) -> None:
        self.calls.append(("resume",))

    def left_out(self) -> Mapping[int, str]:
        return self.unclaimed

    def set_configuration(self, value: int) -> None:
        self._operation("set_configuration", value)

    def reset_configuration(self) -> None:
        self._operation("reset_configuration")

    def set_interface(self, interface: int, alternate: int) -> None:
        self._operation("set_interface", interface, alternate)

    def clear_halt(self, endpoint: int) -> None:
        self._operation("clear_halt", endpoint)

    def reset_port(self) -> None:
        self._operation("reset_port")

    def release(self) -> None:
        self._operation("release")

    def released(self) -> None:
        self.calls.append(("released",))
        for transfer in self.in_flight:
            transfer.complete(TransferStatus.DISCONNECTED)

    def _operation(self, name: str, *arguments: int) -> None:
        assert self.calls[-1] == ("pause",) or self.calls[-1][0] not in ("start", "stop", "resume")
        self.calls.append((name, *arguments))
        failure = self.failures.get(name)
        if isinstance(failure, TransferStatus):
            raise OperationFailed(failure)
        if failure is not None:
            raise failure


class Bench(DeviceBench):
    """A bench whose device is a ScriptedDevice, of which DESCRIPTION is true but for what `known` says."""

    def __init__(self, options: HostOptions | None = None, **known: Any) -> None:
        loop = StepLoop()
        self.scripted = ScriptedDevice(loop, options or HostOptions(), replace(DESCRIPTION, **known))
        super().__init__(self.scripted, loop)


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.close()
