"""Building the tree and the initramfs, as far as it can be seen without a network and without booting."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.vm import initramfs, prepare, tree

PREPARE = Path(prepare.__file__)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache directory of our own."""
    monkeypatch.setenv("USBVFIOD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vm"


def install(directory: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a program of this name first on the path."""
    directory.mkdir(exist_ok=True)
    program = directory / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")


def pretend_built(recipe_of: Path) -> None:
    recipe_of.mkdir(parents=True)
    (recipe_of / tree.STAMP).write_text(json.dumps({"packages": {"qemu-system-x86": "1:11.1"}}))


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("USBVFIOD_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert tree.cache_directory() == Path("/xdg/usbvfiod/vm")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/user")
    assert tree.cache_directory() == Path("/home/user/.cache/usbvfiod/vm")
    monkeypatch.setenv("USBVFIOD_CACHE", "/elsewhere")
    assert tree.cache_directory() == Path("/elsewhere/vm")


def test_a_missing_tree_is_said_to_be_missing(cache: Path) -> None:
    assert "make vm" in str(tree.why_unavailable())


def test_a_complete_tree_is_used_as_it_is(cache: Path) -> None:
    pretend_built(tree.tree_directory())
    assert tree.why_unavailable() is None
    assert tree.ensure() == tree.tree_directory()
    assert tree.package_versions(tree.ensure()) == {"qemu-system-x86": "1:11.1"}


def test_a_damaged_stamp_is_named(cache: Path) -> None:
    pretend_built(tree.tree_directory())
    (tree.tree_directory() / tree.STAMP).write_text("{")
    assert "damaged" in str(tree.why_unavailable())


def test_another_recipe_is_another_tree(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_built(tree.tree_directory())
    monkeypatch.setattr(tree, "PACKAGES", (*tree.PACKAGES, "hello"))
    assert tree.why_unavailable() is not None


def test_an_ordinary_user_is_told_to_be_root(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(tree.VmError, match="needs root"):
        tree.ensure()


def test_too_small_a_disk_is_noticed_before_anything_is_fetched(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(tree, "NEEDED_BYTES", 10**18)
    with pytest.raises(tree.VmError, match=r"only .* GB are free"):
        tree.ensure()


def test_a_failed_build_leaves_its_reason_and_nothing_else(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = (
        'mkdir -p "$3/etc"; echo "I: Retrieving InRelease"; echo "E: Failed getting release file http://x" >&2; exit 1'
    )
    install(tmp_path / "bin", "debootstrap", script, monkeypatch)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(tree.VmError, match="debootstrap failed: E: Failed getting release file http://x"):
        tree.ensure()
    assert sorted(path.name for path in cache.iterdir()) == ["build.log", "lock"]
    assert tree.why_unavailable() is not None


def test_a_half_built_tree_is_never_used(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a killed build has left is removed by the next one."""
    (cache / f"{tree.tree_directory().name}.building" / "usr").mkdir(parents=True)
    assert tree.why_unavailable() is not None
    install(tmp_path / "bin", "debootstrap", "exit 1", monkeypatch)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(tree.VmError):
        tree.ensure()
    assert sorted(path.name for path in cache.iterdir()) == ["build.log", "lock"]


def test_a_second_build_waits_for_the_first(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    cache.mkdir(parents=True)
    with open(cache / "lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        result: list[Path] = []
        second = threading.Thread(target=lambda: result.append(tree.ensure()))
        second.start()
        second.join(0.3)
        assert second.is_alive()
        pretend_built(tree.tree_directory())
    second.join(10)
    assert result == [tree.tree_directory()]
    assert "waiting for another build" in capsys.readouterr().err


def test_the_script_says_on_one_line_what_is_wrong(cache: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text("not a directory")
    result = subprocess.run([sys.executable, str(PREPARE)], capture_output=True, text=True, cwd="/")
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("vm: ")


def test_the_mirror_is_the_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def targets(*lines: str) -> None:
        text = "\n".join(lines)
        install(tmp_path / "bin", "apt-get", f"cat <<'END'\n{text}\nEND", monkeypatch)

    targets(
        "http://mirror.example/debian-security|Debian-Security|bookworm-security",
        "http://mirror.example/debian|Debian|bookworm",
    )
    assert tree.system_mirror() == "http://mirror.example/debian"
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: {"ID": "debian", "VERSION_CODENAME": "bookworm"})
    targets("http://mirror.example/debian-security||bookworm-security", "https://mirror.example/debian||bookworm")
    assert tree.system_mirror() == "https://mirror.example/debian"
    targets("mirror+file:/etc/apt/mirrors.list|Debian|bookworm")
    assert tree.system_mirror() is None
    targets("http://archive.example/ubuntu|Ubuntu|noble")
    assert tree.system_mirror() is None


@pytest.mark.vm
def test_the_archive_is_what_cpio_understands(tmp_path: Path) -> None:
    entries: list[initramfs.Entry] = [
        ("directory", stat.S_IFDIR | 0o755, b"", (0, 0)),
        ("directory/file", stat.S_IFREG | 0o640, b"contents", (0, 0)),
        ("directory/empty", stat.S_IFREG | 0o600, b"", (0, 0)),
        ("link", stat.S_IFLNK | 0o777, b"directory/file", (0, 0)),
    ]
    unpack = [str(tree.tree_directory() / initramfs.BUSYBOX), "cpio", "-i", "-d"]
    subprocess.run(unpack, input=initramfs.archive(entries), cwd=tmp_path, check=True)
    assert (tmp_path / "link").read_bytes() == b"contents"
    assert stat.S_IMODE((tmp_path / "directory/file").stat().st_mode) == 0o640
    assert (tmp_path / "directory/empty").read_bytes() == b""


def test_a_device_node_is_an_entry_with_its_numbers() -> None:
    header = initramfs.archive([("dev/console", stat.S_IFCHR | 0o600, b"", (5, 1))])[:110]
    fields = [int(header[6 + 8 * index : 14 + 8 * index], 16) for index in range(13)]
    assert fields[1] == 0o020600
    assert fields[9:11] == [5, 1]
