"""What a backend of devices writes that another kernel has enumerated: how it does each of a few things.
`EnumeratedDevice` and `HostDevice` call it, and see to the order."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping

from ..usb.device import Device
from ..usb.transfer import Transfer, TransferStatus
from .operations import OperationFailed, Then
from .sysfs import SysfsDevice


class EnumeratedContract(Device):
    """One device. Everything is called on the loop's thread and must not block; one operation begins when the one
    before it is over."""

    exclusive = True
    """Whether transfers cannot be stopped while an operation runs; they are stopped when it is over."""

    @abstractmethod
    def start(self, transfer: Transfer) -> None:
        """Send a transfer to the device; it is completed later, or at once. As `Device.submit`."""

    @abstractmethod
    def stop(self, transfer: Transfer) -> None:
        """End a transfer that was given to `start`. As `Device.cancel`."""

    def stop_for_now(self, transfer: Transfer) -> None:
        """The same of one that is begun again soon. As `Device.take_back`."""
        self.stop(transfer)

    def pause(self) -> None:
        """An operation begins: until `resume` nothing else is begun, and no transfer is started."""
        return

    def resume(self) -> None:
        """The operation is over."""
        return

    # -- operations: begin one, and call `done` when it is over -----------------------------------------------------

    @abstractmethod
    def begin_configuration(self, value: int, done: Then) -> None:
        """Set a configuration other than the present one."""

    @abstractmethod
    def begin_configuration_again(self, done: Then) -> None:
        """Set the present configuration again: alternate settings 0, halts cleared."""

    def begin_soft_reset(self, done: Then) -> None:
        """In the place of a reset, for a device that is not to be reset: as far as its configuration goes, start
        anew."""
        self.begin_configuration_again(done)

    @abstractmethod
    def begin_setting(self, interface: int, alternate: int, done: Then) -> None:
        """Select an alternate setting, which the configuration has; also if it is the present one."""

    @abstractmethod
    def begin_clear_halt(self, endpoint: int, done: Then) -> None:
        """Clear the halt of an endpoint of the configuration, and both sides' data toggle or sequence."""

    @abstractmethod
    def begin_reset(self, done: Then) -> None:
        """Reset the device. OperationFailed(DISCONNECTED) if it did not come back as it was."""

    @abstractmethod
    def begin_release(self, done: Then) -> None:
        """Give the device back. The last operation; also of a device that is lost."""

    @abstractmethod
    def released(self) -> None:
        """After the last operation: complete the transfers that have not come back. The last call."""

    # -- moments that a backend may care for --------------------------------------------------------------------------

    def operated(self, failure: OperationFailed | None) -> None:
        """An operation is over, and whoever wanted it knows."""
        return

    def about_to_touch(self) -> None:
        """A control request comes that may change the device: the last moment to find that it is lost."""
        return

    def refusal(self, transfer: Transfer) -> TransferStatus | None:
        """What a transfer ends with that must not reach the device; None for any other."""
        return None


class HostContract(EnumeratedContract):
    """One device of the host. While an operation runs in a thread, nothing else is called."""

    # -- on the loop's thread, never blocking ------------------------------------------------

    @abstractmethod
    def pause(self) -> None:
        """An operation starts in a thread: until `resume` nothing else is called, and the loop's thread must not use
        the device, transfers' ends included."""

    @abstractmethod
    def resume(self) -> None:
        """The operation is over."""

    def claimed(self) -> Collection[int]:
        """The numbers of the interfaces that are claimed. Called while no operation runs, and at the end of one."""
        return ()

    def left_out(self) -> Mapping[int, str]:
        """The interfaces of the present configuration that cannot be claimed, each with the reason, see `left_out.py`.
        Called when the device is attached, and at the end of each operation."""
        return {}

    # -- in a thread, may block, raises OperationFailed -----------------------------------------

    @abstractmethod
    def set_configuration(self, value: int) -> None:
        """Set a configuration other than the present one, and take its interfaces."""

    @abstractmethod
    def reset_configuration(self) -> None:
        """Set the present configuration again: alternate settings 0, halts cleared."""

    @abstractmethod
    def set_interface(self, interface: int, alternate: int) -> None:
        """Select an alternate setting, which the configuration has; also if it is the present one."""

    @abstractmethod
    def clear_halt(self, endpoint: int) -> None:
        """Clear the halt of an endpoint of the configuration, and both sides' data toggle or sequence."""

    @abstractmethod
    def reset_port(self) -> None:
        """Reset the device and take its interfaces again. OperationFailed(DISCONNECTED) if it did not come back as it
        was."""

    def host_has(self, device: SysfsDevice) -> None:
        """The host has configured the device, which was found unconfigured, while nobody had it: as sysfs shows it now
        it is to be given back."""
        return

    @abstractmethod
    def release(self) -> None:
        """Give the device back to the host, as it was found if `options.reattach`. The last call in a thread;
        `released` follows, on the loop's."""
