"""Which modules are compiled, that a compiled run is one, and what sources of compiled modules may not have in them."""

from __future__ import annotations

import ast
import importlib
import os
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from hatch_build import modules
from usbvfiod_core.compiled import BUILD
from usbvfiod_core.usb.transfer import Transfer, TransferStatus, TransferType
from usbvfiod_core.version import version_line

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FILES = modules(ROOT, PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"]["custom"]["modules"])


def test_all_of_them_are_compiled_or_none() -> None:
    """An interpreter that a shared object is not for takes the source in silence."""
    suffix = ".py" if BUILD == "pure" else ".so"
    for name in FILES:
        module = importlib.import_module(name.removesuffix(".py").replace("/", "."))
        assert str(module.__file__).endswith(suffix), module.__file__


def test_the_run_is_what_it_is_meant_to_be() -> None:
    assert os.environ.get("USBVFIOD_TESTED_BUILD", "pure") == BUILD
    assert version_line().endswith(f", {BUILD})")


def test_a_pattern_that_means_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"there is no usbvfiod_core/xhci/gone\.py"):
        modules(ROOT, ["usbvfiod_core/xhci/*.py", "usbvfiod_core/xhci/gone.py"])


class Marked(Transfer):
    """As interceptors and the test kit have them."""

    ended: TransferStatus | None = None

    def complete(self, status: TransferStatus, actual: int | None = None) -> None:
        self.ended = status
        super().complete(status, actual)


def test_plugins_have_subclasses_of_transfer() -> None:
    done: list[Transfer] = []
    transfer = Marked(0x81, TransferType.BULK, [memoryview(bytearray(8))], 8, done.append)
    transfer.complete(TransferStatus.COMPLETED, transfer.write(b"data"))
    assert done == [transfer]
    assert (transfer.ended, transfer.actual, transfer.is_in) == (TransferStatus.COMPLETED, 4, True)


# -- sources ---------------------------------------------------------------------------------------------------------


def mistakes(tree: ast.Module) -> Iterator[str]:
    """What mypyc refuses, or takes and does something else with."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (f"import {each.name}" for each in node.names if each.name in ("weakref", "pluggy"))
        elif isinstance(node, ast.ImportFrom):
            if node.module in ("weakref", "pluggy"):
                yield f"from {node.module}"
            yield from (each.name for each in node.names if each.name == "runtime_checkable")
        elif isinstance(node, ast.FunctionDef):
            # The name has the type of the first clause, and anything else that is caught raises a TypeError.
            names = Counter(each.name for each in ast.walk(node) if isinstance(each, ast.ExceptHandler) and each.name)
            yield from (f"{node.name}: two except clauses bind {name}" for name, times in names.items() if times > 1)
            if any(isinstance(each, ast.ClassDef) for each in ast.walk(node)):
                yield f"{node.name}: a class inside a function"
    for statement in tree.body:
        # A constant that is not Final is looked up in a dictionary at each use.
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant | ast.BinOp):
            yield from (f"{ast.unparse(each)} is not Final" for each in statement.targets)


@pytest.mark.parametrize("name", FILES)
def test_sources_of_compiled_modules(name: str) -> None:
    assert list(mistakes(ast.parse((ROOT / name).read_text()))) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import weakref", "import weakref"),
        ("from typing import Protocol, runtime_checkable", "runtime_checkable"),
        (
            "def f():\n try: g()\n except KeyError as e: h(e)\n except OSError as e: h(e)",
            "f: two except clauses bind e",
        ),
        ("def f():\n class A: pass", "f: a class inside a function"),
        ("LIMIT = 1 << 5", "LIMIT is not Final"),
    ],
)
def test_a_mistake_is_found(source: str, found: str) -> None:
    assert list(mistakes(ast.parse(source))) == [found]
