"""README's ways of installing, as far as they go without a network; the others are in test_packages.py.

What lies beside the program, and what it advises, fits the way.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.e2e import venv
from tests.e2e.readme import install_commands
from tests.e2e.venv import ROOT
from usbvfiod_core.testing.limits import scaled

pytestmark = pytest.mark.timeout(400)

PROJECTS = [ROOT, *sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))]
PLUGINS = {"virtual", "usbfs", "libusb", "usbip", "usbredir", "mass-storage-quirks", "usbguard-rules", "web"}


def shell(command: str, *, expect: int = 0, **more: str) -> str:
    """Run a line in the source tree, without a package index; what it prints."""
    result = subprocess.run(
        ["bash", "-c", command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=venv.variables() | more,
        timeout=scaled(300),
    )
    assert result.returncode == expect, result.stdout
    return result.stdout


def project(directory: Path) -> dict[str, str]:
    """Name and version of a distribution."""
    table = tomllib.loads((directory / "pyproject.toml").read_text())["project"]
    return {"name": table["name"], "version": table["version"]}


def check_beside(prefix: Path, root: Path = Path("/")) -> None:
    """What lies beside the program names a program that is there; and where systemd looks there are all units."""
    units = sorted((root / prefix.relative_to("/") / "lib/systemd/system").glob("usbvfiod*"))
    contributed = (path.name for path in (ROOT / "contrib/systemd").iterdir())
    wanted = {name for name in contributed if name.endswith((".service", ".socket", ".timer"))}
    assert {unit.name for unit in units} == (wanted if str(prefix) in ("/usr", "/usr/local") else set())
    of_users = sorted((root / prefix.relative_to("/") / "share/systemd/user").glob("usbvfiod*"))
    has_page = str(prefix) == "/usr/local" or prefix.name == ".local"
    assert [unit.name for unit in of_users] == ["usbvfiod-web.service"] * has_page
    units += of_users
    started = [match[1] for unit in units for match in re.finditer(r"^ExecStart=(\S+)", unit.read_text(), re.M)]
    description = root / prefix.relative_to("/") / "share/vfio-user/50-usbvfiod.json"
    for program in (*started, json.loads(description.read_text())["binary"]):
        assert program.removesuffix("-opener") == str(prefix / "bin/usbvfiod")
        assert os.access(root / program.lstrip("/"), os.X_OK)


def test_make_install_and_uninstall(tmp_path: Path) -> None:
    """As README has it; root's default would be another directory."""
    prefix = tmp_path / ".local"
    for line in install_commands("make install"):
        if not line.startswith("sudo apt "):
            output = shell(line, HOME=str(tmp_path), PREFIX=str(prefix))
    rows = [line.split() for line in output.splitlines()]
    assert {row[0] for row in rows if "used" in row} == PLUGINS
    check_beside(prefix)
    page = (prefix / "share/man/man1/usbvfiod-attach.1").read_text()
    assert page.startswith('.TH "USBVFIOD\\-ATTACH"')
    for completion in ("bash-completion/completions/usbvfiod", "zsh/site-functions/_usbvfiod"):
        assert "_USBVFIOD_COMPLETE" in (prefix / "share" / completion).read_text()
    shell("make uninstall", HOME=str(tmp_path), PREFIX=str(prefix))
    assert [path for path in prefix.rglob("*") if not path.is_dir()] == []


@pytest.mark.parametrize(("prefix", "units"), [("/usr/", True), ("/usr/local", True), ("/opt/usb", False)])
def test_units_are_installed_where_systemd_looks(tmp_path: Path, prefix: str, units: bool) -> None:
    program = tmp_path / prefix.strip("/") / "bin/usbvfiod"
    program.parent.mkdir(parents=True)
    for name in ("usbvfiod", "usbvfiod-opener"):
        (program.parent / name).symlink_to("/bin/true")  # which makes empty pages
    said = shell(shlex.join(["contrib/install-files", str(program), str(tmp_path), prefix]))
    assert ("no units of the system" in said) != units
    check_beside(Path(prefix), tmp_path)
    shell(shlex.join(["contrib/install-files", "remove", str(tmp_path), prefix]))
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {program, program.with_name("usbvfiod-opener")}


def test_the_demonstrations_environment_has_no_tools_and_its_advice_works(tmp_path: Path) -> None:
    """What a message says brings a plugin does bring it, copied as it is."""
    directory = tmp_path / "an environment"
    shell(f".ci/environment {shlex.quote(str(directory))} run")
    python, program = (shlex.quote(str(directory / "bin" / name)) for name in ("python", "usbvfiod"))
    installed = {each["name"] for each in json.loads(shell(f"{python} -m pip list --format json"))}
    assert {"usbvfiod", "usbvfiod-usbfs", "click", "pluggy"} <= installed
    assert not installed & {"mypy", "ruff", "pytest", "hypothesis"}
    shell(f"{python} -m pip uninstall --yes --quiet usbvfiod-usbfs")
    said = shell(f"{program} --socket-path {tmp_path}/usb.sock --device usbfs:1-1", expect=2)
    advice = re.search(r"there is no backend 'usbfs'; `(.*)` brings it", said)
    assert advice is not None, said
    shell(advice[1])
    assert "usbfs" in shell(f"{program} --plugin usbfs plugins")


def test_debian_packages_are_of_the_same_version() -> None:
    versions = {each["name"]: each["version"] for each in map(project, PROJECTS)}
    changelog = re.match(r"usbvfiod \((\S+)\) ", (ROOT / "debian/changelog").read_text())
    assert changelog is not None
    assert set(versions.values()) == {changelog[1]}
    packages = re.findall(r"^Package: (\S+)$", (ROOT / "debian/control").read_text(), re.M)
    assert sorted(packages) == sorted(versions)
    rules = re.search(r"^PLUGINS := (.*)$", (ROOT / "debian/rules").read_text(), re.M)
    assert rules is not None
    assert {f"usbvfiod-{name}" for name in rules[1].split()} == set(versions) - {"usbvfiod"}


def test_debian_packages_need_what_the_distributions_need() -> None:
    """Where dh_python3 does not know a requirement's package it is told, or the requirement is written there."""
    told = {line.split()[0] for line in (ROOT / "debian/py3dist-overrides").read_text().splitlines()}
    needed = set()
    for directory in PROJECTS:
        table = tomllib.loads((directory / "pyproject.toml").read_text())
        needed |= {re.split(r"[<>=~!;\[ ]", each)[0] for each in table["project"]["dependencies"]}
    assert told == needed


def test_readme_installs_packages_that_are_built() -> None:
    packages = re.findall(r"^Package: (\S+)$", (ROOT / "debian/control").read_text(), re.M)
    named = re.findall(r"\./dist/(\S+?)_\*\.deb", "\n".join(install_commands("make deb")))
    assert named
    assert set(named) <= set(packages)
