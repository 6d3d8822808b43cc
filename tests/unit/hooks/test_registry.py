"""Plugins: who is taken, who is refused and why, and what an exception in each hook costs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest

from usbvfiod_core import (
    Backend,
    Device,
    DeviceEvents,
    DeviceInfo,
    PluginError,
    Speed,
    Transfer,
    WrappedDevice,
    hookimpl,
)
from usbvfiod_core.hooks.loading import Plugin, hook_signatures
from usbvfiod_core.hooks.registry import OBSERVER_FAILURES, Registry
from usbvfiod_core.hooks.settings import Settings
from usbvfiod_core.testing.loop import StepLoop

INFO = DeviceInfo("pile", "one", 0x1234, 0x5678, "One")


class PileBackend(Backend):
    def __init__(self, name: str = "pile") -> None:
        self.name = name

    def list_devices(self) -> list[DeviceInfo]:
        return [INFO]

    def open(self, address: str, options: object, loop: object) -> Device:
        return PlainDevice()


class PlainDevice(Device):
    def __init__(self) -> None:
        self.speed = Speed.HIGH
        self.name = "plain"
        self.log: list[str] = []

    def attach(self, events: DeviceEvents) -> None:
        self.log.append("attach")

    def submit(self, transfer: Transfer) -> None:
        self.log.append("submit")

    def cancel(self, transfer: Transfer) -> None:
        self.log.append("cancel")

    def reset(self, done: Callable[[], object]) -> None:
        done()

    def close(self) -> None:
        self.log.append("close")


def plugin(**members: Any) -> Any:
    """A module-like object; functions named as hooks are marked."""
    return SimpleNamespace(**{name: hookimpl(value) if callable(value) else value for name, value in members.items()})


def taken(registry: Registry, name: str = "plug", **members: Any) -> Plugin:
    record = registry.register(plugin(**members), name)
    assert record.error == ""
    return record


def refused(**members: Any) -> str:
    registry = Registry()
    record = registry.register(plugin(**members), "plug")
    assert registry.failures == [record]
    assert registry.backends() == {}
    return record.error


def nothing(**_: object) -> None:
    return None


# -- who takes part -------------------------------------------------------------------------------------------------


def test_a_plugin_is_recorded_with_its_hooks() -> None:
    record = taken(
        Registry(),
        usbvfiod_register_backends=lambda register: None,
        usbvfiod_admit_device=lambda info: None,
        usbvfiod_requires=">=1,<2",
    )
    assert record.hooks == ("usbvfiod_admit_device", "usbvfiod_register_backends")
    assert record.requires == ">=1,<2"


def test_a_misspelt_hook_is_named_with_the_one_that_is_meant() -> None:
    error = refused(usbvfiod_register_backend=lambda register: None)
    assert error == "there is no hook usbvfiod_register_backend; did you mean 'usbvfiod_register_backends'?"


def test_one_misspelt_hook_disables_the_whole_plugin() -> None:
    registry = Registry()
    registry.register(
        plugin(
            usbvfiod_register_backends=lambda register: register(PileBackend()),
            usbvfiod_admit_devices=lambda info: None,
        ),
        "plug",
    )
    assert registry.backends() == {}


def test_a_misnamed_argument_is_refused() -> None:
    assert "registrar" in refused(usbvfiod_register_backends=lambda registrar: None)


def test_a_plugin_refused_half_way_leaves_nothing_behind() -> None:
    registry = Registry()
    record = registry.register(
        plugin(usbvfiod_admit_device=lambda info: "no", usbvfiod_wrap_device=lambda gadget: None), "plug"
    )
    assert record.error
    assert registry.refusal(INFO, Settings()) is None


def test_a_function_that_is_not_marked_is_pointed_out() -> None:
    def usbvfiod_register_backends(register: object) -> None: ...

    record = Registry().register(SimpleNamespace(usbvfiod_register_backends=usbvfiod_register_backends), "plug")
    assert record.error == "usbvfiod_register_backends is not marked with @usbvfiod_core.hookimpl"


def test_a_plugin_without_hooks_is_refused() -> None:
    assert refused(something=3) == "implements no hook"


def test_a_hook_wrapper_is_refused() -> None:
    def usbvfiod_admit_device(info: object) -> Any:
        return (yield)

    module = SimpleNamespace(usbvfiod_admit_device=hookimpl(wrapper=True)(usbvfiod_admit_device))
    assert "wrapper" in Registry().register(module, "plug").error


def test_two_plugins_of_one_name() -> None:
    registry = Registry()
    taken(registry, usbvfiod_admit_device=lambda info: None)
    second = registry.register(plugin(usbvfiod_admit_device=lambda info: "no"), "plug")
    assert second.error == "another plugin has the same name"
    assert registry.refusal(INFO, Settings()) is None


@pytest.mark.parametrize(
    ("requires", "error"),
    [
        (">=1,<2", ""),
        ("==1", ""),
        ("", ""),
        (">=2", "needs plugin API >=2, this usbvfiod has 1"),
        ("<1", "needs plugin API <1, this usbvfiod has 1"),
        ("!=1", "needs plugin API !=1, this usbvfiod has 1"),
        ("~=1", "usbvfiod_requires is '~=1'; it is written like '>=1,<2'"),
        (2, "usbvfiod_requires is '2'; it is written like '>=1,<2'"),
    ],
)
def test_the_api_version_is_checked(requires: object, error: str) -> None:
    module = plugin(usbvfiod_admit_device=lambda info: None, usbvfiod_requires=requires)
    assert Registry().register(module, "plug").error == error


def test_installed_plugins_are_found_and_broken_ones_are_isolated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = {
        "raises": "raise RuntimeError('no luck\\ntoday')",
        "exits": "raise SystemExit(3)",
        "newer": "usbvfiod_requires = '>=7'",
        "good": (
            "from usbvfiod_core import hookimpl\n@hookimpl\ndef usbvfiod_admit_device(info):\n    return 'not today'\n"
        ),
    }
    for name, text in site.items():
        (tmp_path / f"plug_{name}.py").write_text(text)
    entries = "".join(f"{name} = plug_{name}\n" for name in [*site, "absent"])
    info = tmp_path / "plugs-2.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugs\nVersion: 2.5\n")
    (info / "entry_points.txt").write_text(f"[usbvfiod]\n{entries}")
    monkeypatch.syspath_prepend(str(tmp_path))

    registry = Registry()
    registry.discover()

    found = {record.name: record for record in registry.plugins}
    assert list(found) == sorted(found)
    assert found["virtual"].error == ""
    assert found["raises"].error == "cannot be imported: RuntimeError: no luck today"
    assert found["exits"].error == "cannot be imported: SystemExit: 3"
    assert "ModuleNotFoundError" in found["absent"].error
    assert found["newer"].error == "needs plugin API >=7, this usbvfiod has 1"
    assert {record.name for record in registry.failures} == {"raises", "exits", "absent", "newer"}
    good = found["good"]
    assert (good.distribution, good.version, good.module) == ("plugs", "2.5", "plug_good")
    assert good.origin == str(tmp_path / "plug_good.py")
    assert good.seconds > 0
    assert "virtual" in registry.backends()
    assert registry.refusal(INFO, Settings()) == "not today (plugin good)"


# -- the hooks ------------------------------------------------------------------------------------------------------


def test_every_hook_has_arguments_and_a_contract() -> None:
    from usbvfiod_core.hooks import specs

    signatures = hook_signatures()
    assert len(signatures) >= 5
    for name, signature in signatures.items():
        text = getattr(specs, name).__doc__
        assert signature.parameters, name
        assert "When:" in text, name
        assert "exception" in text.lower(), name


@pytest.mark.faults("plugin [ac]: usbvfiod_register_backends failed")
def test_backends_are_registered_and_faults_cost_only_their_plugin(caplog: pytest.LogCaptureFixture) -> None:
    def half(register: Callable[[Backend], None]) -> None:
        register(PileBackend("half"))
        register(PileBackend("pile"))

    registry = Registry()
    taken(registry, "c", usbvfiod_register_backends=half)
    taken(registry, "b", usbvfiod_register_backends=lambda register: register(PileBackend()))
    taken(registry, "a", usbvfiod_register_backends=lambda register: 1 / 0)
    assert set(registry.backends()) == {"pile", "half"}
    assert "plugin a: usbvfiod_register_backends failed: ZeroDivisionError" in caplog.text
    assert "plugin c: usbvfiod_register_backends failed: there already is a backend 'pile'" in caplog.text


@pytest.mark.parametrize("backend", [PileBackend("with:colon"), PileBackend(""), PileBackend("-"), "pile", None])
@pytest.mark.faults("plugin plug: usbvfiod_register_backends failed")
def test_what_is_no_backend_is_not_registered(backend: Any) -> None:
    registry = Registry()
    taken(registry, usbvfiod_register_backends=lambda register: register(backend))
    assert registry.backends() == {}


def test_admission_takes_the_first_refusal() -> None:
    asked: list[str] = []

    def asks(name: str, answer: str | None) -> Callable[..., str | None]:
        def usbvfiod_admit_device(info: DeviceInfo, backend_options: Mapping[str, str]) -> str | None:
            asked.append(name + backend_options["x"])
            return answer

        return usbvfiod_admit_device

    registry = Registry()
    for name, answer in (("c", "never"), ("b", "no sticks"), ("a", None)):
        taken(registry, name, usbvfiod_admit_device=asks(name, answer))
    assert registry.refusal(INFO, Settings({"x": "1"})) == "no sticks (plugin b)"
    assert asked == ["a1", "b1"]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (
            lambda info: 1 / 0,
            "plugin plug failed to say whether it admits the device: ZeroDivisionError: division by zero",
        ),
        (lambda info: True, "plugin plug answered True instead of None or a reason"),
        (lambda info: False, "plugin plug answered False instead of None or a reason"),
    ],
)
@pytest.mark.faults("plugin plug: usbvfiod_admit_device failed: ZeroDivisionError")
def test_admission_fails_closed(answer: Callable[..., object], reason: str) -> None:
    registry = Registry()
    taken(registry, usbvfiod_admit_device=answer)
    with pytest.raises(PluginError, match=reason):
        registry.refusal(INFO, Settings())


def test_wrappers_are_put_on_in_order_and_the_last_is_outermost() -> None:
    class Layer(WrappedDevice):
        def __init__(self, device: Device, name: str) -> None:
            super().__init__(device)
            self.name = f"{name}({device.name})"

    registry = Registry()
    taken(registry, "c", usbvfiod_wrap_device=lambda device: None)
    taken(registry, "b", usbvfiod_wrap_device=lambda device, info: Layer(device, "b"))
    taken(registry, "a", usbvfiod_wrap_device=lambda device: Layer(device, "a"))
    first = SimpleNamespace(
        usbvfiod_wrap_device=hookimpl(tryfirst=True)(lambda device: Layer(device, "z")),
    )
    registry.register(first, "z")
    assert registry.wrap(PlainDevice(), INFO, Settings(), StepLoop()).name == "b(a(z(plain)))"


@pytest.mark.parametrize("answer", [lambda device: 1 / 0, lambda device: "a device"])
@pytest.mark.faults("plugin plug: usbvfiod_wrap_device failed: ZeroDivisionError")
def test_a_device_that_cannot_be_wrapped_is_closed(answer: Callable[..., object]) -> None:
    registry = Registry()
    taken(registry, usbvfiod_wrap_device=answer)
    device = PlainDevice()
    with pytest.raises(PluginError, match="plugin plug"):
        registry.wrap(device, INFO, Settings(), StepLoop())
    assert device.log == ["close"]


def test_a_wrapper_passes_on_what_it_leaves_alone_without_a_call_of_its_own() -> None:
    class OnlyReset(WrappedDevice):
        def reset(self, done: Callable[[], object]) -> None:
            self.device.close()
            super().reset(done)

    inner = PlainDevice()
    device = OnlyReset(inner)
    assert device.submit == inner.submit
    assert device.cancel == inner.cancel
    assert device.close == inner.close
    resets: list[int] = []
    device.reset(lambda: resets.append(1))
    assert (inner.log, resets) == (["close"], [1])


@pytest.mark.faults("plugin b: usbvfiod_observe_attachments failed: ValueError: blind|plugin b failed 3 times")
def test_an_observer_that_keeps_failing_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[str] = []

    def failing(info: DeviceInfo, port_id: int, event: str) -> None:
        calls.append(event)
        raise ValueError("blind")

    seen: list[tuple[int, str]] = []
    registry = Registry()
    taken(registry, "b", usbvfiod_observe_attachments=failing)
    taken(registry, "a", usbvfiod_observe_attachments=lambda port_id, event: seen.append((port_id, event)))
    for _ in range(OBSERVER_FAILURES + 2):
        registry.observe(INFO, 3, "plugged")
    assert len(calls) == OBSERVER_FAILURES
    assert seen == [(3, "plugged")] * (OBSERVER_FAILURES + 2)
    assert "plugin b failed 3 times and is not called any more" in caplog.text


@pytest.mark.faults("plugin plug: usbvfiod_observe_attachments failed: ValueError")
def test_an_observer_that_fails_now_and_then_is_kept() -> None:
    calls: list[int] = []

    def flaky(port_id: int) -> None:
        calls.append(port_id)
        if port_id % 2:
            raise ValueError

    registry = Registry()
    taken(registry, usbvfiod_observe_attachments=flaky)
    for port_id in range(20):
        registry.observe(INFO, port_id, "plugged")
    assert calls == list(range(20))


@pytest.mark.faults(
    "plugin a: there already is a command|plugin b: usbvfiod_register_commands failed: ZeroDivisionError"
)
def test_commands_are_added_but_do_not_replace_others(caplog: pytest.LogCaptureFixture) -> None:
    def add(group: click.Group) -> None:
        @group.command("mine")
        def mine() -> None:
            click.echo("mine")

        @group.command("devices")
        def devices() -> None:
            click.echo("not yours")

    group = click.Group("usbvfiod")
    theirs = click.Command("devices")
    group.add_command(theirs)
    registry = Registry()
    taken(registry, "b", usbvfiod_register_commands=lambda group: 1 / 0)
    taken(registry, "a", usbvfiod_register_commands=add)
    registry.add_commands(group)
    assert set(group.commands) == {"mine", "devices"}
    assert group.commands["devices"] is theirs
    assert "plugin a: there already is a command 'devices'" in caplog.text
    assert "plugin b: usbvfiod_register_commands failed: ZeroDivisionError" in caplog.text


@pytest.mark.faults("plugin plug: usbvfiod_admit_device failed: ValueError: two lines")
def test_faults_are_one_line_and_the_traceback_is_for_debugging(caplog: pytest.LogCaptureFixture) -> None:
    def fails(info: DeviceInfo) -> str:
        raise ValueError("two\nlines")

    registry = Registry()
    taken(registry, usbvfiod_admit_device=fails)
    with caplog.at_level(logging.DEBUG), pytest.raises(PluginError):
        registry.refusal(INFO, Settings())
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [record.getMessage() for record in errors] == [
        "plugin plug: usbvfiod_admit_device failed: ValueError: two lines"
    ]
    assert any(record.exc_info for record in caplog.records if record.levelno == logging.DEBUG)
