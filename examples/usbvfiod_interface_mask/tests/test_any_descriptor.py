"""Whatever a configuration looks like, nothing of a hidden interface is left in it, and the rest is as it was."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from hypothesis import given
from hypothesis import strategies as st
from usbvfiod_interface_mask import InterfaceMask, Options

from usbvfiod_core.usb.descriptors import (
    INTERFACE_ASSOCIATION,
    Configuration,
    DescriptorError,
    Endpoint,
    Interface,
    walk,
)

BYTE = st.integers(0, 255)


def descriptors(*kinds: int) -> st.SearchStrategy[bytes]:
    """A few whole descriptors of these types."""
    each = st.tuples(st.sampled_from(kinds), st.binary(max_size=8)).map(
        lambda made: bytes((2 + len(made[1]), made[0])) + made[1]
    )
    return st.lists(each, max_size=2).map(b"".join)


ENDPOINT = st.builds(Endpoint, BYTE, BYTE, st.integers(0, 0xFFFF), BYTE, extra=descriptors(0x24, 0x25))
INTERFACE = st.builds(
    Interface,
    number=st.integers(0, 4),
    class_code=BYTE,
    endpoints=st.lists(ENDPOINT, max_size=2).map(tuple),
    alternate=st.integers(0, 2),
    before=st.tuples(BYTE, BYTE).map(lambda group: bytes((8, INTERFACE_ASSOCIATION, *group, 1, 2, 3, 0)))
    | st.just(b""),
    extra=descriptors(0x21, 0x24),
)
CONFIGURATION = st.builds(
    Configuration, st.lists(INTERFACE, max_size=6).map(tuple), value=BYTE, extra=descriptors(0x24)
)
STYLE = st.sampled_from(["vendor", "remove"])
NUMBERS = st.sets(st.integers(0, 4), min_size=1).map(tuple)


@given(CONFIGURATION, NUMBERS, STYLE, st.booleans())
def test_nothing_of_a_hidden_interface_is_left(
    configuration: Configuration, numbers: tuple[int, ...], style: Literal["vendor", "remove"], show: bool
) -> None:
    options = Options(show=numbers, style=style) if show else Options(hide=numbers, style=style)
    raw = configuration.pack()
    masked = Configuration.unpack(InterfaceMask(options).configuration_descriptor(raw))
    kept = [each for each in configuration.interfaces if not options.hides(each.number)]
    assert [replace(each, before=b"") for each in masked.interfaces if not options.hides(each.number)] == [
        replace(each, before=b"") for each in kept
    ]
    for interface in masked.interfaces:
        if options.hides(interface.number):
            assert style == "vendor"
            assert (interface.class_code, interface.endpoints, interface.extra) == (0xFF, (), b"")
        for kind, data in walk(interface.before):
            assert kind != INTERFACE_ASSOCIATION or not any(map(options.hides, range(data[2], data[2] + data[3])))
    assert replace(masked, interfaces=()) == replace(configuration, interfaces=())


@given(
    st.binary(max_size=200) | st.binary(max_size=200).map(lambda rest: bytes((9, 2, 200, 0, 3, 1, 0, 128, 50)) + rest)
)
def test_any_bytes_are_masked_or_refused(raw: bytes) -> None:
    try:
        masked = InterfaceMask(Options(show=(1,), style="remove")).configuration_descriptor(raw)
    except DescriptorError:
        return
    assert {each.number for each in Configuration.unpack(masked).interfaces} <= {1}
