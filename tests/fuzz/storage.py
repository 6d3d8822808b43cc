"""A guest that uses a flash drive behind the plugin `mass-storage-quirks` in any way: a drive in read-only mode does
not change, and the plugin never fails."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from struct import Struct

from usbvfiod_mass_storage_quirks.access import WRITES
from usbvfiod_mass_storage_quirks.interceptor import MassStorageQuirks
from usbvfiod_mass_storage_quirks.options import DeviceOptions
from usbvfiod_mass_storage_quirks.quirks import Quirk, parse_letters

from tests.fuzz.inputs import Actions
from tests.fuzz.watch import FindError, Watch, WatchedLoop
from usbvfiod_core import SetupPacket, Transfer, TransferType
from usbvfiod_core.testing.backend import open_device
from usbvfiod_core.testing.interception import intercepted
from usbvfiod_core.virtual import VirtualBackend

CONTENT = bytes(range(256)) * 128
IN, OUT, STATUS, COMMAND = 0x81, 0x02, 0x83, 0x04
MOST_ACTIONS = 60
CBW = Struct("<IIIBBB16s")
COMMANDS = tuple(
    bytes.fromhex(each)
    for each in (
        "000000000000",
        "120000002400",
        "12018000ff00",
        "1a003f00c000",
        "5a003f00000000010000",
        "25000000000000000000",
        "9e100000000000000000000000200000",
        "28000000000000000100",
        "28000000000000000800",
        "2a000000000000000100",
        "8a000000000000000000000000010000",
        "35000000000000000000",
        "a00000000000000000100000",
        "030000001200",
        "1b0000000200",
        "1e0000000100",
        "41000000000000000100",
        "42000000000000001800",
        "55100000000000000800",
    )
)
LENGTHS = (0, 13, 18, 31, 36, 192, 512, 1024, 4096, 0xFFFF_FFFF)
REQUESTS: tuple[tuple[int, int, int, int, int], ...] = (
    # bmRequestType, bRequest, wValue, wIndex, bytes
    (0x00, 9, 1, 0, 0),
    (0x00, 9, 0, 0, 0),
    (0x01, 11, 0, 0, 0),
    (0x01, 11, 1, 0, 0),
    (0x21, 0xFF, 0, 0, 0),
    (0xA1, 0xFE, 0, 0, 1),
    (0x02, 1, 0, IN, 0),
    (0x02, 1, 0, OUT, 0),
    (0x80, 6, 0x200, 0, 255),
    (0x80, 6, 0x301, 0x409, 255),
    (0x21, 0, 0, 0, 12),
)


@cache
def _image() -> Path:
    directory = tempfile.TemporaryDirectory()
    _image.kept = directory  # type: ignore[attr-defined]
    return Path(directory.name) / "image"


class Host:
    """A controller that is made to send anything."""

    def __init__(self, actions: Actions, loop: WatchedLoop, stack: ExitStack) -> None:
        self.actions = actions
        self.loop = loop
        self.transfers: list[Transfer] = []
        path = _image()
        path.write_bytes(CONTENT)
        options = {"image": str(path), "transport": actions.pick(("bot", "uas"))}
        options["speed"] = actions.pick(("super", "high"))
        options["stalls"] = actions.pick(("false", "true"))
        if actions.rarely():
            options["fault"] = actions.pick(("stall@in:512", "drop@in:13", "disconnect@out:62"))
        drive = open_device(VirtualBackend(), "flash", options, loop)
        self.readonly = actions.flag()
        letters = "".join(quirk.value for quirk in Quirk if actions.byte() >= 192)
        own = DeviceOptions(
            strict=actions.flag(),
            delay=actions.pick((0.0, 0.0, 1.0)),
            eject=actions.rarely(),
            timeout=actions.pick((0.0, 1.0)),
        )
        plugin = MassStorageQuirks("drive", own, parse_letters(letters), readonly=self.readonly)
        self.device = intercepted(drive, plugin, loop, "mass-storage-quirks")
        self._closed: list[bool] = []
        stack.callback(self.close)
        self.device.attach(self)
        self.request((0x00, 9, 1, 0, 0))
        if options["transport"] == "uas" and actions.flag():
            self.request((0x01, 11, 1, 0, 0))

    def close(self) -> bool:
        """Take the drive away; whether that is done within seconds."""
        if not self._closed:
            self.device.close()
            self.device.when_closed(partial(self._closed.append, True))
            self.loop.advance(5.0)
        return bool(self._closed)

    # -- DeviceEvents ------------------------------------------------------------------------------------------------

    def disconnected(self) -> None: ...
    def remote_wakeup(self) -> None: ...
    def note(self, text: str) -> None: ...

    def microframe(self) -> int:
        return 0

    # -- what it does ------------------------------------------------------------------------------------------------

    def submit(
        self,
        endpoint: int,
        type: TransferType,
        data: bytes | int,
        *,
        stream_id: int = 0,
        setup: SetupPacket | None = None,
        later: bytes = b"",
    ) -> None:
        """A transfer whose memory is `later` as soon as the device has it."""
        memory = bytearray(data)
        windows = [memoryview(memory)] if memory else []
        transfer = Transfer(
            endpoint, type, windows, len(memory), self.transfers.append, setup=setup, stream_id=stream_id
        )
        with self.loop.watch.turn(transfer):
            self.device.route(endpoint, type)(transfer)
        memory[: len(later)] = later[: len(memory)]

    def request(self, what: tuple[int, int, int, int, int]) -> None:
        *_, length = what
        self.submit(0, TransferType.CONTROL, bytes(length), setup=SetupPacket(*what))
        self.loop.run_ready()

    def control(self) -> None:
        what = list(self.actions.pick(REQUESTS))
        if self.actions.rarely():
            what[self.actions.below(4)] = self.actions.below(256)
        self.request((what[0], what[1], what[2], what[3], what[4]))

    def cdb(self) -> bytes:
        act = self.actions
        cdb = act.pick(COMMANDS)
        how = act.byte()
        if how >= 240:
            cdb = act.blob(16)
        elif how >= 200:
            cdb = bytes((act.pick(sorted(WRITES)),)) + act.blob(9)
        elif how >= 180:
            at = act.below(len(cdb))
            cdb = cdb[:at] + bytes((act.byte(),)) + cdb[at + 1 :]
        return cdb.ljust(16, b"\0")

    def wrapper(self) -> bytes:
        """A command block wrapper, right or a bit wrong."""
        act = self.actions
        whole = CBW.pack(0x43425355, act.below(4), act.pick(LENGTHS), act.pick((0x80, 0)), act.below(2), 16, self.cdb())
        how = act.byte()
        if how < 200:
            return whole
        at = act.below(31)
        changed = whole[:at] + bytes((act.byte(),)) + whole[at + 1 :]
        return changed[: act.pick((31, 31, 30, 13, 0))] + act.pick((b"", b"\0", whole))

    def unit(self) -> bytes:
        """An information unit, right or a bit wrong."""
        act = self.actions
        if act.rarely():
            unit = bytes((5, 0, 0, act.below(4), act.pick((1, 2, 8, 0x10, 0x80)), 0, 0, act.below(4))) + bytes(8)
        else:
            unit = bytes((1, 0, 0, act.below(4), act.below(4), 0, 0, 0)) + bytes(8) + self.cdb()
        if act.rarely():
            at = act.below(len(unit))
            unit = unit[:at] + bytes((act.byte(),)) + unit[at + 1 :]
        return unit[: act.pick((32, 32, 32, 16, 3))]

    def out(self) -> None:
        act = self.actions
        kind = act.below(4)
        data = (
            (self.wrapper() if kind == 0 else self.unit()) if kind < 2 else b"\xff" * 512 if kind < 3 else act.some(40)
        )
        later = self.wrapper() if act.rarely() else b""
        endpoint = act.pick((OUT, COMMAND, 0x06)) if act.rarely() else COMMAND if len(data) in (16, 32) else OUT
        self.submit(endpoint, TransferType.BULK, data, stream_id=act.below(4), later=later)

    def fetch(self) -> None:
        act = self.actions
        length = act.pick(LENGTHS[:-1])
        self.submit(act.pick((IN, IN, STATUS, 0x85)), TransferType.BULK, length, stream_id=act.below(4))

    def exchange(self) -> None:
        """What a driver does: a command, its data and its status."""
        act = self.actions
        self.submit(OUT, TransferType.BULK, self.wrapper())
        if act.flag():
            self.submit(OUT, TransferType.BULK, b"\xff" * act.pick((512, 24, 8)))
        for length in (512, 13)[act.below(2) :]:
            self.submit(IN, TransferType.BULK, length)
        self.loop.run_ready()

    def uas_exchange(self) -> None:
        """The same with streams."""
        unit = self.unit()
        tag = unit[3] if len(unit) > 3 else 1
        self.submit(STATUS, TransferType.BULK, 512, stream_id=tag)
        self.submit(self.actions.pick((IN, OUT)), TransferType.BULK, 512, stream_id=tag)
        self.submit(COMMAND, TransferType.BULK, unit)
        self.loop.run_ready()

    def cancel(self) -> None:
        for transfer in self.transfers[-3:]:
            if transfer.status is None:
                self.device.cancel(transfer)

    def reset(self) -> None:
        self.device.reset(lambda: None)

    def wait(self) -> None:
        self.loop.advance(self.actions.pick((0.0, 0.1, 1.1)))


DEEDS = (
    Host.exchange,
    Host.exchange,
    Host.uas_exchange,
    Host.uas_exchange,
    Host.out,
    Host.fetch,
    Host.control,
    Host.cancel,
    Host.reset,
    Host.wait,
)


def play(actions: Actions, watch: Watch) -> None:
    """One guest with its drive."""
    with ExitStack() as stack:
        loop = WatchedLoop(watch)
        stack.callback(loop.close)
        host = Host(actions, loop, stack)
        for _ in range(MOST_ACTIONS):
            if not actions:
                break
            actions.pick(DEEDS)(host)
        loop.advance(2.0)
        watch.look()
        if not host.close():
            raise FindError("the drive is never closed")
        if host.readonly and _image().read_bytes() != CONTENT:
            raise FindError("the drive has changed")
