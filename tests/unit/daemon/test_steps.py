"""What the other end of an upgrade says, which may be anything: an error that says where, and nothing else."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from usbvfiod_core.daemon.channel import Channel, ChannelClosed, Message
from usbvfiod_core.daemon.config import Config
from usbvfiod_core.daemon.server_settings import ServerSettings
from usbvfiod_core.daemon.server_state import fixed
from usbvfiod_core.daemon.steps import Accept, Failed, Freeze, Offer, OfferedDevice, Prepare, descriptor, said
from usbvfiod_core.daemon.successor import HANDOVER
from usbvfiod_core.daemon.taking_over import TakingOver, reasonable
from usbvfiod_core.errors import UsbvfiodError
from usbvfiod_core.state import FORMAT, pack
from usbvfiod_core.virtual import VirtualBackend

CONFIG = Config(ServerSettings(socket_path=Path("/run/usb.sock")))
OFFER = pack(
    Offer(
        FORMAT,
        "0.1.0",
        fixed(CONFIG.server),
        {"socket": None, "control": 5},
        [OfferedDevice("virtual:keyboard", "virtual", False)],
        [],
    )
)
PREPARE = pack(Prepare(["--socket-path", "usb.sock"], "/", {"HOME": "/"}, 0))
STEPS = [
    (Prepare, PREPARE),
    (Offer, OFFER),
    (Freeze, {"replug": True}),
    (Accept, {"pid": 7}),
    (Failed, {"message": ""}),
]
ODD: list[Any] = [None, True, -1, 1 << 40, 0.5, "", "x" * 1000, [], [[]], {}, {"a": {}}, [None], {"": None}]


def mutated(value: Any, chance: random.Random) -> Any:
    """The same with something else in one place."""
    if not isinstance(value, dict | list) or not value or chance.random() < 0.2:
        return chance.choice(ODD)
    if isinstance(value, list):
        at = chance.randrange(len(value))
        return [mutated(each, chance) if index == at else each for index, each in enumerate(value)]
    key = chance.choice(list(value))
    kind = chance.randrange(4)
    if kind == 0:
        return {name: each for name, each in value.items() if name != key}
    if kind == 1:
        return {**value, "more": 1}
    return {**value, key: mutated(value[key], chance)}


@pytest.fixture
def ends() -> Iterator[tuple[TakingOver, Channel]]:
    """A process that takes a place, and the server's end."""
    own, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server = Channel(other)
    read, write = os.pipe()
    taking = TakingOver.begun({HANDOVER: f"channel:{own.detach()}:{write}"})
    assert taking is not None
    yield taking, server
    server.close()
    taking._channel.close()
    os.close(read)
    os.close(write)


@pytest.mark.parametrize(("cls", "body"), STEPS)
def test_every_step_is_checked(cls: type[Any], body: dict[str, Any]) -> None:
    assert pack(said(cls, Message("step", body, {}))) == {**pack(said(cls, Message("step", body, {}))), **body}
    chance = random.Random(1)
    refused = []
    for _ in range(300):
        try:
            said(cls, Message("step", mutated(body, chance), {}))
        except ChannelClosed as error:
            refused.append(str(error))
    assert len(refused) > 100
    assert all(each.startswith("the other process says what makes no sense: step: ") for each in refused)


def test_an_offer_that_makes_no_sense_is_an_error_for_people(ends: tuple[TakingOver, Channel]) -> None:
    taking, server = ends
    chance = random.Random(2)
    refused = []
    for _ in range(300):
        body = mutated(OFFER, chance)
        fds = {"log": 2} if chance.random() < 0.9 else {}
        server.send("offer", body if isinstance(body, dict) else {"format": FORMAT, "what": body}, fds)
        try:
            taking.prepared(CONFIG, {"virtual": VirtualBackend()})
        except UsbvfiodError as error:
            refused.append(str(error))
        if taking.log_fd > 2:
            os.close(taking.log_fd)
            taking.log_fd = 2
        while (asked := server.receive()) is not None:
            assert asked.step in ("offer", "failed")
    assert len(refused) > 200


@pytest.mark.parametrize(
    ("body", "fds", "what"),
    [
        ({}, ["log"], "format: this version reads 1, and the state has None"),
        ({"format": 99, "anything": 1}, ["log"], "format: this version reads 1, and the state has 99"),
        (OFFER, [], "makes no sense: offer has no descriptor 'log'"),
        ({"format": FORMAT}, ["log"], "makes no sense: offer: state: the field 'usbvfiod' is missing"),
        (
            {**OFFER, "attachments": [{"spec": "x"}]},
            ["log"],
            r"offer: attachments\[0\]: the field 'backend' is missing",
        ),
    ],
)
def test_the_error_says_where(
    ends: tuple[TakingOver, Channel], body: dict[str, Any], fds: list[str], what: str
) -> None:
    taking, server = ends
    server.send("offer", body, dict.fromkeys(fds, 2))
    with pytest.raises(UsbvfiodError, match=what):
        taking.prepared(CONFIG, {"virtual": VirtualBackend()})


@pytest.mark.parametrize("step", ["freeze", "accept"])
def test_a_server_that_did_not_wait_is_quoted(ends: tuple[TakingOver, Channel], step: str) -> None:
    taking, server = ends
    server.send("failed", pack(Failed("the other process takes too long")))
    server.close()
    with pytest.raises(UsbvfiodError, match=r"^the server goes on as it was: the other process takes too long$"):
        getattr(taking, step)()


def test_what_has_not_come_is_named() -> None:
    with pytest.raises(ChannelClosed, match="state has no descriptor 'page'"):
        descriptor(Message("state", {}, {}), "page")
    assert str(reasonable(KeyError("client"))) == "the server's state has come without 'client'"
