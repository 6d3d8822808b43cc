"""Builds wheels with compiled modules for USBVFIOD_COMPILE=1, by mypyc from the same sources.

The modules are named in pyproject.toml, in [tool.hatch.build.targets.wheel.hooks.custom]. Without the variable, and
for an editable installation, nothing happens. With it, what cannot be compiled ends the build.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SWITCH = "USBVFIOD_COMPILE"
PACKAGE = "usbvfiod_core"
SMALLER = ["-fvisibility=hidden", "-fno-asynchronous-unwind-tables"]
"""Nobody links with the modules, whose functions call each other directly then, and no exception goes through them."""


def modules(root: Path, patterns: list[str]) -> list[str]:
    """The files that are compiled, below `root`; a pattern that begins with ! takes files out again. Raises ValueError
    for a pattern that means nothing."""
    chosen: dict[str, None] = {}
    for pattern in patterns:
        found = sorted(str(path.relative_to(root)) for path in root.glob(pattern.removeprefix("!")))
        if not found:
            raise ValueError(f"compiled modules: there is no {pattern}")
        if pattern.startswith("!"):
            for name in found:
                chosen.pop(name, None)
        else:
            chosen.update(dict.fromkeys(found))
    return list(chosen)


class CompileHook(BuildHookInterface[Any]):
    """See the module."""

    @property
    def _wanted(self) -> bool:
        return self.target_name == "wheel" and os.environ.get(SWITCH, "0") not in ("", "0")

    def dependencies(self) -> list[str]:
        """What the build needs beside hatchling."""
        return list(self.config["compiler"]) if self._wanted else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and put what comes of it into the wheel, beside the sources."""
        if version != "standard" or not self._wanted:
            return
        root = Path(self.root)
        self._place = TemporaryDirectory()
        sources, built = Path(self._place.name, "sources"), Path(self._place.name, "built")
        shutil.copytree(root / PACKAGE, sources / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
        names = modules(root, self.config["modules"])
        self.app.display_info(f"compiling {len(names)} modules: some minutes")
        subprocess.run([sys.executable, __file__, str(built), *names], cwd=sources, check=True)
        libraries = {str(path): str(path.relative_to(built)) for path in sorted(built.rglob("*.so"))}
        if len(libraries) != len(names) + 1:
            raise RuntimeError(f"{len(names)} modules were to be compiled, and {len(libraries) - 1} were")
        build_data["force_include"].update(libraries)
        build_data["pure_python"], build_data["infer_tag"] = False, True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """The wheel is written."""
        if hasattr(self, "_place"):
            self._place.cleanup()


def compile_here(built: str, names: list[str]) -> None:
    """Compile these files, whose names are relative to the working directory, into the directory `built`."""
    setuptools = import_module("setuptools")  # before mypyc, which works with what is loaded
    from mypyc.build import mypycify

    extensions = mypycify(
        ["--config-file=", "--follow-imports=silent", "--namespace-packages", "--explicit-package-bases", *names],
        opt_level="1",  # what 3 makes is no faster, and takes many times as long to compile
        debug_level="0",
        group_name=PACKAGE,
        target_dir=f"{built}.c",
    )
    for extension in extensions:
        extension.extra_compile_args += SMALLER
    arguments = ["--quiet", "build_ext", "--build-lib", built, "--build-temp", f"{built}.o"]
    setuptools.setup(name=PACKAGE, packages=[], ext_modules=extensions, script_args=arguments)


if __name__ == "__main__":
    compile_here(sys.argv[1], sys.argv[2:])
