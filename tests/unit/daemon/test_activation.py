"""Sockets of the service manager: which is which."""

from __future__ import annotations

import os

import pytest

from usbvfiod_core import ConfigError
from usbvfiod_core.daemon import activation
from usbvfiod_core.daemon.activation import ActivationSockets, take_sockets
from usbvfiod_core.daemon.notify import watchdog_interval


@pytest.fixture(autouse=True)
def no_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activation.os, "set_inheritable", lambda fd, inheritable: None)  # type: ignore[attr-defined]


def environment(count: str, names: str = "", pid: int | None = None) -> dict[str, str]:
    pid = os.getpid() if pid is None else pid
    return {"LISTEN_PID": str(pid), "LISTEN_FDS": count, "LISTEN_FDNAMES": names, "HOME": "/"}


@pytest.mark.parametrize(
    ("variables", "sockets"),
    [
        ({"HOME": "/"}, ActivationSockets()),
        (environment("1"), ActivationSockets(server=3)),
        (environment("1", "usbvfiod@web.socket"), ActivationSockets(server=3)),
        (environment("1", "control"), ActivationSockets(control=3)),
        (environment("2", "control:usb"), ActivationSockets(server=4, control=3)),
        (environment("2", "usb:control"), ActivationSockets(server=3, control=4)),
        (environment("3", "held.client:usb:held.irq-2-0"), ActivationSockets(4, None, {"client": 3, "irq-2-0": 5})),
        (environment("0"), ActivationSockets()),
        (environment("1", pid=1), ActivationSockets()),
    ],
)
def test_which_socket_is_which(variables: dict[str, str], sockets: ActivationSockets) -> None:
    assert take_sockets(variables) == sockets
    assert variables == {"HOME": "/"}  # they are for nobody else


@pytest.mark.parametrize(
    ("count", "names", "message"),
    [
        ("2", "", "gives 2 vfio-user sockets; one is served, and FileDescriptorName=control says"),
        ("3", "a:control:control", "gives 2 control sockets"),
        ("x", "", "LISTEN_FDS is 'x'"),
        ("-1", "", "not a number of sockets"),
        ("1000000", "", "not a number of sockets"),
    ],
)
def test_sockets_that_cannot_be_told_apart(count: str, names: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        take_sockets(environment(count, names))


@pytest.mark.parametrize(
    ("allowed", "pid", "interval"),
    [("", "", None), ("30000000", "", 15.0), ("1000", "ours", 0.0005), ("1000", "1", None), ("0", "", None)],
)
def test_how_often_the_watchdog_is_fed(
    monkeypatch: pytest.MonkeyPatch, allowed: str, pid: str, interval: float | None
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", allowed)
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "ours" else pid)
    assert watchdog_interval() == interval
