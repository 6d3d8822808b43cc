"""A bulk-only device that does not answer any more (BOT 5.3.4): class reset, both halts cleared; if that does not help,
a reset of the port, after which the device is configured as it was.

The guest sees a command that was aborted and may be tried again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from usbvfiod_core import InterceptedTransfer, SetupPacket, Timer
from usbvfiod_core.usb.requests import RECIPIENT_INTERFACE, SET_CONFIGURATION, SET_INTERFACE

from .bulk_only import BulkOnly
from .client import Client
from .commands import Command, log
from .scsi import TIME_OUT
from .transfers import in_flight

if TYPE_CHECKING:
    from .layout import Setting


class Recovery:
    """Watches one bulk-only interface. `alone` says that the device has no other interface, so that a reset of its port
    disturbs nothing else; `configuration` is what the guest has chosen."""

    def __init__(
        self, transport: BulkOnly, client: Client, seconds: float, setting: Setting, configuration: int, *, alone: bool
    ) -> None:
        self._transport = transport
        self._client = client
        self._seconds = seconds
        self._setting = setting
        self._configuration = configuration
        self._alone = alone
        self._timer: Timer | None = None
        self._watched: Command | None = None
        self._recovering = False
        self._back: list[InterceptedTransfer] = []
        self.failures = 0
        """Times in a row that it did not answer."""

    @property
    def at_work(self) -> bool:
        """Whether the device is being recovered."""
        return self._recovering

    def watch(self) -> None:
        """A command begins. One timer looks now and then, so that a command costs nothing."""
        if self._timer is None:
            self._arm()

    def takes(self, transfer: InterceptedTransfer) -> bool:
        """A transfer has come back from the device; whether it waits for the end of the recovery."""
        if not self._recovering:
            return False
        transfer.hold()
        self._back.append(transfer)
        self._go_on()
        return True

    def forget(self) -> None:
        """The guest has reset the transport."""
        if self._recovering:
            self._client.forget()
        self._recovering = False
        self._watched = None
        for transfer in self._back:
            transfer.pass_on()
        self._back.clear()

    # -- own ---------------------------------------------------------------------------------------------------------

    def _arm(self) -> None:
        self._watched = self._transport.command
        self._timer = self._client.interceptor.call_later(self._seconds, self._look)

    def _look(self) -> None:
        self._timer = None
        transport = self._transport
        command = transport.command
        if command is None or not transport.waits_for_device:
            self.failures = 0
            return
        if command is not self._watched or not transport.sent:
            # Another one than when the timer was set; or the guest does not ask for the answer.
            self.failures = 0
            self._arm()
            return
        log.warning("%s: does not answer for %.0f s; resetting it", transport.commands.name, self._seconds)
        self._recovering = True
        transport.busy()
        for transfer in list(transport.sent):
            self._client.interceptor.device.cancel(transfer)

    def _go_on(self) -> None:
        if self._transport.sent or not self._recovering:
            return
        self.failures += 1
        if self.failures > 1:
            self._reset_port()
        else:
            self._client.mass_storage_reset(self._was_reset)

    def _was_reset(self, good: bool) -> None:
        if good:
            client = self._client
            client.clear_halt(client.in_address, lambda _: client.clear_halt(client.out_address, self._cleared))
        else:
            self._reset_port()

    def _cleared(self, good: bool) -> None:
        if good:
            self._end()
        else:
            self._reset_port()

    def _reset_port(self) -> None:
        if not self._recovering:
            return
        name = self._transport.commands.name
        if not self._alone:
            log.warning("%s: is wedged, and shares its port with other interfaces; it is unplugged", name)
            self._client.interceptor.unplug()
            return
        log.warning("%s: is wedged; resetting its port", name)
        self._client.interceptor.device.reset(self._port_was_reset)

    def _port_was_reset(self) -> None:
        setup = SetupPacket(0x00, SET_CONFIGURATION, self._configuration, 0, 0)
        self._client.control(setup, self._was_configured)

    def _was_configured(self, good: bool) -> None:
        if not good:
            self._gone()
        elif self._setting.alternate:
            setup = SetupPacket(RECIPIENT_INTERFACE, SET_INTERFACE, self._setting.alternate, self._setting.interface, 0)
            self._client.control(setup, lambda good: self._end() if good else self._gone())
        else:
            self._end()

    def _gone(self) -> None:
        log.warning("%s: cannot be recovered; it is unplugged", self._transport.commands.name)
        self._client.interceptor.unplug()

    def _end(self) -> None:
        """The device is well: tell the guest."""
        if not self._recovering:
            return
        self._recovering = False
        back, self._back = self._back, []
        transport = self._transport
        if transport.wrapper in back and not in_flight(transport.wrapper):
            # The guest has taken it back meanwhile: there is nothing to answer.
            transport.not_taken()
            for transfer in back:
                if in_flight(transfer):
                    transport.give_in(transfer) if transfer.endpoint & 0x80 else transport.take_out(transfer)
            transport.proceed()
            return
        transport.out_left += sum(
            each.length for each in back if not (each.endpoint & 0x80 or each is transport.wrapper or in_flight(each))
        )
        back = [each for each in back if in_flight(each)]
        data = [each for each in back if not each.endpoint & 0x80 and each is not transport.wrapper]
        residue = transport.in_left or transport.out_left + sum(each.length for each in data)
        transport.answer(TIME_OUT, residue=residue)
        for transfer in back:
            if transfer is transport.wrapper or transfer in data:
                transfer.answer()
            else:
                transport.give_in(transfer)
        transport.answered(TIME_OUT)
