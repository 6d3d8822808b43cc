"""Which plugins are loaded, which of them must be there, and the options that they register."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from usbvfiod_core import DeviceInfo, Interceptor, PluginError, RegisterOptions, hookimpl
from usbvfiod_core.cli import main
from usbvfiod_core.hooks import loading
from usbvfiod_core.hooks.interception import InterceptedDevice
from usbvfiod_core.hooks.registry import Registry
from usbvfiod_core.hooks.settings import PluginSelection, Settings
from usbvfiod_core.testing.fake_device import FakeDevice
from usbvfiod_core.testing.loop import StepLoop

INFO = DeviceInfo("pile", "one", 0x1234, 0x5678, "One")

GOOD = """
from usbvfiod_core import hookimpl

@hookimpl
def usbvfiod_admit_device(info):
    return None
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plugins `good`, `other` and `broken`; each leaves a file behind when it is imported."""
    for name, text in (("good", GOOD), ("other", GOOD), ("broken", "raise RuntimeError('no luck')")):
        mark = f"open({str(tmp_path / name)!r}, 'w').close()\n"
        (tmp_path / f"chosen_{name}.py").write_text(mark + text)
        monkeypatch.delitem(sys.modules, f"chosen_{name}", raising=False)
    info = tmp_path / "plugs-2.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugs\nVersion: 2.5\n")
    names = "".join(f"{name} = chosen_{name}\n" for name in ("good", "other", "broken"))
    (info / "entry_points.txt").write_text(f"[usbvfiod]\n{names}")
    monkeypatch.syspath_prepend(str(tmp_path))


def states(selection: PluginSelection) -> dict[str, str]:
    registry = Registry()
    registry.discover(selection)
    return {plugin.name: plugin.state for plugin in registry.plugins if plugin.distribution in ("plugs", "")}


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (PluginSelection(), {"good": "used", "other": "used", "broken": "failed"}),
        (PluginSelection(disable=("other", "broken")), {"good": "used", "other": "disabled", "broken": "disabled"}),
        (PluginSelection(enable=("good",)), {"good": "used", "other": "disabled", "broken": "disabled"}),
        (PluginSelection((), require=("good",)), {"good": "used", "other": "disabled", "broken": "disabled"}),
        (PluginSelection((), ("good",), ("good",)), {"good": "used", "other": "disabled", "broken": "disabled"}),
        (
            PluginSelection(enable=("goods",)),
            {"good": "disabled", "other": "disabled", "broken": "disabled", "goods": "failed"},
        ),
    ],
)
def test_which_are_loaded(selection: PluginSelection, expected: dict[str, str], tmp_path: Path) -> None:
    assert states(selection) == expected
    imported = {name for name in ("good", "other", "broken") if (tmp_path / name).exists()}
    assert imported == {name for name, state in expected.items() if state != "disabled"} - {"goods"}


@pytest.mark.usefixtures("installed")
def test_required_ones() -> None:
    registry = Registry()
    registry.discover(PluginSelection(require=("good", "broken", "god")))
    assert [(plugin.name, plugin.error) for plugin in registry.missing] == [
        ("broken", "cannot be imported: RuntimeError: no luck"),
        ("god", "is not installed; did you mean 'good'?"),
    ]


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        (PluginSelection(), PluginSelection(), PluginSelection()),
        (PluginSelection(("a",)), PluginSelection(disable=("a",)), PluginSelection(("a",), ("a",))),
        (PluginSelection(disable=("a", "b")), PluginSelection(require=("a",)), PluginSelection(None, ("b",), ("a",))),
        (PluginSelection(require=("a",)), PluginSelection(disable=("a",)), PluginSelection(None, ("a",), ())),
        (PluginSelection(("a",)), PluginSelection(()), PluginSelection(())),
    ],
)
def test_the_command_line_wins(one: PluginSelection, other: PluginSelection, both: PluginSelection) -> None:
    assert one.overridden_by(other) == both


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--plugin", "broken"], 5, "plugin broken: cannot be imported: RuntimeError: no luck"),
        (["--plugin", "brocken"], 5, "plugin brocken: is not installed; did you mean 'broken'?"),
        (["--strict-plugins"], 5, "plugin broken: cannot be imported"),
        (["--strict-plugins", "--no-plugin", "broken", "devices"], 0, ""),
        (["--no-plugin", "virtual", "--fd", "9", "--device", "virtual:keyboard"], 2, "there is no backend 'virtual'"),
        (["--device", "virtual:keyboard?broken.x=1", "--fd", "9"], 2, "plugin broken is not used: cannot be imported"),
        (["--device", "virtual:keyboard?good.x=1", "--fd", "9"], 2, "plugin good has no options for a device"),
        (["config"], 2, "say what to do with the configuration: check or show (try usbvfiod config --help)"),
        (["--no-plugin", "good", "--device", "virtual:keyboard?good.x=1", "--fd", "9"], 2, "it is disabled"),
    ],
)
def test_the_command_line(arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == code
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("installed")
def test_a_file_selects_plugins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "vm.toml"
    path.write_text("[plugins]\nenable = ['virtual']\nrequire = ['good']\n")
    assert main(["--config", str(path), "--plugin", "other", "plugins", "--json"]) == 0
    listed = {plugin["name"]: plugin["state"] for plugin in json.loads(capsys.readouterr().out)["plugins"]}
    assert {name: listed[name] for name in ("virtual", "good", "other", "broken")} == {
        "virtual": "used",
        "good": "used",
        "other": "used",
        "broken": "disabled",
    }
    path.write_text("[plugins]\nrequire = 3\n")
    assert main(["--config", str(path), "plugins"]) == 2
    assert f"{path}:2: plugins.require: is a list of plugins' names" in capsys.readouterr().err
    path.write_text("[server]\nfd = 9\n[[device]]\nspec='nothing'\n[[device]]\n")
    assert main(["--config", str(path), "config", "check"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 3  # and the plugin that is broken
    path.write_text("[server]\nfd = 9\n[[device]]\nspec='virtual:keyboard'\n")
    assert main(["--config", str(path), "config", "check"]) == 0
    assert capsys.readouterr().out == "ok: 1 device\n"
    assert main(["--config", str(path), "--device", "virtual:loopback", "config", "show"]) == 0
    shown = capsys.readouterr().out
    path.write_text(shown)
    assert main(["--config", str(path), "config", "show"]) == 0
    assert capsys.readouterr().out == shown


# -- options --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Options:
    level: int = 1


@dataclass(frozen=True)
class Configuration:
    where: str = "here"


def plugin(**members: Callable[..., Any]) -> Any:
    return SimpleNamespace(**{name: hookimpl(value) for name, value in members.items()})


def test_hooks_get_the_options_of_their_plugin() -> None:
    seen: list[tuple[str, object, object]] = []

    def make(name: str) -> dict[str, Callable[..., Any]]:
        def usbvfiod_register_options(register: RegisterOptions) -> None:
            register(device=Options, config=Configuration)

        def usbvfiod_admit_device(options: Any, config: Any) -> None:
            seen.append((name, options, config))

        def usbvfiod_intercept_device(options: Any) -> Interceptor | None:
            return Interceptor() if options.level > 1 else None

        return {
            "usbvfiod_register_options": usbvfiod_register_options,
            "usbvfiod_admit_device": usbvfiod_admit_device,
            "usbvfiod_intercept_device": usbvfiod_intercept_device,
        }

    registry = Registry()
    for name in ("a", "b"):
        registry.register(plugin(**make(name)), name)
    registry.register(plugin(usbvfiod_admit_device=lambda options, config: seen.append(("c", options, config))), "c")
    declared = registry.declared()
    assert declared["a"].device is not None
    assert declared["c"].device is None
    registry.configure({"b": Configuration("there")})
    settings = Settings({}, {"a": Options(level=2)})
    assert registry.refusal(INFO, settings) is None
    assert sorted(seen, key=lambda each: each[0]) == [
        ("a", Options(2), Configuration("here")),
        ("b", Options(1), Configuration("there")),
        ("c", None, None),
    ]
    wrapped = registry.wrap(FakeDevice(), INFO, settings, StepLoop())
    assert isinstance(wrapped, InterceptedDevice)
    assert isinstance(wrapped.device, FakeDevice)


@pytest.mark.parametrize(
    ("register", "message"),
    [
        (lambda register: register(device=int), "options are a dataclass, not <class 'int'>"),
        (lambda register: (register(device=Options), register(device=Options)), "are registered twice"),
        (lambda register: 1 / 0, "ZeroDivisionError"),
    ],
)
@pytest.mark.faults("plugin plug: usbvfiod_register_options failed")
def test_a_plugin_whose_options_fail_takes_no_part(register: Callable[..., Any], message: str) -> None:
    registry = Registry()
    hooks = {"usbvfiod_register_options": register, "usbvfiod_admit_device": lambda info: "no"}
    record = registry.register(plugin(**hooks), "plug")
    assert "usbvfiod_register_options failed" in registry.declared()["plug"].unusable
    assert record.state == "failed"
    assert message in record.error
    assert registry.refusal(INFO, Settings()) is None


@pytest.mark.parametrize("answer", [lambda info: 1 / 0, lambda info: "an interceptor", lambda info: Interceptor])
@pytest.mark.faults("plugin plug: usbvfiod_intercept_device failed: ZeroDivisionError")
def test_a_device_that_cannot_be_intercepted_is_closed(answer: Callable[..., object]) -> None:
    registry = Registry()
    registry.register(plugin(usbvfiod_intercept_device=answer), "plug")
    device = FakeDevice()
    with pytest.raises(PluginError, match="plugin plug"):
        registry.wrap(device, INFO, Settings(), StepLoop())
    assert device.closed


def test_a_hook_that_takes_long_is_named(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(loading, "SLOW", 0.01)
    registry = Registry()

    def usbvfiod_admit_device(info: DeviceInfo) -> None:
        time.sleep(0.02)

    registry.register(plugin(usbvfiod_admit_device=usbvfiod_admit_device), "sleepy")
    registry.refusal(INFO, Settings())
    assert "plugin sleepy: usbvfiod_admit_device took 0.0 s" in caplog.text
