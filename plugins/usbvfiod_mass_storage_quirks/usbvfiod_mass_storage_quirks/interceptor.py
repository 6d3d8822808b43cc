"""What stands between a guest and one device: finds its mass storage and follows which transport each interface has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from usbvfiod_core import (
    CannotHandOver,
    InterceptedTransfer,
    Interceptor,
    SetupPacket,
    Transfer,
    TransferStatus,
    TransferType,
)
from usbvfiod_core.state import pack, unpack
from usbvfiod_core.usb import descriptors
from usbvfiod_core.usb.requests import (
    CLEAR_FEATURE,
    DIRECTION_IN,
    GET_CONFIGURATION,
    GET_DESCRIPTOR,
    GET_INTERFACE,
    GET_STATUS,
    RECIPIENT_ENDPOINT,
    RECIPIENT_INTERFACE,
    SET_CONFIGURATION,
    SET_FEATURE,
    SET_INTERFACE,
    SET_ISOCH_DELAY,
    SET_SEL,
    TYPE_STANDARD,
)

from . import handed_over
from .bulk_only import BulkOnly
from .client import Client
from .commands import CommandSet, log
from .information_units import DATA_IN_PIPE, DATA_OUT_PIPE
from .layout import UAS, Layout, Setting, without_uas
from .options import DeviceOptions
from .quirks import Quirk, Quirks
from .recovery import Recovery
from .splitting import Splitting
from .state import DescriptorsState, MassStorageState, State, TransportState
from .uas import Uas
from .wrappers import BULK_ONLY_RESET, GET_MAX_LUN

_CONFIGURE = (0x00, SET_CONFIGURATION)
_CHOOSE = (RECIPIENT_INTERFACE, SET_INTERFACE)
_HARMLESS = frozenset(
    {(DIRECTION_IN | recipient, GET_STATUS) for recipient in range(4)}
    | {(recipient, feature) for recipient in range(3) for feature in (CLEAR_FEATURE, SET_FEATURE)}
    | {(DIRECTION_IN | recipient, GET_DESCRIPTOR) for recipient in range(2)}
    | {_CONFIGURE, _CHOOSE, (DIRECTION_IN, GET_CONFIGURATION), (DIRECTION_IN | RECIPIENT_INTERFACE, GET_INTERFACE)}
    | {(0x00, SET_SEL), (0x00, SET_ISOCH_DELAY)}
)
"""Standard requests that a device gets in read-only mode: bmRequestType and bRequest (USB 2.0 table 9-3)."""

EJECT = bytes((0x1B, 0, 0, 0, 0x02, 0))
"""START STOP UNIT with LOEJ (SBC-3 5.20)."""
EJECT_PATIENCE = 10.0
"""Seconds in which a device shall have left after it."""

_NOTHING = "none"
_STALL = TransferStatus.STALL

Transport = BulkOnly | Uas
Take = Callable[[InterceptedTransfer], None]


class MassStorageQuirks(Interceptor):
    """Read-only mode, quirks and log of one device."""

    def __init__(self, name: str, options: DeviceOptions, quirks: Quirks, *, readonly: bool = False) -> None:
        self.options = options
        self.quirks = quirks
        self.commands = CommandSet(name, quirks, readonly=readonly)
        self.layout = Layout()
        commands = self.commands
        needs_recovery = options.timeout > 0
        commands.guards = commands.guards or needs_recovery  # it answers for a drive that does not
        self._matters = bool(commands.guards or commands.edits or needs_recovery or options.eject or options.delay > 0)
        """Whether a drive would be another one for the guest without this; a log makes no difference."""
        self._matters = self._matters or bool(quirks & {Quirk.IGNORE_RESIDUE, Quirk.SINGLE_LUN})
        self._active = self._matters or commands.logs
        self._readonly = readonly
        self._strict = options.strict
        self._known = False
        self._unreadable = False
        self._waiting: InterceptedTransfer | None = None  # for the descriptors
        self._configuration: int | None = None
        self._transports: dict[tuple[int, int, int], Transport] = {}
        self._current: dict[int, Transport] = {}  # by interface
        self._down: dict[int, Take] = {}  # by endpoint, what takes its transfers on each way
        self._up: dict[int, Take] = {}
        self._ejected = False
        self._ejecting: BulkOnly | None = None
        self._ejecting_until = 0.0
        self._descriptors: list[DescriptorsState] = []

    # -- Interceptor -------------------------------------------------------------------------------------------------

    def intercepts(self, endpoint: int, type: TransferType) -> bool:
        if type is TransferType.CONTROL:
            return self._active
        if not self._active:
            return False
        if endpoint in self.layout.storage:
            return True
        return self._readonly and (self._strict or endpoint not in self.layout.others)

    def attached(self) -> None:
        self.commands.name = self.device.name
        for transport in self._current.values():
            if isinstance(transport, BulkOnly):
                handed_over.attached(transport)
        if self._ejecting is not None:
            left = max(self._ejecting_until - self.loop.time(), 0.0)
            self.call_later(left, self._not_ejected, self._ejecting)

    def was_reset(self) -> None:
        self._configuration = None
        self._stop(None)
        self._waiting = None
        if self._unreadable:
            self._known = self._unreadable = False
            self._descriptors = []

    # -- going on in another process ---------------------------------------------------------------------------------

    def own_state(self) -> dict[str, Any]:
        if not self._active:
            return {}
        transports = []
        for number, transport in self._current.items():
            [(_, _, alternate)] = [key for key, each in self._transports.items() if each is transport]
            told = TransportState(number, alternate)
            if isinstance(transport, Uas):
                told.uas = transport.saved()
            else:
                told.bulk_only = handed_over.saved(transport)
                if transport is self._ejecting and transport.state is State.BUSY:
                    told.bulk_only.ejecting = max(self._ejecting_until - self.loop.time(), 0.0)
            transports.append(told)
        state = MassStorageState(
            self._settings,
            self._known,
            self._unreadable,
            self._descriptors,
            self._configuration,
            self._ejected,
            self.commands.saved(),
            transports,
        )
        return pack(state)

    def take_own_state(self, state: dict[str, Any]) -> None:
        told = unpack(MassStorageState, state) if state else None
        before = _NOTHING if told is None else told.settings
        if before != self._settings:
            raise CannotHandOver(
                f"its mass-storage options were {before}, and would be {self._settings} here; change them while it is "
                "unplugged"
            )
        if told is None or not self._active:
            self._active = (
                False  # there is only a log to be had, and it begins with the next time that it is plugged in
            )
            return
        try:
            for each in told.configurations:
                self.layout.add(each.shown, each.raw)
        except descriptors.DescriptorError as error:
            raise CannotHandOver(f"its descriptors make no sense: {error}") from None
        self._descriptors = told.configurations
        self._known, self._unreadable, self._ejected = told.known, told.unreadable, told.ejected
        self._configuration = told.configuration
        self.commands.take(told.commands)
        for transport in told.transports:
            self._take_transport(transport)

    def _take_transport(self, told: TransportState) -> None:
        key = (self._configuration, told.interface, told.alternate)
        setting = None if self._configuration is None else self.layout.settings.get((self._configuration, *key[1:]))
        if setting is None or not setting.pipes or self._configuration is None:
            raise CannotHandOver(f"interface {told.interface} has no setting {told.alternate} of mass storage")
        transport = self._make_current(setting, self._configuration)
        if isinstance(transport, Uas) and told.uas is not None:
            transport.take(told.uas)
        elif isinstance(transport, BulkOnly) and told.bulk_only is not None:
            handed_over.take(transport, told.bulk_only)
            if told.bulk_only.ejecting is not None:
                self._ejecting = transport
                self._ejecting_until = self.loop.time() + min(told.bulk_only.ejecting, EJECT_PATIENCE)
        else:
            raise CannotHandOver(f"interface {told.interface} has another transport here")

    @property
    def _settings(self) -> str:
        """What is done to the drive, for people."""
        if not self._matters:
            return _NOTHING
        options = self.options
        words = [word for word, held in (("readonly", self._readonly), ("strict", options.strict)) if held]
        if self.quirks:
            words.append(f"quirks={''.join(sorted(each.value for each in self.quirks))}")
        words += [
            f"{name}={value:g}" for name, value in (("timeout", options.timeout), ("delay", options.delay)) if value
        ]
        if options.eject:
            words.append("eject")
        return " ".join(words) or _NOTHING

    def configuration_descriptor(self, raw: bytes) -> bytes:
        device = self.device
        hidden = Quirk.IGNORE_UAS in self.quirks or (device.speed.is_usb3 and not device.max_streams)
        return without_uas(raw) if hidden else raw

    def control(self, transfer: InterceptedTransfer) -> None:
        setup = transfer.setup
        if setup is None or transfer.endpoint & 0x7F:
            if self._readonly:
                transfer.refuse(_STALL)
        elif self._known:
            self._request(transfer, setup)
        else:
            # Not from what the guest reads: it need not read anything.
            self._waiting = transfer
            transfer.hold()
            self.control_request(
                SetupPacket(DIRECTION_IN, GET_DESCRIPTOR, descriptors.DEVICE << 8, 0, 18), self._device_read
            )

    def control_completed(self, transfer: InterceptedTransfer) -> None:
        setup = transfer.setup
        if setup is None or not self._known:
            return
        key = (setup.request_type, setup.request)
        if key == _CONFIGURE:
            self._configuration = None
            if transfer.status is TransferStatus.COMPLETED:
                self._configured(setup.value & 0xFF)
        elif key == _CHOOSE and self.layout.is_storage(self._configuration, setup.index & 0xFF):
            self._chosen(setup, transfer.status is TransferStatus.COMPLETED)
        elif key == BULK_ONLY_RESET:
            transport = self._current.get(setup.index & 0xFF)
            if isinstance(transport, BulkOnly):
                transport.reset()

    def bulk(self, transfer: InterceptedTransfer) -> None:
        take = self._down.get(transfer.endpoint)
        if take is not None:
            take(transfer)
        elif self._readonly:
            transfer.refuse(_STALL)

    def bulk_completed(self, transfer: InterceptedTransfer) -> None:
        take = self._up.get(transfer.endpoint)
        if take is not None:
            take(transfer)

    def interrupt(self, transfer: InterceptedTransfer) -> None:
        """There is none in bulk-only and UAS; a driver may still claim that a bulk endpoint is one."""
        if self._readonly:
            transfer.refuse(_STALL)

    def isochronous(self, transfer: InterceptedTransfer) -> None:
        """As for interrupt transfers."""
        if self._readonly:
            transfer.refuse(_STALL)

    # -- the device's descriptors ------------------------------------------------------------------------------------

    def _device_read(self, answer: Transfer) -> None:
        data = answer.read()[: answer.actual]
        if answer.status is not TransferStatus.COMPLETED or len(data) < 18:
            self._read(False)
        else:
            self._ask_configuration(0, data[17])

    def _ask_configuration(self, index: int, count: int, length: int = 9) -> None:
        """Read a configuration descriptor: its head first, which says how long it is with all that belongs to it."""
        if index == count:
            self._read(True)
            return

        def read(answer: Transfer) -> None:
            raw = answer.read()[: answer.actual]
            total = int.from_bytes(raw[2:4], "little")
            if answer.status is not TransferStatus.COMPLETED or len(raw) < 9:
                self._read(False)
            elif length < total:
                self._ask_configuration(index, count, total)
            else:
                self._take(raw)
                self._ask_configuration(index + 1, count)

        value = descriptors.CONFIGURATION << 8 | index
        self.control_request(SetupPacket(DIRECTION_IN, GET_DESCRIPTOR, value, 0, length), read)

    def _take(self, raw: bytes) -> None:
        try:
            shown = self.configuration_descriptor(raw)
            self.layout.add(shown, raw)
            self._descriptors.append(DescriptorsState(shown, raw))
        except descriptors.DescriptorError as error:
            log.warning("%s: %s", self.commands.name, error)

    def _read(self, good: bool) -> None:
        """All configurations have been read, or one could not be."""
        self._known = True
        self._unreadable = not good
        if not good and self._readonly:
            log.warning("%s: its descriptors cannot be read, so it cannot be used read-only", self.commands.name)
        elif not self.layout.storage and (self._readonly or self.quirks):
            log.warning("%s: has no mass storage that could be read-only or have quirks", self.commands.name)
        transfer, self._waiting = self._waiting, None
        if transfer is not None and transfer.status is None and transfer.setup is not None:
            self._request(transfer, transfer.setup)
            transfer.pass_on()

    # -- requests ----------------------------------------------------------------------------------------------------

    def _request(self, transfer: InterceptedTransfer, setup: SetupPacket) -> None:
        key = (setup.request_type, setup.request)
        interface = self.layout.interface_of(self._configuration, setup)
        storage = self.layout.is_storage(self._configuration, interface)
        if self._readonly and not self._is_harmless(setup, key, storage):
            transfer.refuse(_STALL)
        elif key == _CONFIGURE:
            self._stop(None)
        elif key == _CHOOSE and storage:
            if (self._configuration, interface, setup.value & 0xFF) not in self.layout.settings:
                transfer.refuse(_STALL)  # it is hidden, or there is none
                return
            self._stop(interface)
        elif key == GET_MAX_LUN and storage and Quirk.SINGLE_LUN in self.quirks:
            transfer.answer(b"\0"[: setup.length])

    def _is_harmless(self, setup: SetupPacket, key: tuple[int, int], storage: bool) -> bool:
        """Whether a device gets a request in read-only mode."""
        if setup.kind == TYPE_STANDARD:
            return key in _HARMLESS and not (self._unreadable and key in (_CONFIGURE, _CHOOSE))
        if storage and key in (BULK_ONLY_RESET, GET_MAX_LUN):
            return True
        # A class or vendor request can be anything; those for another interface of a composite device are its own.
        other = setup.recipient in (RECIPIENT_INTERFACE, RECIPIENT_ENDPOINT) and not self._strict
        if setup.recipient == RECIPIENT_ENDPOINT:
            return other and setup.index & 0xFF in self.layout.others - self.layout.storage
        return other and not storage and self._configuration is not None

    # -- settings ----------------------------------------------------------------------------------------------------

    def _configured(self, value: int) -> None:
        if value == 0 and not self.layout.has(0):
            return  # unconfigured
        self._configuration = value
        for setting in self.layout.first_settings(value):
            self._start(setting, value)

    def _chosen(self, setup: SetupPacket, good: bool) -> None:
        configuration, interface = self._configuration, setup.index & 0xFF
        if configuration is None:
            return
        if good or self.layout.alternates(configuration, interface) == 1:
            self._start(self.layout.settings[configuration, interface, setup.value & 0xFF], configuration)

    def _start(self, setting: Setting, configuration: int) -> None:
        if not setting.pipes or not self._active:
            return
        transport = self._make_current(setting, configuration)
        transport.begin(self.options.delay)
        if self.options.eject and isinstance(transport, BulkOnly) and not self._ejected:
            self._ejected = True
            self._eject(transport, setting)

    def _make_current(self, setting: Setting, configuration: int) -> Transport:
        key = (configuration, setting.interface, setting.alternate)
        transport = self._transports.get(key)
        if transport is None:
            transport = self._transports[key] = self._transport(setting, configuration)
        self._current[setting.interface] = transport
        self._down.update(transport.down)
        self._up.update(transport.up)
        return transport

    def _transport(self, setting: Setting, configuration: int) -> Transport:
        """What follows a setting. It is made once, as the device may have transfers of a time when it held before."""
        if setting.transport == UAS:
            streams = self.device.speed.is_usb3 and self.device.max_streams > 0
            return Uas(self.commands, setting.pipes, streams=streams)
        transport = BulkOnly(self.commands, setting.pipes)
        client = self._client(setting)
        options = self.options
        if options.timeout:
            seconds = options.timeout + options.delay
            alone = self.layout.interface_count(configuration) == 1
            transport.recovery = Recovery(transport, client, seconds, setting, configuration, alone=alone)
        if self.commands.max_blocks:
            transport.splitting = Splitting(transport, client, self.commands.max_blocks)
        return transport

    def _client(self, setting: Setting) -> Client:
        pipes = setting.pipes
        return Client(self, setting.interface, pipes[DATA_IN_PIPE], pipes[DATA_OUT_PIPE])

    def _stop(self, interface: int | None) -> None:
        """A setting, or all of them, does not hold any more."""
        for number, transport in list(self._current.items()):
            if interface in (None, number):
                del self._current[number]
                for address in transport.down:
                    del self._down[address]
                for address in transport.up:
                    del self._up[address]
                transport.stop()

    # -- mode switch -------------------------------------------------------------------------------------------------

    def _eject(self, transport: BulkOnly, setting: Setting) -> None:
        """Have a device that is a disk with drivers become what it is for; it leaves the bus then, and comes back."""
        log.info("%s: ejecting it, so that it becomes what it is for", self.commands.name)
        transport.busy()
        self._client(setting).run(0, EJECT, 0, lambda outcome: None)
        self._ejecting, self._ejecting_until = transport, self.loop.time() + EJECT_PATIENCE
        self.call_later(EJECT_PATIENCE, self._not_ejected, transport)

    def _not_ejected(self, transport: BulkOnly) -> None:
        self._ejecting = None
        if transport in self._current.values():
            log.warning("%s: is still there %.0f s after it was ejected", self.commands.name, EJECT_PATIENCE)
            transport.reset()
