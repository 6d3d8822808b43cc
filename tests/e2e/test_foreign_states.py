"""A program that takes a server's place and is told what makes no sense, as by another program or version: it says
where, in words for people, and changes nothing."""

from __future__ import annotations

import json
import os
import random
import re
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.e2e.upgrade_rig import GuestAtWork, Upgradable
from tests.unit.daemon.test_steps import ODD
from usbvfiod_core.cli import main
from usbvfiod_core.cli.control import ControlConnection
from usbvfiod_core.daemon.channel import Channel, ChannelClosed, Message
from usbvfiod_core.daemon.steps import Failed, Freeze
from usbvfiod_core.daemon.successor import HANDOVER
from usbvfiod_core.state import pack
from usbvfiod_core.testing.limits import PATIENCE

ENOUGH = "the test has seen enough"
OURS = re.compile(r"\b[A-Z]\w*(Error|Exception)\b|object has no|positional argument|not subscriptable")
"""What an exception says that nobody has thought of."""


class Told(NamedTuple):
    """What a server that serves a guest has said of itself."""

    arguments: list[str]
    offer: Message
    state: Message


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    directory = tmp_path_factory.mktemp("told")
    words: list[str | Path] = ["--device", "virtual:tablet?name=tablet", "--metrics", str(directory / "metrics.sock")]
    with Upgradable(directory, words) as rig, closing(GuestAtWork(rig)) as guest:
        guest.step()
        channel, other = Channel.pair()
        with other, ControlConnection(rig.control, PATIENCE) as control:
            control.request("upgrade", fd=True, fds=[other.fileno()])
        prepare = channel.receive(PATIENCE)
        assert prepare is not None
        channel.send("offer")
        offer = channel.receive(PATIENCE)
        channel.send("freeze", pack(Freeze()))
        state = channel.receive(PATIENCE)
        assert offer is not None
        assert state is not None
        assert (offer.step, state.step) == ("offer", "state")
        channel.send("failed", pack(Failed(ENOUGH)))
        channel.close()
        yield Told(prepare.body["arguments"], offer, state)
        for fd in (*offer.fds.values(), *state.fds.values()):
            os.close(fd)
        guest.step()
        guest.check()
        assert rig.serving() == rig.pid


def answer(server: Channel, offer: Message, body: Any, fds: dict[str, int]) -> str:
    """Be the server, until the other process has refused, which is what this returns, or accepted."""
    said = ""
    try:
        while (message := server.receive(10 * PATIENCE)) is not None:
            if message.step == "offer":
                server.send("offer", offer.body, offer.fds)
            elif message.step == "freeze":
                server.send("state", body, fds)
            elif message.step == "failed":
                said = message.body["message"]
            else:
                assert message.step == "accept"
                server.send("failed", pack(Failed(ENOUGH)))
    except ChannelClosed:
        pass
    return said


def take(told: Told, body: Any, fds: dict[str, int], offer: Message | None = None) -> str:
    """Have a process take the place of a server that says this; why it does not."""
    own, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()  # a quarter of what a program costs that is started
    if pid == 0:
        code = 99
        try:
            other.close()
            nowhere = os.open(os.devnull, os.O_RDWR)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
            os.environ[HANDOVER] = f"channel:{own.detach()}:{nowhere}"
            code = main([*told.arguments, "--sandbox", "off"])
        finally:
            os._exit(code)
    own.close()
    server = Channel(other)
    said = answer(server, offer or told.offer, body, fds)
    server.close()
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) not in (0, 99)
    return said


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Everything in it."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, each in items for place in places(each, (*path, key)))]


def changed(body: dict[str, Any], chance: random.Random, place: tuple[Any, ...]) -> dict[str, Any]:
    """The same with something else there, or without it."""
    made: dict[str, Any] = json.loads(json.dumps(body))
    at: Any = made
    for key in place[:-1]:
        at = at[key]
    key = place[-1]
    if chance.random() < 0.2:
        del at[key]
        return made
    value = at[key]
    choices = [*ODD]
    if isinstance(value, bool):
        choices = [not value]
    elif isinstance(value, int):
        choices = [value + 1, value ^ 1 << chance.randrange(32), 0, 255, value * 2]
    elif isinstance(value, str):
        choices = [value + "x", value[1:], "STOPPED", "1", "/"]
    elif isinstance(value, list):
        choices = [[], value * 2, value[::-1], [*value, None]]
    at[key] = chance.choice(choices if chance.random() < 0.7 else ODD)
    return made


def at(body: dict[str, Any], place: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """The same with a value there."""
    made: dict[str, Any] = json.loads(json.dumps(body))
    inner: Any = made
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return made


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        (("transport", "client", "memory", 0, "file"), 9, "memory[0].file: there is none with number 9"),
        (("attachments", 0, "plugged", "device", "usb", "later"), 1, "usb: unknown field 'later'"),
        pytest.param(
            *(("attachments", 2, "plugged"), None, "it is plugged, and its device does not say so"),
            marks=pytest.mark.long,
        ),
    ],
)
def test_what_makes_no_sense_is_named_by_its_place(told: Told, place: tuple[Any, ...], value: Any, reason: str) -> None:
    assert reason in take(told, at(told.state.body, place, value), told.state.fds)


def test_a_descriptor_that_has_not_come_is_named(told: Told) -> None:
    fds = {name: fd for name, fd in told.state.fds.items() if name != "transport/client"}
    assert take(told, told.state.body, fds) == "the server's state has come without 'client'"


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(2))
def test_hundreds_of_states_that_make_no_sense(told: Told, seed: int) -> None:
    """Each kind of place twice and more: refused in words for people, or accepted as it makes sense after all."""
    chance = random.Random(seed)
    kinds: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}
    for place in places(told.state.body)[1:]:
        kinds.setdefault(tuple(key for key in place if isinstance(key, str)), []).append(place)
    fds, unclear, refused = told.state.fds, [], 0
    attempts = [(chance.choice(each), fds) for each in kinds.values()]
    attempts += [(("numbers",), {key: fd for key, fd in fds.items() if key != name}) for name in fds]
    for place, left in attempts:
        reason = take(told, changed(told.state.body, chance, place) if left is fds else told.state.body, left)
        refused += ENOUGH not in reason
        if not reason or OURS.search(reason):
            unclear.append((place, reason))
            print(place, reason, flush=True)
    assert refused > len(attempts) // 3
    assert unclear == []
