"""The games of a legal driver, while its controller is handed from one process to the next at any moment."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import rule

from tests.stateful.expected import FAILURES, text
from tests.stateful.play import play
from tests.stateful.test_legal_driver import ENDPOINTS, LegalDriver
from tests.unit.xhci.kit import spec
from tests.unit.xhci.succession import hand_over, quiet
from usbvfiod_core.testing.fake_device import Answer
from usbvfiod_core.usb.transfer import TransferStatus

answers = st.lists(
    st.tuples(
        st.sampled_from(ENDPOINTS),
        st.integers(0, 8),
        st.floats(0, 1),
        st.none() | st.sampled_from(sorted(FAILURES, key=str)),
    ),
    max_size=4,
    unique_by=lambda answer: answer[0],
)


class Successors(LegalDriver):
    """In the middle of anything another controller goes on, or the same one after all."""

    @rule(refused=st.booleans(), seconds=st.sampled_from([0.0, 0.001, 0.1, 3.0]))
    def go_on(self, refused: bool, seconds: float) -> None:
        quiet(self.rig.bus)
        self.succeed(refused, seconds)

    @rule(refused=st.booleans(), seconds=st.sampled_from([0.0, 0.1]), doorbells=st.sets(st.sampled_from(ENDPOINTS)))
    def go_on_with_doorbells(self, refused: bool, seconds: float, doorbells: set[int]) -> None:
        """Doorbells that are rung while the controller becomes quiet are not acted on, and not lost."""

        def ring() -> None:
            for endpoint in sorted(doorbells):
                self.doorbell(endpoint)

        quiet(self.rig.bus, ring)
        self.succeed(refused, seconds)

    @rule(answers=answers, refused=st.booleans(), backwards=st.booleans())
    def go_on_in_a_race(
        self,
        answers: list[tuple[int, int, float, TransferStatus | None]],
        refused: bool,
        backwards: bool,
    ) -> None:
        """Some transfers are done before they can be taken back; the next one has moved something, or fails."""
        self.settle()
        device = self.rig.device
        device.cancels = False

        def end() -> None:
            ends = []
            given = {endpoint: (done, fraction, failure) for endpoint, done, fraction, failure in answers}
            for endpoint in self.running():
                done, fraction, failure = given.get(endpoint, (0, 0.0, None))
                expected = self.pipes[endpoint]
                held = list(device.held[endpoint])
                for place, (transfer, (td, _)) in enumerate(zip(held, expected.unanswered, strict=False)):
                    blank = expected.tds[place][0] is not td  # it stands behind one that was answered out of order
                    answer: Answer = TransferStatus.CANCELLED
                    if blank or place > done:
                        pass
                    elif place < done:
                        data = text(next(self.numbers), transfer.length) if transfer.is_in else b""
                        answer = data if transfer.is_in else TransferStatus.COMPLETED
                        expected.results[td] = spec.CC_SUCCESS, data
                    elif failure is not None:
                        answer = failure
                        expected.results[td] = FAILURES[failure], b""
                    elif transfer.length:
                        part = min(int(transfer.length * fraction), transfer.length - 1)
                        moved = text(next(self.numbers), part) if transfer.is_in else transfer.read()[:part]
                        expected.moved[td] = expected.moved.get(td, b"") + moved
                        answer = (TransferStatus.CANCELLED, moved if transfer.is_in else part)
                    ends.append((transfer, answer))
            for transfer, answer in reversed(ends) if backwards else ends:
                device.finish(transfer, answer)
                self.rig.bus.run()

        quiet(self.rig.bus, end)
        device.cancels = True
        self.succeed(refused, 0.0)

    def succeed(self, refused: bool, seconds: float) -> None:
        rig = self.rig
        assert rig.device.in_flight == 0
        if refused:
            rig.controller.state()
            rig.controller.resume()
            rig.bus.run()
        else:
            rig.controller = hand_over(rig.bus, seconds=seconds)
        for endpoint in ENDPOINTS:
            self.taken_back(endpoint)


def test_successors() -> None:
    play(Successors, 60, 40, derandomize=True)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_successors_for_long() -> None:
    play(Successors, 1500, 100, derandomize=False)
