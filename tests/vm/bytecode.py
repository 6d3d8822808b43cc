"""What the tree's Python makes of the checkout's modules, and pytest of its tests: compiled here, before a guest needs
it. There an emulated processor does that, for seconds with each file of tests, and after each boot anew.

    directory = bytecode.compiled(tree, site)

is laid over the checkout in a guest. As a script, it runs in the tree's Python, and compiles what it is told on stdin.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import py_compile
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PATTERNS = (
    "conftest.py",
    "usbvfiod_core/**/*.py",
    "plugins/*/usbvfiod_*/**/*.py",
    "plugins/*/tests/lab/*.py",
    "plugins/*/tests/unit/*.py",
    "tests/*.py",
    "tests/classes/**/*.py",
    "tests/lab/*.py",
    "tests/vm/**/*.py",
)
"""What a guest may import. What is left out is compiled there."""
REWRITTEN = ("conftest.py", "test_*.py", "fixtures.py")
"""Modules in which pytest looks after `assert`: its own, and the one that is a plugin of it."""


@functools.cache
def compiled(tree: Path, site: Path, checkout: Path, inside: Path) -> Path:
    """A directory with __pycache__ directories for the checkout, which a guest has at `inside`. It lives as long as
    this process. A file that is changed meanwhile is not the one that was compiled, and Python sees that."""
    from tests.vm import tree as debian
    from tests.vm.lab_packages import python_version

    directory = tempfile.TemporaryDirectory(prefix="usbvfiod-bytecode-")
    _kept.append(directory)
    files = sorted({path.relative_to(checkout) for pattern in PATTERNS for path in checkout.glob(pattern)})
    command = [*debian.program_argv(tree, f"usr/bin/python{python_version(tree)}"), "-P", __file__]
    environment = {**os.environ, "PYTHONHOME": str(tree / "usr"), "PYTHONPATH": str(site)}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    subprocess.run(
        [*command, checkout, directory.name, inside],
        input="\n".join(map(str, files)),
        env=environment,
        check=True,
        text=True,
    )
    os.chmod(directory.name, 0o755)
    return Path(directory.name)


_kept: list[tempfile.TemporaryDirectory[str]] = []


def compile_all(checkout: Path, directory: Path, inside: Path, files: list[Path]) -> None:
    """Compile the files, which are called as they are inside; one with an error in it is left to whoever imports it."""
    for file in files:
        cache = directory / file.parent / "__pycache__"
        cache.mkdir(parents=True, exist_ok=True)
        plain = cache / f"{file.stem}.{sys.implementation.cache_tag}.pyc"
        with contextlib.suppress(py_compile.PyCompileError):
            py_compile.compile(
                str(checkout / file),
                str(plain),
                str(inside / file),
                doraise=True,
                invalidation_mode=py_compile.PycInvalidationMode.TIMESTAMP,
            )
            if any(file.match(pattern) for pattern in REWRITTEN):
                _rewrite(checkout / file, cache)


def _rewrite(source: Path, cache: Path) -> None:
    """As pytest does it when it imports the file; if it has other names for that, it does it when it does."""
    rewrite: Any = importlib.import_module("_pytest.assertion.rewrite")
    with contextlib.suppress(AttributeError, TypeError), open(cache / f"{source.stem}{rewrite.PYC_TAIL}", "wb") as file:
        rewrite._write_pyc_fp(file, *rewrite._rewrite_test(source, None))


if __name__ == "__main__":
    checkout, directory, inside = map(Path, sys.argv[1:])
    compile_all(checkout, directory, inside, [Path(line) for line in sys.stdin.read().splitlines()])
