"""The Python packages of the lab: what the project and its plugins depend on, for the tree's own Python.

pip installs them into a directory beside the tree, named after what is asked for; the lab sees it at /site. The project
and the plugins themselves are not installed: the lab reads them in the checkout, and `metadata` tells it their entry
points, as an editable installation would.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from tests.vm import tree as debian

CHECKOUT = Path(__file__).resolve().parents[2]
OWN = re.compile(r"usbvfiod(?![a-z0-9])|usbvfiod[-_]", re.IGNORECASE)
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux2014_x86_64")
KEPT = 3
COMPILED = "compiled"  # in the directory: the last thing that is made


def projects() -> list[tuple[Path, dict[str, Any]]]:
    """The directories of the project and of its plugins that have their own pyproject.toml, with what is in it."""
    files = [CHECKOUT / "pyproject.toml", *sorted(CHECKOUT.glob("plugins/*/pyproject.toml"))]
    return [(file.parent, tomllib.loads(file.read_text())) for file in files]


def requirements() -> list[str]:
    """What pip is asked for: dependencies of running and testing, without the distributions of the checkout."""
    wanted: set[str] = set()
    for _, content in projects():
        project = content["project"]
        wanted.update(project.get("dependencies", ()))
        for extra in ("test", "vm"):
            wanted.update(project.get("optional-dependencies", {}).get(extra, ()))
    return sorted(requirement for requirement in wanted if not OWN.match(requirement))


def ensure(tree: Path) -> Path:
    """Return the directory with the packages, making it first if it is missing: some seconds, and a package index."""
    version = python_version(tree)
    digest = hashlib.sha256(json.dumps([1, version, PLATFORMS, requirements()]).encode()).hexdigest()[:12]
    cache = tree.parent
    site = cache / f"site-{digest}"
    if (site / COMPILED).exists():
        return site
    try:
        with debian.build_lock(cache):
            if not (site / COMPILED).exists():
                shutil.rmtree(site, ignore_errors=True)
                _install(tree, site, version)
                others = [path for path in cache.glob("site-*") if path != site]
                others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
                for old in others[KEPT - 1 :]:
                    shutil.rmtree(old)
    except PermissionError as error:
        raise debian.VmError(f"cannot write the lab's packages: {error}; run `make vm` as the cache's owner") from None
    return site


def python_version(tree: Path) -> str:
    """The tree's Python as "3.13"."""
    versions = [path.name.removeprefix("python") for path in (tree / "usr/lib").glob("python3.*")]
    if len(versions) != 1:
        raise debian.VmError(f"{tree} holds {len(versions)} Pythons where one is expected; remove it, run `make vm`")
    return versions[0]


def metadata(directory: Path) -> list[Path]:
    """Write the metadata of the checkout's distributions into `directory` (entry points, names, versions).

    Returns the directories of the checkout which their packages are imported from.
    """
    found = []
    for where, content in projects():
        project = content["project"]
        name = re.sub(r"[-_.]+", "_", project["name"]).lower()
        information = directory / f"{name}-{project['version']}.dist-info"
        information.mkdir(parents=True)
        header = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
        needs = "".join(f"Requires-Dist: {requirement}\n" for requirement in project.get("dependencies", ()))
        (information / "METADATA").write_text(header + needs)
        groups = dict(project.get("entry-points", {}))
        groups["console_scripts"] = project.get("scripts", {})
        lines = []
        for group, entries in groups.items():
            lines += [f"[{group}]", *(f"{entry} = {target}" for entry, target in entries.items()), ""]
        (information / "entry_points.txt").write_text("\n".join(lines))
        found.append(where)
    return found


def _install(tree: Path, site: Path, version: str) -> None:
    """Run pip, then compile everything with the tree's Python: an emulated processor would do it at every boot."""
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install", "--target", str(site)]
    command += ["--python-version", version, "--only-binary", ":all:", "--no-compile"]
    command += [word for platform in PLATFORMS for word in ("--platform", platform)]
    result = subprocess.run([*command, *requirements()], capture_output=True, text=True)
    if result.returncode != 0:
        shutil.rmtree(site, ignore_errors=True)
        complaints = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
        reason = complaints[0] if complaints else f"pip's exit status {result.returncode}"
        raise debian.VmError(f"the lab's Python packages cannot be installed: {reason}")
    compiler = [*debian.program_argv(tree, f"usr/bin/python{version}"), "-m", "compileall", "-q"]
    environment = {**os.environ, "PYTHONHOME": str(tree / "usr"), "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([*compiler, "-s", str(site), "-p", "/site", str(site)], env=environment, check=True)
    (site / COMPILED).touch()
