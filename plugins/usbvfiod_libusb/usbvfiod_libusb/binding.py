"""What is used of python-libusb1 (module `usb1`), and how the shared library gets into it.

The protocols are all that the rest of this package knows of `usb1`; tests give it another library.
"""

from __future__ import annotations

import ctypes
import importlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Protocol, cast

from usbvfiod_core import DeviceError
from usbvfiod_core.installation import installation

from .status import ERROR_NOT_FOUND

log = logging.getLogger(__name__)

_wrapping = Lock()
"""Devices are opened in several threads."""


class NativeTransfer(Protocol):
    """usb1.USBTransfer. After `submit` its callback is called once, inside `handleEventsTimeout`."""

    def setControl(
        self,
        request_type: int,
        request: int,
        value: int,
        index: int,
        buffer_or_len: bytes | int,
        callback: Callable[[Any], object],
        user_data: object,
        /,
    ) -> None: ...
    def setBulk(self, endpoint: int, buffer: Any, callback: Callable[[Any], object], user_data: object, /) -> None: ...
    def setInterrupt(
        self, endpoint: int, buffer: Any, callback: Callable[[Any], object], user_data: object, /
    ) -> None: ...
    def setIsochronous(
        self,
        endpoint: int,
        buffer: Any,
        callback: Callable[[Any], object],
        user_data: object,
        /,
        *,
        iso_transfer_length_list: Sequence[int],
    ) -> None: ...
    def submit(self) -> None: ...
    def cancel(self) -> None: ...
    def close(self) -> None: ...
    def getStatus(self) -> int: ...
    def getActualLength(self) -> int: ...
    def getBuffer(self) -> Any: ...
    def getUserData(self) -> Any: ...
    def getISOSetupList(self) -> list[dict[str, int]]: ...


class NativeDevice(Protocol):
    """usb1.USBDevice."""

    def close(self) -> None: ...


class Handle(Protocol):
    """usb1.USBDeviceHandle of a wrapped file descriptor. It is closed by closing its device: its own `close` closes the
    device, which stumbles over the handle that is not closed yet (python-libusb1 3.4)."""

    def getTransfer(self, iso_packets: int = 0, /) -> NativeTransfer: ...
    def claimInterface(self, interface: int) -> object: ...
    def releaseInterface(self, interface: int) -> None: ...
    def setAutoDetachKernelDriver(self, enable: bool) -> None: ...
    def setConfiguration(self, configuration: int) -> None: ...
    def setInterfaceAltSetting(self, interface: int, alt_setting: int) -> None: ...
    def clearHalt(self, endpoint: int) -> None: ...
    def resetDevice(self) -> None: ...
    def getDevice(self) -> NativeDevice: ...


class Context(Protocol):
    """usb1.USBContext, opened."""

    def wrapSysDevice(self, sys_device: int) -> Handle: ...
    def getPollFDList(self) -> list[tuple[int, int]]: ...
    def setPollFDNotifiers(
        self, added_cb: Callable[..., None] | None = None, removed_cb: Callable[..., None] | None = None
    ) -> None: ...
    def handleEventsTimeout(self, tv: float = 0) -> None: ...
    def close(self) -> None: ...


class Libusb(Protocol):
    """The module `usb1`, as far as it is used."""

    USBError: type[Exception]
    """Raised by everything above; its attribute `value` is one of libusb's error codes."""

    def open_context(self) -> Context:
        """A context of its own for one device, which looks for no devices. Raises USBError."""
        ...


@dataclass(frozen=True, slots=True)
class WrappedNode:
    """A device's open node, `fd`, that libusb has wrapped, in a context of its own."""

    libusb: Libusb
    context: Context
    handle: Handle
    fd: int

    @classmethod
    def wrap(cls, libusb: Libusb, fd: int) -> WrappedNode:
        """Raises USBError."""
        context = libusb.open_context()
        try:
            return cls(libusb, context, context.wrapSysDevice(fd), fd)
        except BaseException:
            context.close()
            raise

    def unwrap(self) -> None:
        """Let libusb forget it; the descriptor stays open."""
        self.handle.getDevice().close()
        self.context.close()


class _Usb1:
    """`Libusb` by the real module."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self.USBError: type[Exception] = module.USBError
        self._can_skip_discovery = True

    def open_context(self) -> Context:
        context_class = _without_configurations(self._module)
        # Without device discovery: no thread of libusb's own, no walk through sysfs for each device that is opened.
        if self._can_skip_discovery:
            context = context_class(with_device_discovery=False)
            try:
                return cast(Context, context.open())
            except ValueError:  # a library older than 1.0.27
                self._can_skip_discovery = False
        return cast(Context, context_class().open())


def _without_configurations(module: Any) -> Any:
    """usb1.USBContext, whose devices do not have libusb parse their configurations.

    `wrapSysDevice` fails if libusb cannot parse one of them (python-libusb1 3.4); the kernel can, and nothing here asks
    libusb for descriptors. To the binding, a configuration that is not found is none to keep.
    """

    class Context(module.USBContext):  # type: ignore[misc]
        def wrapSysDevice(self, sys_device: int) -> Any:
            native = module.libusb1
            with _wrapping:
                parse = native.libusb_get_config_descriptor
                native.libusb_get_config_descriptor = lambda *arguments: ERROR_NOT_FOUND
                try:
                    return super().wrapSysDevice(sys_device)
                finally:
                    native.libusb_get_config_descriptor = parse

    return Context


def load() -> Libusb:
    """The library that pip installed, or the system's. Raises DeviceError, saying how to get one."""
    try:
        module = importlib.import_module("usb1")
    except (ImportError, OSError) as error:
        raise DeviceError(
            f"python-libusb1 cannot be used: {error}; `{_how('libusb1', 'python3-usb1')}` brings it"
        ) from error
    path = _packaged_library()
    if path is not None:
        try:
            # usb1's own door for a library of one's choice; it wants errno kept.
            if not module.loadLibrary(ctypes.CDLL(str(path), use_errno=True)):
                log.debug("somebody else has loaded another libusb into this process; that one is used")
            return _Usb1(module)
        except OSError as error:
            log.warning("%s cannot be loaded (%s); the system's libusb is tried", path, error)
    try:
        module.loadLibrary()
    except OSError as error:
        raise DeviceError(
            f"there is no libusb ({error.strerror}); `{_how('libusb-package', 'libusb-1.0-0')}` brings it"
        ) from error
    return _Usb1(module)


def _how(package: str, debian: str) -> str:
    return installation().library(package, debian=debian)


def _packaged_library() -> Path | None:
    try:
        package = importlib.import_module("libusb_package")
    except ImportError:
        return None
    return cast("Path | None", package.get_library_path())
