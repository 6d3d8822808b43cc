"""Drives whose plugin goes on in another process, in the middle of whatever the guest does."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from usbvfiod_mass_storage_quirks.interceptor import MassStorageQuirks
from usbvfiod_mass_storage_quirks.options import DeviceOptions
from usbvfiod_mass_storage_quirks.quirks import parse_letters

from usbvfiod_core import (
    CannotHandOver,
    Device,
    DeviceEvents,
    NotSettled,
    Transfer,
    TransferStatus,
    TransferType,
    WrappedDevice,
)
from usbvfiod_core.testing.bus import DirectBus
from usbvfiod_core.testing.driver import UsbDevice
from usbvfiod_core.testing.guest import Guest
from usbvfiod_core.testing.interception import intercepted
from usbvfiod_core.testing.limits import PATIENCE
from usbvfiod_core.testing.mass_storage import MassStorage, ScsiError
from usbvfiod_core.testing.uas import UasClient, UasError

OpenFlash = Callable[..., Device]


class Hesitant(WrappedDevice):
    """A drive that takes its time for each bulk transfer, so that it may be taken back before it has begun."""

    def __init__(self, device: Device, bus: DirectBus, seed: int) -> None:
        super().__init__(device)
        self._loop = bus.loop
        self._chance = random.Random(seed)
        self._waiting: list[Transfer] = []
        self.taken_back = 0
        self.hanging = False
        """Whether it does nothing until its transfers are taken back."""

    def submit(self, transfer: Transfer) -> None:
        if transfer.type is not TransferType.BULK:
            self.device.submit(transfer)
            return
        self._waiting.append(transfer)
        self._loop.call_later(self._chance.uniform(0, 0.002), self._next, transfer.endpoint, transfer.stream_id)

    def cancel(self, transfer: Transfer) -> None:
        if transfer in self._waiting:
            self._waiting.remove(transfer)
            self.taken_back += 1
            transfer.complete(TransferStatus.CANCELLED, 0)
        else:
            self.device.cancel(transfer)

    def _next(self, endpoint: int, stream: int) -> None:
        if self.hanging:
            return
        for each in self._waiting:
            if (each.endpoint, each.stream_id) == (endpoint, stream):
                self._waiting.remove(each)
                self.device.submit(each)
                return


class Relay(Device):
    """A drive behind the plugin, which is handed over from one interceptor to the next."""

    def __init__(self, drive: Device, bus: DirectBus, make: Callable[[], MassStorageQuirks]) -> None:
        self.drive = drive
        self.speed, self.name, self.max_streams = drive.speed, drive.name, drive.max_streams
        self._bus = bus
        self._make = make
        self._events: DeviceEvents | None = None
        self.interceptor = make()
        self.inner = intercepted(drive, self.interceptor, bus.loop)
        self.count = 0
        self._begun = False
        self._chance: random.Random | None = None
        self._left = 0

    def attach(self, events: DeviceEvents) -> None:
        self._events = events
        self.inner.attach(events)

    def route(self, endpoint: int, type: TransferType) -> Callable[[Transfer], None]:
        self.inner.route(endpoint, type)
        return self.submit

    def submit(self, transfer: Transfer) -> None:
        if self._chance is not None:
            self._left -= 1
            if self._left < 0:
                self._left = self._chance.randrange(6)
                self._bus.loop.call_later(self._chance.uniform(0, 0.003), self.pass_on)
        self.inner.submit(transfer)

    def cancel(self, transfer: Transfer) -> None:
        self.inner.cancel(transfer)

    def reset(self, done: Callable[[], object]) -> None:
        self.inner.reset(done)

    def close(self) -> None:
        self.inner.close()

    def pass_on(self) -> None:
        """Begin: as soon as the controller is quiet, the next one goes on."""
        if not self._begun:
            self._begun = True
            self._bus.controller.quiet(lambda: self.inner.when_settled(lambda: self._bus.loop.call_soon(self._succeed)))

    def _succeed(self) -> None:
        self._begun = False
        try:
            state: dict[str, Any] = json.loads(json.dumps(self.interceptor.own_state()))
        except NotSettled:
            self._bus.controller.resume()
            return
        assert self._events is not None
        self.interceptor = self._make()
        self.inner = intercepted(self.drive, self.interceptor, self._bus.loop)
        self.interceptor.take_own_state(state)
        self.inner.attach(self._events)
        self.count += 1
        self._bus.controller.resume()

    def now_and_then(self, seed: int) -> None:
        """From now on hand it over a moment after every few transfers: as often on a fast machine as on a slow one."""
        self._chance = random.Random(seed)


def relayed(
    guest: Guest,
    open_flash: OpenFlash,
    image: Path,
    *,
    readonly: bool = False,
    quirks: str = "",
    options: DeviceOptions | None = None,
    seed: int = 1,
    **flash: str,
) -> tuple[Relay, UsbDevice]:
    bus = guest.bus
    assert isinstance(bus, DirectBus)

    def make() -> MassStorageQuirks:
        return MassStorageQuirks("drive", options or DeviceOptions(), parse_letters(quirks), readonly=readonly)

    relay = Relay(Hesitant(open_flash(image, bus.loop, **flash), bus, seed), bus, make)
    return relay, guest.plug(relay)


def cdb(operation: int, block: int, count: int) -> bytes:
    return bytes((operation, 0, *block.to_bytes(4, "big"), 0, *count.to_bytes(2, "big"), 0))


def command(storage: MassStorage | UasClient, block: bytes, length: int = 0, data: bytes = b"") -> object:
    if isinstance(storage, MassStorage):
        return storage.command(block, length, data)
    return storage.submit(block, len(data) or length, data).result()


def outcome(work: Callable[[], object]) -> object:
    try:
        result = work()
    except ScsiError as error:
        return error.key, error.code, error.qualifier
    except UasError as error:
        return str(error)
    return bytes(result) if isinstance(result, bytes | bytearray | memoryview) else result


def commands(storage: MassStorage | UasClient, seed: int) -> Iterator[object]:
    """What a driver sees that does a bit of everything; of writes the sense, where they are refused."""
    chance = random.Random(seed)
    for _ in range(50):
        block, count = chance.randrange(1500), chance.randrange(1, 300)
        kind = chance.randrange(6)
        if kind < 2:
            yield outcome(partial(command, storage, cdb(0x28, block, count), count * 512))
        elif kind < 4:
            data = chance.randbytes(count * 512)
            yield outcome(partial(command, storage, cdb(0x2A, block, count), 0, data))
        elif kind == 4:
            yield outcome(lambda: command(storage, bytes((0x1A, 0, 0x3F, 0, 192, 0)), 192))  # MODE SENSE (6)
        else:
            yield outcome(lambda: command(storage, cdb(0x41, 0, 1), 0, bytes(512)))
    yield outcome(lambda: command(storage, bytes(6)))


CASES: dict[str, dict[str, Any]] = {
    "readonly": {"readonly": True},
    "readonly, stalls": {"readonly": True, "stalls": "true"},
    "split": {"quirks": "m"},
    "edited": {"quirks": "wrb"},
    "guarded": {"quirks": "k", "options": DeviceOptions(timeout=5.0, delay=0.1)},
    "UAS, readonly": {"readonly": True, "transport": "uas"},
    "UAS, guarded": {"quirks": "kw", "transport": "uas"},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.long)])
def test_a_driver_notices_nothing(
    usb_guest: Guest, open_flash: OpenFlash, image: Path, tmp_path: Path, case: str, seed: int
) -> None:
    settings = CASES[case]
    copy = tmp_path / "copy.img"
    copy.write_bytes(image.read_bytes())
    client = UasClient if settings.get("transport") == "uas" else MassStorage
    _, plain = relayed(usb_guest, open_flash, copy, **settings)
    relay, device = relayed(usb_guest, open_flash, image, **settings, seed=seed)
    expected = list(commands(client(plain), seed))
    storage = client(device)
    relay.now_and_then(seed)
    assert list(commands(storage, seed)) == expected
    assert relay.count >= 10
    assert isinstance(relay.drive, Hesitant)
    assert relay.drive.taken_back > 5
    assert image.read_bytes() == copy.read_bytes()


def test_other_settings_are_refused(usb_guest: Guest, open_flash: OpenFlash, image: Path) -> None:
    relay, device = relayed(usb_guest, open_flash, image, readonly=True)
    MassStorage(device).read_capacity()
    state = relay.interceptor.own_state()
    for quirks, readonly in (("", False), ("k", True)):
        other = MassStorageQuirks("drive", DeviceOptions(), parse_letters(quirks), readonly=readonly)
        with pytest.raises(CannotHandOver, match="its mass-storage options were readonly, and would be"):
            other.take_own_state(state)
    guarded = MassStorageQuirks("drive", DeviceOptions(), frozenset(), readonly=True)
    with pytest.raises(CannotHandOver, match="were none, and would be readonly here"):
        guarded.take_own_state({})


def test_a_refused_command_is_explained_by_the_next_one(usb_guest: Guest, open_flash: OpenFlash, image: Path) -> None:
    relay, device = relayed(usb_guest, open_flash, image, readonly=True)
    assert isinstance(usb_guest.bus, DirectBus)
    storage = MassStorage(device)
    status, _ = storage.transact(cdb(0x2A, 0, 1), 512, is_in=False)
    assert status == 1
    relay.pass_on()
    assert usb_guest.bus.loop.run_until(lambda: relay.count == 1, PATIENCE)
    assert storage.request_sense()[:2] == (7, 0x27)


@pytest.mark.parametrize("hangs", [False, True])
def test_a_drive_that_does_not_answer_is_recovered_by_the_next_one(
    usb_guest: Guest, open_flash: OpenFlash, image: Path, hangs: bool
) -> None:
    """Also if it is handed over while it is being recovered, of which the end is waited for."""
    relay, device = relayed(usb_guest, open_flash, image, options=DeviceOptions(timeout=2.0))
    bus = usb_guest.bus
    assert isinstance(bus, DirectBus)
    assert isinstance(relay.drive, Hesitant)
    storage = MassStorage(device)
    storage.read_capacity()
    relay.drive.hanging = True

    def meanwhile() -> None:
        relay.pass_on()
        if not hangs:
            relay.drive.hanging = False  # type: ignore[attr-defined]

    bus.loop.call_later(1.0, meanwhile)
    if hangs:
        with pytest.raises(ScsiError) as failed:
            storage.read(3, 5)
        assert failed.value.key == 0xB
        relay.drive.hanging = False
    assert bytes(storage.read(3, 5)) == image.read_bytes()[3 * 512 : 8 * 512]
    assert relay.count == 1
