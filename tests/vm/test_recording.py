"""The session of README's recording, run again."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tests import recording

pytestmark = pytest.mark.vm


def test_the_recorded_session_can_be_repeated() -> None:
    with tempfile.TemporaryDirectory(prefix="usbvfiod-") as name:  # short enough for sockets
        printed = recording.record(Path(name))
    assert [step for step, _ in printed] == list(recording.STEPS)
    assert recording.render(printed).startswith("<svg ")
