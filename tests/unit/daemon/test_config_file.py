"""The configuration file: what is taken, and that each mistake is told with file, line and key."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.unit.daemon.toys import named
from usbvfiod_core import ConfigError
from usbvfiod_core.cli.config import toml
from usbvfiod_core.daemon.config import CommandLine, Config, Mode
from usbvfiod_core.daemon.config_file import load, read
from usbvfiod_core.daemon.server_settings import ServerSettings
from usbvfiod_core.errors import ConfigErrors
from usbvfiod_core.hooks.options import Declared
from usbvfiod_core.hooks.settings import PluginSelection
from usbvfiod_core.options import Schema, option
from usbvfiod_core.pci.interrupts import Mechanism


@dataclass(frozen=True)
class Options:
    readonly: bool = False
    note: str = ""


@dataclass(frozen=True)
class Tuning:
    speed: int = 1


@dataclass(frozen=True)
class NeedsImage:
    image: Path = option()


BACKENDS = named("virtual", "usbfs", "kinds")
BACKENDS["kinds"].kinds = {"a": NeedsImage}
DECLARED = {
    "quirks": Declared(Schema(Options), Schema(Tuning)),
    "other one": Declared(config=Schema(Tuning)),
    "none": Declared(),
    "broken": Declared(unusable="cannot be imported: no luck"),
    "noisy": Declared(),
    "wanted": Declared(unusable="is not installed", installed=False),
}

WHOLE = """
[server]
socket-path = "/run/vm.sock"
spin = 50
log-format = "json"

[[device]]
spec = "virtual:flash?image=/a"
port = 9
options = { readonly = true, size = 7 }
[device.plugins.quirks]
readonly = true

[[device]]
backend = "usbfs"
address = "1234:5678"
name = "stick"
mode = "ask"
follow-port = true

[plugins]
disable = ["noisy"]
require = ["quirks"]
[plugins.quirks]
speed = 3
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "vm.toml"


def made(path: Path, text: str, **command_line: object) -> Config:
    path.write_text(text)
    return load(CommandLine(file=path, **command_line), BACKENDS, DECLARED)  # type: ignore[arg-type]


def test_a_whole_file(path: Path) -> None:
    config = made(path, WHOLE)
    assert config.server == ServerSettings(socket_path=Path("/run/vm.sock"), spin=50, log_format="json")
    flash, stick = config.devices
    assert (flash.backend, flash.address, flash.port) == ("virtual", "flash", 9)
    assert flash.options == {"image": "/a", "readonly": "true", "size": "7"}
    assert flash.plugin_options == {"quirks": Options(readonly=True)}
    assert (stick.backend, stick.address, stick.name) == ("usbfs", "1234:5678", "stick")
    assert (stick.mode, stick.follow_port, stick.text) == (Mode.ASK, True, "usbfs:1234:5678")
    assert config.plugins == {"quirks": Tuning(3)}
    assert config.selection == PluginSelection(None, ("noisy",), ("quirks",))


def test_a_file_that_says_the_same_is_equal(path: Path) -> None:
    first = made(path, WHOLE)
    assert made(path, WHOLE.replace("\n\n", "\n# nothing\n")) == first
    changed = made(path, WHOLE.replace("speed = 3", "speed = 4"))
    assert changed != first
    assert changed.devices == first.devices


def test_the_command_line_wins(path: Path) -> None:
    config = made(
        path,
        WHOLE,
        server={"fd": 5, "spin": 0},
        devices=("virtual:keyboard",),
        plugins=PluginSelection(require=("noisy",)),
    )
    assert (config.fd, config.socket_path, config.spin) == (5, None, 0.0)
    assert [device.address for device in config.devices] == ["flash", "1234:5678", "keyboard"]
    assert config.selection == PluginSelection(None, (), ("quirks", "noisy"))


def test_interrupts_are_a_list_in_the_file(path: Path) -> None:
    assert made(path, "").server.interrupts == (Mechanism.MSIX, Mechanism.MSI, Mechanism.INTX)
    config = made(path, "[server]\ninterrupts = ['msi', 'intx']")
    assert config.server.interrupts == (Mechanism.MSI, Mechanism.INTX)
    config = made(path, "[server]\ninterrupts = ['msi']", server={"interrupts": (Mechanism.INTX,)})
    assert config.server.interrupts == (Mechanism.INTX,)


def test_without_a_file() -> None:
    config = load(CommandLine(server={"fd": 3}, devices=("virtual:keyboard?quirks.note=x",)), BACKENDS, DECLARED)
    assert config.devices[0].plugin_options == {"quirks": Options(note="x")}


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a = [", 1, "is not valid TOML"),
        ("[server]\nsocket-path = /tmp/x.sock", 2, "is not valid TOML: Invalid value; texts are in quotes"),
        ("[server]\nspin = 1\nspin = 2", 3, "is not valid TOML: Cannot overwrite a value"),
        ("[servre]", 1, "servre: there is no table 'servre'; did you mean 'server'?"),
        ("\n[server]\nspni = 3", 3, "server.spni: there is no option 'spni'; did you mean 'spin'?"),
        ("[server]\n\nspin = 'x'", 3, "server.spin: spin is a whole number, not 'x'"),
        ("[server]\nusb3-ports = 255", 2, "server.usb3-ports: usb3-ports is a number of ports from 1 to 254, not 255"),
        (
            "[server]\ninterrupts = ['irq']",
            2,
            "server.interrupts: interrupts is a list, and each in it one of msix, msi, intx",
        ),
        ("[server]\ninterrupts = []", 2, "server.interrupts: interrupts names at least one of msix, msi, intx"),
        ("[server]\nspin = -1", 2, "server.spin: spin is a number of microseconds from 0 to 10000, not -1"),
        ("[server]\nverbose=1\nquiet=true", 3, "server.quiet: quiet and verbose cannot be used together"),
        ("[server]\nfd = 3\nsocket-path = 'x'", 2, "server.fd: socket-path and fd cannot be used together"),
        ("server = 3", 1, "server: is a table"),
        ("\n[[server]]\nfd = 3", 2, "server: is a table"),
        ("[device]\nspec = 'x'", 1, "device: is an array of tables; write [[device]]"),
        ("device = [3]", 1, "device[1]: is a table"),
        (
            "[[device]]\nspec='virtual:a'\n[[device]]\nspec='virtual:b'\nsepc = ''",
            5,
            "device[2].sepc: there is no key 'sepc'; did you mean 'spec'",
        ),
        ("[[device]]\n", 1, "device[1]: has neither spec nor address"),
        ("[[device]]\naddress = 'x'", 1, "device[1]: names no backend (there are: kinds, usbfs, virtual)"),
        ("[[device]]\naddress = 'x'\nbackend='virtul'", 3, "there is no backend 'virtul'; did you mean 'virtual'?"),
        ("[[device]]\nspec = 'virtul:x'", 2, "device[1].spec: device 'virtul:x': there is no backend 'virtul'"),
        ("[[device]]\nspec = 3", 2, "device[1].spec: is a text, not 3"),
        ("[[device]]\nspec = 'virtual:a'\naddress = 'b'", 3, "device[1].address: spec says the address already"),
        ("[[device]]\nspec = 'virtual:a?port=3'\nport = 4", 3, "device[1].port: is also in spec"),
        ("[[device]]\nspec = 'virtual:a'\nport = 0", 3, "device[1].port: port is a number from 1 up, not '0'"),
        ("[[device]]\nspec = 'virtual:a'\nmode = 'soon'", 3, "device[1].mode: there is no mode 'soon'"),
        ("[[device]]\nspec = 'virtual:a'\noptions = { x = [] }", 3, "device[1].options.x: is a text, a number"),
        ("[[device]]\nspec = 'virtual:a'\noptions.port = 3", 3, "options.port: belongs in [[device]] itself"),
        (
            "[[device]]\nspec = 'virtual:a'\n[device.plugins.quirks]\nnote='x'\nreadonly = 1",
            5,
            "device[1].plugins.quirks.readonly: plugin quirks: readonly is true or false, not 1",
        ),
        (
            "[[device]]\nspec = 'virtual:a'\n[device.plugins.quirk]",
            3,
            "there is no plugin 'quirk'; did you mean 'quirks'?",
        ),
        ("[[device]]\nspec = 'virtual:a'\n[device.plugins.none]", 3, "plugin none has no options for a device"),
        ("[[device]]\nspec = 'virtual:a?quirks.x=1'", 2, "device[1].spec: plugin quirks: there is no option 'x'"),
        ("[[device]]\nspec = 'virtual:a'\nplugins.broken.x = 1", 3, "plugin broken is not used: cannot be imported"),
        (
            "[[device]]\nspec = 'virtual:a?quirks.note=1'\nplugins.quirks.note = 'x'",
            3,
            "device[1].plugins.quirks: spec has options for it already",
        ),
        ("[plugins.quirks]\nsped = 1", 2, "plugins.quirks.sped: there is no option 'sped'; did you mean 'speed'?"),
        ("[plugins.nobody]\nx = 1", 1, "plugins.nobody: there is no plugin 'nobody'"),
        ("[plugins.none]", 1, "plugins.none: plugin none has no configuration"),
        ("[plugins]\nquirks = 3", 2, "plugins.quirks: is a table"),
        ("[plugins]\ndisable = 'x'", 2, "plugins.disable: is a list of plugins' names"),
        (
            "[plugins]\nrequire=['none']\ndisable=['none']",
            3,
            "plugins.disable[1]: plugin none is required and disabled",
        ),
        (
            "[plugins]\ndisable=[\n'none',\n'quirk']",
            4,
            "plugins.disable[2]: there is no plugin 'quirk'; did you mean 'quirks'",
        ),
        ("[plugins]\nenable=['wanted']", 2, "plugins.enable[1]: there is no plugin 'wanted' (there are: broken, noisy"),
        ("[server]\nbackend = 'virtul'", 2, "server.backend: there is no backend 'virtul'; did you mean 'virtual'?"),
        ("[server]\nverbose = -1", 2, "server.verbose: verbose is a number from 0 up, not -1"),
        (
            "[server]\nhotplug-fd = 3\nhotplug-socket-path = 'x'",
            2,
            "server.hotplug-fd: hotplug-socket-path and hotplug-fd cannot be used together",
        ),
        ("[[device]]\nspec = 'virtual:a?sise=1'", 2, "device[1].spec: there is no option 'sise'; did you mean 'size'?"),
        (
            "[[device]]\nspec = 'virtual:a?image=x'\n[device.options]\nreadonly = true\nsize = 'big'",
            5,
            "device[1].options.size: size is a whole number, not 'big'",
        ),
        ("[[device]]\nspec = 'virtual:a'\nprot = 3", 3, "device[1].prot: there is no key 'prot'; did you mean 'port'?"),
        ("[[device]]\nspec = 'virtual:a?prot=3'", 2, "device[1].spec: there is no option 'prot'; did you mean 'port'?"),
        ("[[device]]\nspec = 'virtual:a?port=0'", 2, "device[1].spec: port is a number from 1 up, not '0'"),
        ("[[device]]\nspec = 'kinds:b'", 2, "device[1].spec: there is no kinds device 'b' (there are: a)"),
        ("[[device]]\nbackend = 'kinds'\naddress = 'b'", 3, "device[1].address: there is no kinds device 'b'"),
        ("[[device]]\nspec = 'kinds:a'", 2, "device[1].spec: the option 'image' is missing; it is a path"),
        ("[[device]]\nspec = 'virtual:a'\nport = 16", 3, "device[1].port: device virtual:a: port 16 does not exist"),
        (
            "[[device]]\nspec = 'virtual:a'\nport = 3\n[[device]]\nspec = 'virtual:b?port=3'",
            5,
            "device[2].spec: port 3 is asked for by both virtual:a and virtual:b?port=3",
        ),
        (
            "[[device]]\nspec = 'virtual:a?name=x'\n[[device]]\nspec = 'virtual:b'\nname = 'x'",
            5,
            "device[2].name: virtual:a?name=x and virtual:b have the same name",
        ),
    ],
)
def test_mistakes(path: Path, text: str, line: int, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        made(path, text)
    assert str(error.value).startswith(f"{path}:{line}: ")
    assert message in str(error.value)


def test_the_example_of_the_documentation(path: Path) -> None:
    @dataclass(frozen=True)
    class Log:
        log_commands: bool = False

    page = (Path(__file__).resolve().parents[3] / "docs/configuration.md").read_text()
    path.write_text(page.partition("```toml\n")[2].partition("```")[0])
    declared = {"mass-storage-quirks": Declared(Schema(Options), Schema(Log))}
    config = load(CommandLine(file=path), BACKENDS, {**declared, "noisy": Declared()})
    assert [device.port for device in config.devices] == [9, None]
    assert config.devices[1].plugin_options == {"mass-storage-quirks": Options(readonly=True)}
    assert config.plugins == {"mass-storage-quirks": Log(True)}


def test_every_mistake_is_told(path: Path) -> None:
    with pytest.raises(ConfigErrors) as error:
        made(path, "[[device]]\nspec='virtul:a'\n[[device]]\nport=3\n[plugins.quirks]\nx=1", devices=("nothing",))
    starts = [str(each).partition(": ")[0] for each in error.value.errors[:3]]
    assert starts == [f"{path}:2", f"{path}:3", f"{path}:6"]
    assert str(error.value.errors[3]).startswith("device 'nothing' names no backend")
    assert len(error.value.errors) == 4


EVERYTHING = """
[sever]
[server]
spin = -1
verbose = "x"
backend = "virtul"
[[device]]
spec = "virtual:a?sise=1&port=0&quirks.readonl=1"
nmae = "x"
[device.options]
size = "big"
[[device]]
spec = "kinds:b"
mode = "soon"
[device.plugins.quirks]
note = 3
readonly = 3
[[device]]
spec = "virtual:a?name=y"
[[device]]
spec = "virtual:a?name=y"
[plugins]
disable = ["nosuch", "nobody"]
enable = 3
[plugins.quirks]
speed = "x"
sped = 1
"""


def test_one_mistake_hides_no_other(path: Path) -> None:
    with pytest.raises(ConfigErrors) as error:
        made(
            path,
            EVERYTHING,
            devices=("virtual:a?size=x&image=1&sise=2", "kinds:a"),
            plugins=PluginSelection(disable=("nosuch",)),
        )
    told = [str(each).removeprefix(f"{path}:").partition(": ") for each in error.value.errors]
    assert [f"{where} {what.partition(':')[0]}" for where, _, what in told[:-4]] == [
        "2 sever",
        "4 server.spin",
        "5 server.verbose",
        "6 server.backend",
        "8 device[1].spec",  # sise
        "8 device[1].spec",  # port
        "8 device[1].spec",  # quirks.readonl
        "9 device[1].nmae",
        "11 device[1].options.size",
        "13 device[2].spec",
        "14 device[2].mode",
        "16 device[2].plugins.quirks.note",
        "17 device[2].plugins.quirks.readonly",
        "21 device[4].spec",
        "23 plugins.disable[1]",
        "23 plugins.disable[2]",
        "24 plugins.enable",
        "26 plugins.quirks.speed",
        "27 plugins.quirks.sped",
    ]
    assert [where for where, _, _ in told[-4:]] == [
        "--no-plugin nosuch",
        "device 'virtual:a?size=x&image=1&sise=2'",
        "device 'virtual:a?size=x&image=1&sise=2'",
        "device 'kinds:a'",
    ]


def test_a_plugin_that_is_not_used_is_not_configured(path: Path) -> None:
    assert made(path, "[plugins.broken]\nanything = 1").plugins == {}


@pytest.mark.parametrize("content", [b"\xff", b"[server]\nbackend = '\xe9'"])
def test_a_file_that_is_no_text(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="is not UTF-8"):
        read(path)


def test_a_file_that_is_not_there(path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read(path)
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read(path.parent)


@given(st.text())
@example("[" * 5000)
@example("a = " + "[" * 5000)
def test_any_text_is_a_file_or_an_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        config = load(CommandLine(file=path), BACKENDS, DECLARED)
    except ConfigError:
        return
    assert config.devices == ()


# -- what `config show` prints --------------------------------------------------------------------------------------


def test_what_is_shown_says_the_same(path: Path) -> None:
    config = made(path, WHOLE)
    shown = made(path, "\n".join(toml(config, DECLARED)))
    assert (shown.server, shown.selection) == (config.server, config.selection)
    assert shown.plugins == {**config.plugins, "other one": Tuning()}
    for one, other in zip(config.devices, shown.devices, strict=True):
        assert (one.address, one.options, one.plugin_options) == (other.address, other.options, other.plugin_options)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_is_shown_as_it_is(key: str, value: str) -> None:
    from usbvfiod_core.cli.config import _pairs

    assert tomllib.loads("\n".join(_pairs({key: value}))) == {key: value}
