"""A fresh Debian in which an ordinary user types commands. Needs root, debootstrap and a Debian mirror."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.e2e.venv import ROOT
from tests.vm.tree import apt_configuration, system_mirror
from usbvfiod_core.testing.limits import scaled

USER = "somebody"
HOME = Path("/home", USER)
SOURCES = HOME / "usbvfiod"
"""Where the user has the source tree."""


class Chroot:
    """A minimal Debian of a suite in `tree`, with sudo, a user who may use it, and the source tree in their home.

    Use it as a context manager.
    """

    def __init__(self, tree: Path, suite: str) -> None:
        self.tree = tree
        self.suite = suite
        mirror = system_mirror()
        self._call("debootstrap", "--variant=minbase", suite, str(tree), *([mirror] if mirror else []))
        shutil.copyfile("/etc/resolv.conf", tree / "etc/resolv.conf")
        questions = 'APT::Get::Assume-Yes "true";\n'  # the user types yes
        (tree / "etc/apt/apt.conf.d/90usbvfiod").write_text(apt_configuration(tree) + questions)
        policy = tree / "usr/sbin/policy-rc.d"  # no service is started
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)

    def __enter__(self) -> Chroot:
        try:
            self._set_up()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _set_up(self) -> None:
        # debootstrap leaves its mounts where it could make any.
        if not (self.tree / "proc/self").exists():
            self._call("mount", "-t", "proc", "proc", str(self.tree / "proc"))
        self.run("apt-get -qq update && apt-get -qq install --no-install-recommends sudo ca-certificates", "root")
        self.run(f"useradd --create-home --shell /bin/bash {USER}", "root")
        (self.tree / "etc/sudoers.d/somebody").write_text(f"{USER} ALL=(ALL) NOPASSWD: ALL\n")
        files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
        for name in filter(None, files.split("\0")):
            target = self.tree / SOURCES.relative_to("/") / name
            if (ROOT / name).is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, target)
        self.run(f"chown -R {USER}: {HOME}", "root")

    def __exit__(self, *exception: object) -> None:
        for name in ("dev/pts", "dev", "sys", "proc"):
            if os.path.ismount(self.tree / name):
                self._call("umount", "-l", str(self.tree / name))

    def run(self, command: str, user: str = USER) -> str:
        """Run a line in a login shell of the user, in the source tree if there is one, and return what it prints.

        It must not fail.
        """
        names = [name for name in os.environ if name.startswith("PIP_") and name != "PIP_FIND_LINKS"]
        for name in names:
            self._give(os.environ[name])
        script = f"cd {SOURCES} 2>/dev/null; set -e; {command}"
        variables = [f"{name}={os.environ[name]}" for name in names] + [
            "LC_ALL=C.UTF-8",
            "DEBIAN_FRONTEND=noninteractive",
        ]
        login = ["su", "-", user, "-c", f"env {' '.join(map(_quoted, variables))} bash -c {_quoted(script)}"]
        return self._call("chroot", str(self.tree), *login)

    def path(self, inside: str | Path) -> Path:
        """A path in the tree, from outside; links are the tree's."""
        return self.tree / str(inside).lstrip("/")

    def _give(self, value: str) -> None:
        """A file that a setting of pip names is needed inside too."""
        source = Path(value)
        if source.is_absolute() and source.is_file():
            self.path(value).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, self.path(value))

    @staticmethod
    def _call(*command: str) -> str:
        environment = {**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"}
        result = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment,
            timeout=scaled(1200),
        )
        assert result.returncode == 0, f"{command}\n{result.stdout[-5000:]}"
        return result.stdout


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
