"""What plugins put around a device, and its state when another process goes on with the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from ..errors import PluginError, UsbvfiodError
from ..usb.device import Device, Loop
from ..usb.guarded import guarded
from ..usb.handover import CannotHandOver
from .interception import intercept
from .interceptor import Interceptor


@dataclass
class LayerState:
    """The state of one wrapper or interceptor, and the plugin that has made it."""

    plugin: str
    state: dict[str, Any]


class Layer(NamedTuple):
    """A wrapper or interceptor, and the name of its plugin."""

    plugin: str
    part: Device | Interceptor

    def state(self) -> LayerState:
        """What it keeps. Raises CannotHandOver if it does not say so, whatever else it raises."""
        own_state = getattr(self.part, "own_state", None)
        if own_state is None:
            raise CannotHandOver(f"plugin {self.plugin} does not say what {type(self.part).__name__} keeps")
        try:
            return LayerState(self.plugin, own_state())
        except CannotHandOver as error:
            raise type(error)(f"plugin {self.plugin}: {error}") from error
        except Exception as error:
            raise CannotHandOver(f"plugin {self.plugin}: {type(error).__name__}: {error}") from error

    def take_state(self, state: LayerState) -> None:
        """Go on with what one like it has kept in another process. Raises CannotHandOver."""
        try:
            self.part.take_own_state(state.state)  # type: ignore[union-attr]  # a wrapper may have none, and says so
        except UsbvfiodError as error:
            raise CannotHandOver(f"plugin {self.plugin}: {error}") from error
        except Exception as error:
            raise CannotHandOver(f"plugin {self.plugin}: {type(error).__name__}: {error}") from error


class Wrapping:
    """Puts around a device whatever the plugins want there: wrappers, then interceptors.

    implementations   those of a hook, each with its plugin's name
    arguments         of the hooks, for a plugin
    failed            tells that a hook of a plugin has failed; the error to raise
    """

    def __init__(
        self,
        implementations: Callable[[str], Iterable[tuple[str, Callable[..., Any]]]],
        arguments: Callable[[str], dict[str, Any]],
        failed: Callable[[str, str, Exception, str], PluginError],
        loop: Loop,
    ) -> None:
        self._implementations = implementations
        self._arguments = arguments
        self._failed = failed
        self._loop = loop

    def wrap(self, device: Device, layers: list[Layer]) -> Device:
        """See `Registry.wrap`."""
        for step in self._steps():
            try:
                device = step(device, layers)
            except PluginError:
                guarded(device, "close")
                raise
        return device

    def wrap_again(self, device: Device, states: Sequence[LayerState]) -> tuple[Device, list[Layer]]:
        """See `Registry.wrap_again`."""
        layers: list[Layer] = []
        name = device.name
        for step in self._steps():
            device = step(device, layers)
        before, now = [each.plugin for each in states], [layer.plugin for layer in layers]
        if before != now:
            here, there = (", ".join(each) or "none" for each in (now, before))
            raise CannotHandOver(f"other plugins are around {name} here: {here}, and before {there}")
        for layer, state in zip(layers, states, strict=True):
            layer.take_state(state)
        return device, layers

    def _steps(self) -> Iterator[Callable[[Device, list[Layer]], Device]]:
        for plugin, call in self._implementations("usbvfiod_wrap_device"):
            yield partial(self._wrap, plugin, call)
        for plugin, call in self._implementations("usbvfiod_intercept_device"):
            yield partial(self._intercept, plugin, call)

    def _wrap(self, plugin: str, call: Callable[..., Any], device: Device, layers: list[Layer]) -> Device:
        try:
            wrapper = call(device=device, **self._arguments(plugin))
        except Exception as error:
            raise self._failed(plugin, "usbvfiod_wrap_device", error, "wrap") from error
        if not isinstance(wrapper, Device | None):
            raise PluginError(f"plugin {plugin} wrapped the device in {wrapper!r}, which is not a Device")
        if wrapper is None or wrapper is device:
            return device
        layers.append(Layer(plugin, wrapper))
        return wrapper

    def _intercept(self, plugin: str, call: Callable[..., Any], device: Device, layers: list[Layer]) -> Device:
        try:
            interceptor = call(**self._arguments(plugin))
        except Exception as error:
            raise self._failed(plugin, "usbvfiod_intercept_device", error, "intercept") from error
        if not isinstance(interceptor, Interceptor | None):
            raise PluginError(f"plugin {plugin} answered {interceptor!r}, which is not an Interceptor")
        if interceptor is None:
            return device
        layers.append(Layer(plugin, interceptor))
        return intercept(device, interceptor, plugin, self._loop)
