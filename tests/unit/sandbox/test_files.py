"""Which files the configuration stands for, and what is said of others."""

from __future__ import annotations

import os
from pathlib import Path

from usbvfiod_core.sandbox.files import Opened, code, of_files, rights
from usbvfiod_core.sandbox.landlock import CREATE, READ, READ_FILE, WRITE, WRITE_FILE
from usbvfiod_core.sandbox.needs import Needs


def test_a_file_that_is_there_is_all_that_is_opened(tmp_path: Path) -> None:
    image, other = tmp_path / "a.img", tmp_path / "b.img"
    for path in (image, other):
        path.write_bytes(b"x")
    needs = of_files([image])
    assert needs == Needs(write=frozenset({image}))
    assert Opened(needs).closed_to([image, other]) == [other]


def test_a_file_that_is_to_be_made_stands_for_its_directory(tmp_path: Path) -> None:
    needs = of_files([tmp_path / "new.wav"])
    assert needs.write == needs.create == {tmp_path}
    assert Opened(needs).closed_to([tmp_path / "new.wav", tmp_path / "more.wav", Path("/srv/other")]) == [
        Path("/srv/other")
    ]


def test_nobody_gets_all_devices_for_one_that_is_not_there() -> None:
    assert of_files([Path("/dev/no-such-disk"), Path("/etc/no-such-file"), Path("/no-such-file")]) == Needs()


def test_a_link_may_be_made_anew(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "links" / "serial"
    link.parent.mkdir()
    target.touch()
    link.symlink_to(target)
    assert of_files([link]) == Needs(write=frozenset({target}), create=frozenset({link.parent}))


def test_a_file_that_was_replaced_is_another_one(tmp_path: Path) -> None:
    image, replaced = tmp_path / "a.img", tmp_path / "new"
    image.write_bytes(b"old")
    opened = Opened(of_files([image]))
    replaced.write_bytes(b"new")
    os.replace(replaced, image)
    assert opened.closed_to([image]) == [image]


def test_a_directory_is_open_with_all_below_it_and_nothing_beside_it(tmp_path: Path) -> None:
    inside, beside = tmp_path / "images", tmp_path / "images2"
    for directory in (inside, beside):
        directory.mkdir()
    (inside / "out").symlink_to(beside)
    opened = Opened(Needs(write=frozenset({inside})))
    assert opened.closed_to([inside / "x" / "y", inside / ".." / "images" / "z"]) == []
    assert opened.closed_to([beside / "x", inside / "out" / "x", inside / ".." / "x"]) == [
        beside / "x",
        inside / "out" / "x",
        inside / ".." / "x",
    ]


def test_rights_add_up_and_code_is_only_read(tmp_path: Path) -> None:
    made = rights(Needs(read=frozenset({tmp_path}), create=frozenset({tmp_path})))
    assert made[tmp_path] == READ | CREATE
    assert made[Path("/dev/null")] == READ | WRITE
    for path in code() - {Path("/dev/null")}:
        assert not made[path] & WRITE_FILE
        assert made[path] & READ_FILE
    assert not {Path("/"), Path("/etc"), Path("/home"), Path("/root"), Path("/tmp"), Path("/proc")} & made.keys()
