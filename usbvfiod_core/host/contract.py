"""What a backend of the host's devices writes: how its library does each of a few things. `HostDevice` calls it, and
sees to the order."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping

from ..usb.device import Device
from ..usb.transfer import Transfer
from .sysfs import SysfsDevice


class HostContract(Device):
    """One device of the host. While an operation runs in a thread, nothing else is called."""

    # -- on the loop's thread, never blocking ------------------------------------------------

    @abstractmethod
    def start(self, transfer: Transfer) -> None:
        """Send a transfer to the device; it is completed later, or at once. As `Device.submit`."""

    @abstractmethod
    def stop(self, transfer: Transfer) -> None:
        """End a transfer that was given to `start`. As `Device.cancel`."""

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
        """Give the device back to the host, as it was found if `options.reattach`. The last call in a thread."""

    @abstractmethod
    def released(self) -> None:
        """On the loop's thread, after `release`: complete the transfers that have not come back. The last call."""
