"""What the two ends of a channel say to each other, step by step: dataclasses, which are checked when they come.

`prepare`, `offer`, `freeze`, `state` (a `ServerState`), `accept`, `go`, `gone`; and `failed` at any time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, TypeVar

from ..state import U32, Range, StateError, unpack
from .channel import ChannelClosed, Message

T = TypeVar("T")


@dataclass
class Prepare:
    """The server's command line, and where it was called."""

    arguments: list[str]
    directory: str
    environment: dict[str, str]
    uid: U32


@dataclass
class OfferedDevice:
    """An attachment, before anything is said of its state."""

    spec: str
    backend: str
    configured: bool


@dataclass
class Offer:
    """What there is to be taken over. `fixed`: see `server_state.fixed`; `inherited` are the descriptors of `socket`
    and `control` that whoever has started the server has handed down; `refusals` say what cannot be handed over."""

    format: U32
    usbvfiod: str
    fixed: dict[str, str]
    inherited: dict[str, U32 | None]
    attachments: list[OfferedDevice]
    refusals: list[str]


@dataclass
class Freeze:
    """Stop; `replug` says to unplug before what cannot be handed over."""

    replug: bool = False


@dataclass
class Accept:
    """Everything is built from the state, in this process."""

    pid: Annotated[int, Range(1, (1 << 31) - 1)]


@dataclass
class Failed:
    """It comes to nothing."""

    message: str = field(default="it does not say why")


def said(cls: type[T], message: Message) -> T:
    """What a message says. Raises ChannelClosed, with the step and the place in it, if it makes no sense."""
    try:
        return unpack(cls, message.body)
    except StateError as error:
        raise ChannelClosed(f"the other process says what makes no sense: {message.step}: {error}") from None


def descriptor(message: Message, name: str) -> int:
    """A descriptor that comes with a message. Raises ChannelClosed."""
    fd = message.fds.get(name)
    if fd is None:
        raise ChannelClosed(f"the other process says what makes no sense: {message.step} has no descriptor {name!r}")
    return fd
