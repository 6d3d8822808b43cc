"""State as plain values: what is packed is unpacked, and whatever else comes is refused by its place."""

from __future__ import annotations

import json
from dataclasses import MISSING, dataclass, field, fields
from enum import Enum
from typing import Annotated, Any

import pytest

from tests import state_page
from usbvfiod_core.pci.state import FunctionState
from usbvfiod_core.state import READS, U8, U64, Range, StateError, check_format, pack, unpack
from usbvfiod_core.usb.transfer import TransferType
from usbvfiod_core.xhci.state import (
    CommandRingState,
    ControllerState,
    EndpointState,
    EventRingState,
    InterrupterState,
    RingState,
    SlotState,
)


class Colour(Enum):
    RED = "r"
    BLUE = "b"


@dataclass
class Leaf:
    number: U8
    data: bytes = b""


@dataclass
class Tree:
    leaf: Leaf
    leaves: list[Leaf]
    colour: Colour
    named: dict[str, U64]
    numbered: dict[U8, str]
    pair: tuple[U8, str]
    plain: dict[str, Any]
    text: str
    yes: bool
    since: float
    perhaps: Leaf | None = None
    small: Annotated[int, Range(-1, 1)] = 0
    more: list[int] = field(default_factory=list)


TREE = Tree(
    Leaf(255, b"\x00\xff"),
    [Leaf(0), Leaf(1, b"a")],
    Colour.BLUE,
    {"big": (1 << 64) - 1},
    {0: "none", 255: "most"},
    (1, "one"),
    {"a": [1, None, {"b": True, "c": 1.5}], "d": "x"},
    "é",
    True,
    2.0,
    Leaf(7),
    -1,
    [1, -2],
)


def plain() -> dict[str, Any]:
    made: dict[str, Any] = json.loads(json.dumps(pack(TREE)))
    return made


def test_what_is_packed_is_unpacked() -> None:
    assert unpack(Tree, plain()) == TREE
    assert plain()["leaf"] == {"number": 255, "data": "00ff"}
    assert plain()["colour"] == "BLUE"


def test_what_has_a_default_may_be_missing() -> None:
    value = plain()
    for name in ("perhaps", "small", "more"):
        del value[name]
    made = unpack(Tree, value)
    assert (made.perhaps, made.small, made.more) == (None, 0, [])
    assert unpack(Tree, {**value, "perhaps": None}).perhaps is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: tree.pop("leaf"), "state: the field 'leaf' is missing"),
        (lambda tree: tree.update(leaf=None), "leaf: a table is expected, not None"),
        (lambda tree: tree.update(leaf=[1]), "leaf: a table is expected, not [1]"),
        (lambda tree: tree["leaves"][1].update(number=256), "leaves[1].number: 256 is not between 0 and 255"),
        (lambda tree: tree["leaves"][1].update(number=True), "leaves[1].number: a whole number is expected, not True"),
        (lambda tree: tree["leaves"][1].update(number=1.0), "leaves[1].number: a whole number is expected, not 1.0"),
        (lambda tree: tree["leaves"][0].update(tall=1), "leaves[0]: unknown field 'tall'"),
        (lambda tree: tree["leaf"].update(data="0"), "leaf.data: hexadecimal digits are expected, not '0'"),
        (lambda tree: tree["leaf"].update(data="é0"), "leaf.data: hexadecimal digits are expected, not 'é0'"),
        (lambda tree: tree["leaf"].update(data=5), "leaf.data: a text is expected, not 5"),
        (lambda tree: tree.update(colour="GREEN"), "colour: there is no 'GREEN' (there are: RED, BLUE)"),
        (lambda tree: tree.update(colour="r"), "colour: there is no 'r' (there are: RED, BLUE)"),
        (lambda tree: tree["named"].update(big=-1), "named['big']: -1 is not between 0 and 18446744073709551615"),
        (lambda tree: tree["numbered"].update(x=""), "numbered: keys are whole numbers, not 'x'"),
        (lambda tree: tree["numbered"].update({"-1": ""}), "numbered: keys are whole numbers, not '-1'"),
        (lambda tree: tree["numbered"].update({"٣": ""}), "numbered: keys are whole numbers, not '٣'"),
        (lambda tree: tree["numbered"].update({"256": ""}), "numbered['256']: 256 is not between 0 and 255"),
        (lambda tree: tree["numbered"].update({"1" * 5000: ""}), "numbered: keys are whole numbers, not '1111"),
        (lambda tree: tree.update(pair=[1]), "pair: 2 values are expected, not 1"),
        (lambda tree: tree.update(pair=[256, ""]), "pair[0]: 256 is not between 0 and 255"),
        (lambda tree: tree.update(pair={}), "pair: a list is expected, not {}"),
        (lambda tree: tree.update(named=[]), "named: a table is expected, not []"),
        (lambda tree: tree.update(leaves={}), "leaves: a list is expected, not {}"),
        (lambda tree: tree.update(text=1), "text: a text is expected, not 1"),
        (lambda tree: tree.update(yes=1), "yes: true or false is expected, not 1"),
        (lambda tree: tree.update(since="1"), "since: a number is expected, not '1'"),
        (lambda tree: tree.update(since=float("nan")), "since: a number is expected, not nan"),
        (lambda tree: tree.update(since=10**400), "since: a number is expected, not a number of 1329 bits"),
        (lambda tree: tree.update(more=[1, 10**30]), "more[1]: a number of 100 bits is not between"),
        (lambda tree: tree["perhaps"].update(number=[]), "perhaps.number: a whole number is expected, not []"),
        (lambda tree: tree["plain"].update(a=[{"b": {1}}]), "plain['a'][0]['b']: a plain value is expected, not {1}"),
        (lambda tree: tree["plain"].update({1: 2}), "plain: a text is expected, not 1"),
        (lambda tree: tree.update({5: 6}), "state: unknown field '5'"),
    ],
)
def test_what_does_not_fit_is_named_by_its_place(change: Any, message: str) -> None:
    value = plain()
    change(value)
    with pytest.raises(StateError) as caught:
        unpack(Tree, value)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("value", [None, [], 5, "x", [["leaf", 1]]])
def test_a_state_is_a_table(value: object) -> None:
    with pytest.raises(StateError, match=r"^state: a table is expected"):
        unpack(Tree, value)


@pytest.mark.parametrize("format", [0, 2, -1, True, "1", None, 1.0])
def test_formats_that_are_not_read(format: object) -> None:
    with pytest.raises(StateError, match=r"^format: this version reads 1, and the state has"):
        check_format(format)


def test_formats_that_are_read() -> None:
    for format in READS:
        check_format(format)


def test_a_controllers_state() -> None:
    """By its own types, so that they are all of a kind that can be packed."""
    endpoint = EndpointState(3, TransferType.BULK, "Running", 0x1000, [RingState(0x2001, ahead=[b"abc"])])
    state = ControllerState(
        8,
        7,
        32,
        {"USBCMD": 1},
        CommandRingState(),
        [InterrupterState(EventRingState())],
        slots=[SlotState(1, "Configured", endpoints=[endpoint])],
    )
    assert unpack(ControllerState, json.loads(json.dumps(pack(state)))) == state
    value = pack(state)
    value["slots"][0]["endpoints"][0]["dci"] = 32
    with pytest.raises(StateError, match=r"^slots\[0\]\.endpoints\[0\]\.dci: 32 is not between 1 and 31"):
        unpack(ControllerState, value)


def test_a_functions_state() -> None:
    state = FunctionState(b"\x36\x1b", ["msix"], b"\0" * 16, pin_told=True)
    assert unpack(FunctionState, json.loads(json.dumps(pack(state)))) == state


def test_the_page_of_the_state_is_that_of_its_dataclasses() -> None:
    assert state_page.DOCUMENT.read_text() == state_page.page(), "run: make docs"


def test_every_field_is_of_a_type_that_can_be_read() -> None:
    for cls in state_page.described():
        if any(each.default is MISSING and each.default_factory is MISSING for each in fields(cls)):
            with pytest.raises(StateError, match="is missing"):
                unpack(cls, {})
        else:
            assert unpack(cls, {}) == cls()
