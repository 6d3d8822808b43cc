"""What plugins may use does not change unnoticed."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from tests.public_api import MODULES, RECORD, surface
from usbvfiod_core import PLUGIN_API

ROOT = Path(__file__).resolve().parents[2]


def test_the_public_api_is_the_one_that_was_recorded() -> None:
    """What is gone or has changed breaks plugins and needs a new PLUGIN_API; what is added is only recorded."""
    changes = list(difflib.unified_diff(RECORD.read_text().splitlines(), surface().splitlines(), lineterm="", n=0))
    assert not changes, "\n".join(
        [
            "the plugin API has changed; if you meant that, run `python -m tests.public_api` (docs/plugins.md)",
            *changes,
        ]
    )


def test_the_document_names_every_module_of_it() -> None:
    text = (ROOT / "docs/plugins.md").read_text().partition("## What is stable")[2].partition("\n## ")[0]
    kit = (ROOT / "docs/testing.md").read_text()
    for module in MODULES:
        package, _, last = module.rpartition(".")
        if package == "usbvfiod_core.testing":
            assert f"| `{last}` |" in kit, module
        else:
            assert f"`{module}`" in text or f"`.{last}`" in text, module
    assert re.search(rf"this is version {PLUGIN_API}\b", text)
