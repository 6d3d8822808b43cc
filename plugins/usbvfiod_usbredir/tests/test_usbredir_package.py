"""The plugin as a user installs it: from its wheel, with usbvfiod's and nothing else, in a fresh environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.venv import call, environment, usable_plugins

pytestmark = pytest.mark.timeout(300)


def test_it_works_as_the_only_plugin(tmp_path: Path) -> None:
    programs = environment(tmp_path, Path(__file__).resolve().parents[1], kit=False)
    assert set(usable_plugins(programs)) == {"virtual", "usbredir"}
    call(programs / "python", "-c", "import usbvfiod_usbredir.backend, usbvfiod_usbredir.device", cwd=tmp_path)
