"""Which way an interrupt takes, the pin's level, and that none is lost between the mechanisms."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.protocol.fakes import FakeController
from usbvfiod_core.pci.interrupts import ALL, Enables, Interrupts, Mechanism

INTX, MSI, MSIX = 0, 1, 2
MASTER = Enables(bus_master=True)


class Rig:
    """Interrupts whose targets write down (index, vector)."""

    def __init__(self, vectors: int = 8) -> None:
        self.interrupts = Interrupts(vectors)
        self.controller = FakeController(self.interrupts)
        self.interrupts.bind(self.controller)
        self.told: list[tuple[int, int]] = []

    def assign(self, index: int, *vectors: int) -> None:
        for vector in vectors:
            self.interrupts.assign(index, vector, self._target(index, vector))

    def _target(self, index: int, vector: int) -> Callable[[], None]:
        return lambda: self.told.append((index, vector))

    def take(self) -> list[tuple[int, int]]:
        told, self.told = self.told, []
        return told


def test_msix_has_a_vector_for_each_interrupter() -> None:
    rig = Rig()
    rig.assign(MSIX, *range(8))
    rig.interrupts.configure(Enables(msix=True, bus_master=True))
    rig.controller.interrupt(0, 3, 3, 7)
    assert rig.take() == [(MSIX, 0), (MSIX, 3), (MSIX, 3), (MSIX, 7)]
    assert rig.interrupts.pending_messages == 0


def test_pending_goes_to_the_next_target_once() -> None:
    rig = Rig()
    rig.interrupts.configure(Enables(msix=True, bus_master=True))
    rig.controller.interrupt(2, 2, 3)
    assert rig.interrupts.pending_messages == 0b1100
    rig.assign(MSIX, 2, 2)
    assert rig.take() == [(MSIX, 2)]
    assert rig.interrupts.pending_messages == 0b1000
    rig.interrupts.assign(MSIX, 2, None)
    rig.controller.interrupt(2)
    assert rig.take() == []
    assert rig.interrupts.pending_messages == 0b1100


def test_a_driver_may_see_to_what_is_pending() -> None:
    rig = Rig()
    rig.interrupts.configure(Enables(msix=True, bus_master=True))
    rig.controller.interrupt(2)
    rig.controller.pending_interrupts = 0
    assert rig.interrupts.pending_messages == 0
    rig.assign(MSIX, 2)
    assert rig.take() == []


def test_the_pin_is_no_message_and_messages_are_no_pin() -> None:
    rig = Rig()
    rig.controller.interrupt(1)
    assert (rig.interrupts.pin_asserted, rig.interrupts.pending_messages) == (True, 0)
    rig.interrupts.configure(Enables(msix=True, bus_master=True))
    assert (rig.interrupts.pin_asserted, rig.interrupts.pending_messages) == (False, 2)
    rig.interrupts.configure(Enables(msi=True, bus_master=True))
    assert (rig.interrupts.pin_asserted, rig.interrupts.pending_messages) == (False, 0)


def test_a_pin_that_was_disabled_tells_what_it_has_told_before() -> None:
    """Nobody has unmasked it: the client has given up that interrupt when messages were enabled."""
    rig = Rig()
    rig.assign(INTX, 0)
    rig.interrupts.configure(MASTER)
    rig.controller.interrupt(0)
    assert rig.take() == [(INTX, 0)]
    rig.interrupts.configure(Enables(msi=True, bus_master=True))
    rig.interrupts.configure(MASTER)
    assert rig.take() == [(INTX, 0)]


def test_a_reset_takes_back_what_was_enabled_and_keeps_the_targets() -> None:
    rig = Rig()
    rig.assign(MSIX, 0)
    rig.assign(INTX, 0)
    rig.interrupts.configure(Enables(msix=True, bus_master=True, intx_disabled=True))
    rig.interrupts.reset()
    rig.controller.interrupt(0)
    assert rig.take() == [(INTX, 0)]
    rig.interrupts.configure(Enables(msix=True, bus_master=True))
    assert rig.take() == [(MSIX, 0)]


@pytest.mark.parametrize("vectors", [0, -1, 3, 64])
def test_numbers_of_vectors_that_do_not_fit(vectors: int) -> None:
    with pytest.raises(ValueError, match="vectors"):
        Interrupts(vectors)


def test_a_function_without_any_mechanism() -> None:
    with pytest.raises(ValueError, match="a way"):
        Interrupts(8, [])


def test_mechanisms_that_are_not_offered_have_no_vectors() -> None:
    for left_out in ALL:
        interrupts = Interrupts(4, ALL - {left_out})
        counts = dict(zip((Mechanism.INTX, Mechanism.MSI, Mechanism.MSIX), (1, 4, 4), strict=True))
        counts[left_out] = 0
        assert [interrupts.count(index) for index in range(5)] == [*counts.values(), 0, 0]


enables = st.builds(
    Enables,
    msix=st.booleans(),
    msi=st.booleans(),
    messages=st.sampled_from([1, 2, 4, 8, 128]),
    intx_disabled=st.booleans(),
    bus_master=st.booleans(),
)
steps = st.one_of(
    enables,
    st.tuples(st.sampled_from([INTX, MSI, MSIX]), st.integers(0, 7), st.booleans()),
    st.integers(0, 7),
    st.sampled_from(["mask", "unmask", "seen to"]),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(steps, max_size=40))
def test_no_interrupt_is_lost_or_made_up(script: list[object]) -> None:
    """Against the rules in their simplest form: a message is owed for each interrupt, the pin for the level."""
    rig = Rig()
    now, targets, masked = Enables(), set(), False
    for step in script:
        before = rig.controller.pending_interrupts
        if isinstance(step, Enables):
            now = step
            rig.interrupts.configure(step)
        elif isinstance(step, tuple):
            index, vector, there = step
            vector = 0 if index == INTX else vector
            if there:
                rig.assign(index, vector)
                targets.add((index, vector))
            else:
                rig.interrupts.assign(index, vector, None)
                targets.discard((index, vector))
        elif isinstance(step, int):
            rig.controller.interrupt(step)
            before |= 1 << step
        elif step == "seen to":
            before = rig.controller.pending_interrupts = 0
        else:
            masked = step == "mask"
            getattr(rig.interrupts, str(step))()
        told = rig.take()
        after = rig.controller.pending_interrupts
        messages = [each for each in told if each[0] != INTX]
        assert set(told) <= targets
        assert after & ~before == 0
        assert len(messages) == (before & ~after).bit_count(), "a message for each that is over, and no other"
        assert len(told) - len(messages) <= (before != 0), "the pin only if it is high"
        assert not messages or now.bus_master
        if now.msix or now.msi:
            used = 8 if now.msix else min(now.messages, 8)
            heard = {vector for index, vector in targets if index == (MSIX if now.msix else MSI)}
            owed = {number for number in range(8) if after & 1 << number and number % used in heard}
            assert not (owed and now.bus_master), "what can be told has been"
            assert len(told) == len(messages)
        if masked:
            assert len(told) == len(messages)
    # Whatever it was, this way the pin works.
    rig.interrupts.configure(Enables(bus_master=True))
    rig.interrupts.unmask()
    rig.controller.pending_interrupts = 0
    rig.assign(INTX, 0)
    rig.interrupts.unmask()
    rig.take()
    rig.controller.interrupt(4)
    assert rig.take() == [(INTX, 0)]
