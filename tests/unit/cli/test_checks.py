"""What is wrong is found by every check, by the start itself, and all of it."""

from __future__ import annotations

import json
import os
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usbvfiod_core import ConfigError, DeviceError
from usbvfiod_core.cli import main, serve
from usbvfiod_core.cli.passing import Opened
from usbvfiod_core.daemon import log
from usbvfiod_core.daemon.config import parse_device
from usbvfiod_core.hooks.options import backend_options, backend_schema
from usbvfiod_core.vfio_user.listener import SocketPath
from usbvfiod_core.virtual import VirtualBackend
from usbvfiod_core.virtual.image import Image


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str]]:
    """The exit code, and the errors that were told."""
    code = main(arguments)
    lines = capsys.readouterr().err.splitlines()
    return code, [line.removeprefix("usbvfiod: error: ") for line in lines if line.startswith("usbvfiod: error: ")]


@pytest.mark.parametrize(
    ("spec", "messages"),
    [
        ("virtual:nope", ["there is no virtual device 'nope'"]),
        ("virtual:keybord", ["there is no virtual device 'keybord'; did you mean 'keyboard'"]),
        ("virtual:flash", ["the option 'image' is missing; it is a path"]),
        ("virtual:flash?img=x", ["there is no option 'img'; did you mean 'image'", "option 'image' is missing"]),
        ("virtual:flash?image=x&prot=3", ["there is no option 'prot'; did you mean 'port'"]),
        ("virtual:flash?image=x&blocksize=1&port=0", ["port is a number", "blocksize is one of 512, 4096, not '1'"]),
        ("virtual:flash?image=x&transport=uas&speed=full", ["transport=uas needs speed=high or speed=super"]),
        ("virtual:keyboard?speed=super", ["speed is one of full, high, not 'super'"]),
        ("virtual:loopback?isoc_interval=17", ["isoc_interval is a whole number from 1 to 16, not '17'"]),
        ("virtual:mouse?fault=burn@in", ["there is no kind 'burn'"]),
        ("virtual:serial?link=a&file=b", ["virtual:serial has one line"]),
        ("virtual:audio?playback=a&capture=a", ["cannot write and read the same file"]),
    ],
)
def test_options_of_virtual_devices(
    spec: str, messages: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "vm.toml"
    file.write_text(f"[server]\nfd = 99\n[[device]]\nspec = '{spec}'\n")
    told = {
        "why": said(capsys, "why", spec),
        "start": said(capsys, "--fd", "99", "--device", spec),
        "check": said(capsys, "--device", spec, "config", "check"),
        "file": said(capsys, "--config", str(file)),
        "file check": said(capsys, "--config", str(file), "config", "check"),
    }
    for who, (code, errors) in told.items():
        assert (code, len(errors)) == (2, len(messages)), who
        for message, error in zip(messages, errors, strict=True):
            assert message in error, who
            if who.startswith("file"):
                assert error.startswith(f"{file}:4: device[1].spec: ")


def test_the_start_tells_everything_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "vm.toml"
    file.write_text("[sever]\n[[device]]\nspec='virtual:nope'\n[plugins]\nrequire = ['gone']\ndisable = ['nosuch']\n")
    arguments = ("--config", str(file), "--no-plugin", "nobody", "--device", "virtual:flash")
    code, errors = said(capsys, *arguments, "--fd", "99")
    assert code == 5
    assert [error.partition(": ")[0].removeprefix(str(file)) for error in errors] == [
        ":5",
        ":1",
        ":3",
        ":6",
        "--no-plugin nobody",
        "device 'virtual:flash'",
    ]
    assert ": plugins.require[1]: plugin gone: is not installed; there are: " in errors[0]
    assert said(capsys, *arguments, "config", "check") == (code, errors)


def test_other_commands_refuse_plugins_that_are_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    code, errors = said(capsys, "--no-plugin", "virtul", "devices")
    assert code == 2
    assert errors[0].startswith("--no-plugin virtul: there is no plugin 'virtul'; did you mean 'virtual'")


def test_a_plugin_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "show", "virtual"]) == 0
    page = capsys.readouterr().out
    assert "hooks:      usbvfiod_register_backends, usbvfiod_register_needs\n" in page
    for kind in VIRTUAL.kinds:
        assert f"\nvirtual:{kind}?OPTION=VALUE\n" in page
    assert "\nimage      a path                    required  A file or block device" in page
    assert main(["plugins", "show", "virtual", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["version"] == 1
    assert (shown["plugin"]["version"], shown["plugin"]["state"]) == (version("usbvfiod"), "used")
    [backend] = shown["plugin"]["backends"]
    options = {option["name"]: option for option in backend["kinds"]["flash"]}
    assert set(options) == set(backend_schema(VIRTUAL, "flash").fields)
    assert (options["image"]["required"], options["image"]["default"]) == (True, None)
    assert (options["blocksize"]["choices"], options["blocksize"]["default"]) == (["512", "4096"], 512)


def test_a_plugin_with_options_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "show", "mass-storage-quirks"]) == 0
    page = capsys.readouterr().out
    assert "as ?mass-storage-quirks.OPTION=VALUE or in [device.plugins.mass-storage-quirks]:" in page
    assert "\nreadonly  true or false           The guest can read" in page
    assert "In the configuration file, in [plugins.mass-storage-quirks]:" in page
    assert main(["plugins", "show", "usbfs"]) == 0
    assert "Devices of the backend usbfs, usbfs:ADDRESS?OPTION=VALUE:" in capsys.readouterr().out


def test_the_commands_of_a_plugin_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """As they are on the command line; a plugin without any has no such line."""
    assert main(["plugins", "show", "web"]) == 0
    assert "\ncommands:   usbvfiod web\n" in capsys.readouterr().out
    assert main(["plugins", "show", "usbfs"]) == 0
    assert "commands:" not in capsys.readouterr().out
    assert main(["plugins", "--json"]) == 0
    commands = {plugin["name"]: plugin["commands"] for plugin in json.loads(capsys.readouterr().out)["plugins"]}
    assert (commands["web"], commands["virtual"]) == (["web"], [])


def test_a_plugin_that_is_not_there_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    code, errors = said(capsys, "plugins", "show", "virtul")
    assert code == 2
    assert errors[0].startswith("there is no plugin 'virtul'; did you mean 'virtual'")


VIRTUAL = VirtualBackend()
NAMES = sorted({key for kind in VIRTUAL.kinds for key in backend_schema(VIRTUAL, kind).fields})


@given(
    st.sampled_from(sorted(VIRTUAL.kinds)),
    st.dictionaries(st.sampled_from([*NAMES, "other"]), st.text() | st.sampled_from(["full", "1", "true", "bot"])),
)
def test_any_options_are_options_or_an_error(kind: str, options: dict[str, str]) -> None:
    try:
        made = backend_options(VIRTUAL, kind, options)
    except ConfigError:
        return
    assert isinstance(made, VIRTUAL.kinds[kind])


@given(st.text(), st.text())
def test_any_specification_is_one_or_an_error(address: str, query: str) -> None:
    try:
        spec = parse_device(f"virtual:{address}?{query}", {"virtual": VIRTUAL})
    except ConfigError:
        return
    assert spec.address in VIRTUAL.kinds


def test_what_a_start_would_find_is_found_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of all that options name: images, files, sockets, and ports of the wrong kind; with file and line."""
    (tmp_path / "small").write_bytes(bytes(100))
    (tmp_path / "image").write_bytes(bytes(512))
    os.mkfifo(tmp_path / "fifo")
    devices = {
        "virtual:flash?image=none": "image none does not exist",
        "virtual:flash?image=.": "image . is a directory",
        "virtual:flash?image=small": "image small has 100 bytes, less than one block",
        "virtual:flash?image=image&port=3": "needs a USB 3 port, and port 3 is not one; use 9 to 15",
        "virtual:mouse?port=12": "it needs a USB 2 port, and port 12 is not one; use 1 to 8",
        "virtual:audio?playback=none/a.wav": "cannot write none/a.wav: the directory none does not exist",
        "virtual:audio?playback=fifo": "recording fifo is a FIFO; name a regular file",
        "virtual:audio?capture=fifo": "recording fifo is a FIFO; name a regular file",
        "virtual:audio?playback=small": "small is there and is not a recording of virtual:audio",
        "virtual:audio?capture=small": "small is not a WAV file",
        "virtual:serial?link=image": "link=image exists and is not a symbolic link",
        "virtual:serial?file=none/log": "file=none/log: the directory none does not exist",
        "virtual:serial?connect=image": "connect=image: it is not a socket",
        "virtual:network?socket=none": "socket=none: No such file or directory",
    }
    tables = "".join(f"[[device]]\nspec = '{spec}'\n" for spec in devices)
    file = tmp_path / "vm.toml"
    file.write_text(f"[server]\nsocket-path = 'none/x.sock'\ncontrol-path = 'image'\n{tables}")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        code, errors = said(capsys, "--config", "vm.toml", "config", "check")
        told = [said(capsys, "why", spec) for spec in devices]
        left = sorted(os.listdir())
    assert code == 2
    paths = ["2: server.socket-path: socket path none/x.sock: the directory none does not exist"]
    paths += ["3: server.control-path: socket path image exists and is not a socket"]
    places = [f"{4 + 2 * index + 1}: device[{index + 1}]" for index in range(len(devices))]
    for error, place, message in zip(errors, [*paths, *places], [*paths, *devices.values()], strict=True):
        assert f"vm.toml:{place}" in error
        assert message in error
    for (code, errors), message in zip(told, devices.values(), strict=True):
        assert code == 4
        assert message in errors[0]
    assert left == ["fifo", "image", "small", "vm.toml"], "nothing was made"


def test_all_that_is_wrong_with_a_device_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    device = f"virtual:flash?image={tmp_path}/none&port=40"
    code, errors = said(capsys, "--device", device, "config", "check")
    assert code == 2
    assert [device in error for error in errors] == [True, True]
    assert "port 40 does not exist" in errors[0]
    assert "none does not exist" in errors[1]


def test_what_a_server_has_is_not_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file of a running server is checked before it is asked to read it again."""
    (tmp_path / "image").write_bytes(bytes(512))
    device = f"virtual:flash?image={tmp_path}/image&port=9"
    with closing(Image(str(tmp_path / "image"))), closing(SocketPath(str(tmp_path / "x.sock"))):
        assert said(capsys, "--socket-path", f"{tmp_path}/x.sock", "--device", device, "config", "check") == (0, [])
        assert said(capsys, "why", device) == (0, [])


def test_a_file_is_read_once_and_may_be_a_pipe(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what a second reading would find there is nothing left, as of `<(...)` in a shell."""

    def piped(*words: str) -> int:
        reading, writing = os.pipe()
        try:
            os.write(writing, b"[server]\nfd = 9\n[[device]]\nspec = 'virtual:keyboard'\n")
            os.close(writing)
            return main(["--config", f"/dev/fd/{reading}", *words])
        finally:
            os.close(reading)

    assert piped("config", "check") == 0
    assert capsys.readouterr().out == "ok: 1 device\n"
    served = []
    monkeypatch.setattr(serve, "serve", lambda given: served.append(given.complete()[0]))
    monkeypatch.setattr(log, "set_up", lambda *arguments: None)
    assert piped() == 0
    (configuration,) = served
    assert [device.text for device in configuration.devices] == ["virtual:keyboard"]
    assert configuration.server.fd == 9


def test_a_file_that_is_not_there_is_told_of_once() -> None:
    """By the server, unless that has not come so far."""
    opened = Opened("virtual:flash?image=x", {}, ("x cannot be opened here: No such file or directory",))
    assert opened.more(ConfigError("image x does not exist")) == ""
    assert opened.more(DeviceError("x: permission denied")) == f"; {opened.failures[0]}"
    opened = Opened("virtual:flash?image=x", {}, ("x cannot be opened here: Permission denied",))
    assert opened.more(ConfigError("image x is a directory")) == f"; {opened.failures[0]}"
