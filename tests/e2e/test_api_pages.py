"""The pages of the API are made from the docstrings, without warnings, and need nothing from the network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.api_pages import BESIDE, as_lists
from tests.public_api import MODULES, surface
from usbvfiod_core.testing.limits import scaled

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Each page by its module, as `make docs` writes them, on a machine without a proxy or an index to ask."""
    directory = tmp_path_factory.mktemp("api")
    command = (sys.executable, "-W", "error", "-m", "tests.api_pages", directory)
    environment = {**os.environ, "https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=scaled(200))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return {
        ".".join(path.relative_to(directory).with_suffix("").parts): path.read_text()
        for path in directory.rglob("*.html")
    }


def test_every_class_and_function_has_its_place(pages: dict[str, str]) -> None:
    assert set(pages) == {*MODULES, *BESIDE, "index"}
    for line in surface().splitlines():
        if line.startswith(" ") or not ("(" in line or line.startswith("class ")):
            continue  # an attribute of a class, or a constant
        name = line.removeprefix("class ").partition("(")[0]
        module = max((each for each in MODULES if name.startswith(f"{each}.")), key=len)
        assert f'id="{name.removeprefix(module + ".")}"' in pages[module], name


def test_docstrings_are_on_the_pages(pages: dict[str, str]) -> None:
    text = re.sub(r"<[^>]*>", "", pages["usbvfiod_core.virtual.device"])
    assert "Answer a class or vendor request" in re.sub(r"\s+", " ", text)
    listed = r'<li><code><a href="#UsbServer.loop">loop</a></code>: what devices and backends take'
    assert re.search(listed, pages["usbvfiod_core.embedding"])


def test_nothing_is_loaded_from_elsewhere(pages: dict[str, str]) -> None:
    for name, page in pages.items():
        loaded = re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=[\"']?(https?:|//)[^>]*>", page)
        assert not loaded, name


def test_columns_become_lists() -> None:
    table = "path, fd    where it is\n            and more\n`one`, `two`  names"
    text = f"What it is.\n\n{table}\nThe end.\n\n    code  as it is"
    assert as_lists(text) == (
        "What it is.\n\n- `path, fd`: where it is\n  and more\n- `one`, `two`: names\n\nThe end.\n\n    code  as it is"
    )
