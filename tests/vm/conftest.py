"""Fixtures of the VM tests. Without the tree (`make vm`) they are skipped with the reason; with USBVFIOD_REQUIRE_VM=1
in the environment, as in CI, that is a failure instead."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.vm import guest_usb
from tests.vm.beside import BesideLab
from tests.vm.guest import Guest, GuestError, GuestFactory
from tests.vm.lab import Lab
from tests.vm.prepare import why_unavailable

TIMEOUT = 480  # seconds for one test with its fixtures; several boots of up to a minute each on a busy machine

_guests: list[Guest] = []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A guest's boot alone may take what other tests have in all."""
    if config.pluginmanager.hasplugin("timeout"):
        for item in items:
            if item.get_closest_marker("vm") and not item.get_closest_marker("timeout"):
                item.add_marker(pytest.mark.timeout(TIMEOUT))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Stop before the fixtures where there is nothing to boot."""
    if item.get_closest_marker("vm"):
        reason = why_unavailable()
        if reason and os.environ.get("USBVFIOD_REQUIRE_VM") == "1":
            pytest.fail(f"USBVFIOD_REQUIRE_VM is set, but {reason}", pytrace=False)
        if reason:
            pytest.skip(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Show what was typed into the guests and what their kernels said when a test fails."""
    report = yield
    if report.failed and item.get_closest_marker("vm"):
        for number, guest in enumerate(_guests, start=1):
            text = "\n".join("\n".join(guest.transcript).splitlines()[-120:])
            report.sections.append((f"guest {number}: shell", text))
            report.sections.append((f"guest {number}: console", guest.console_tail(60)))
    return report


def _factory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuestFactory]:
    made: list[Guest] = []

    def boot(arguments: list[str], **options: Any) -> Guest:
        guest = Guest(tmp_path_factory.mktemp("guest"), arguments, **options)
        made.append(guest)
        _guests.append(guest)
        return guest

    yield boot
    for guest in made:
        guest.kill()
        _guests.remove(guest)


@pytest.fixture
def guest_factory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuestFactory]:
    """Boot guests that live until the end of the test: `guest_factory(arguments, **options of Guest)`."""
    yield from _factory(tmp_path_factory)


@pytest.fixture(scope="module")
def module_guest_factory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuestFactory]:
    """As `guest_factory`, for guests that a module's tests share."""
    yield from _factory(tmp_path_factory)


class SharedLab:
    """The lab of a test session: booted when first asked for, and anew after it was broken."""

    def __init__(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        self._tmp_path_factory = tmp_path_factory
        self._lab: Lab | None = None

    def get(self) -> Lab:
        """The lab, which answers."""
        if self._lab is not None:
            try:
                self._lab.run("true")
            except GuestError:
                self.end()
        if self._lab is None:
            self._lab = Lab(self._tmp_path_factory.mktemp("lab"))
            _guests.append(self._lab)
        return self._lab

    def end(self) -> None:
        """End the lab, if there is one."""
        if self._lab is not None:
            self._lab.kill()
            _guests.remove(self._lab)
            self._lab = None


@pytest.fixture(scope="session")
def shared_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedLab]:
    """One lab for all tests that use it: its boot is what is expensive about it."""
    shared = SharedLab(tmp_path_factory)
    yield shared
    shared.end()


@pytest.fixture
def lab(shared_lab: SharedLab) -> Lab:
    """The lab. Whoever uses it leaves no devices behind."""
    return shared_lab.get()


@pytest.fixture(scope="module")
def beside_lab(shared_lab: SharedLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BesideLab]:
    """A guest beside the lab, which a module's tests share, and the server in the lab that its controller is of."""
    with BesideLab(shared_lab.get(), tmp_path_factory.mktemp("beside")) as beside:
        _guests.append(beside.guest)
        yield beside
        _guests.remove(beside.guest)


@pytest.fixture
def no_complaints(beside_lab: BesideLab) -> Iterator[list[str]]:
    """The guest's kernel says nothing of its USB that a test does not expect: the test adds parts of lines."""
    beside_lab.guest.run("dmesg -c > /dev/null")
    # The last is said when a device is pulled out while the guest's kernel suspends it: btusb and uvcvideo let it two
    # seconds after they were used, which is about when a test detaches it.
    expected = ["USB disconnect", "Power-on or device reset occurred", "USB core suspending port"]
    yield expected
    said = guest_usb.usb_complaints(beside_lab.guest)
    assert [line for line in said if not any(part in line for part in expected)] == []


@pytest.fixture(scope="session")
def random_image(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Make an image file of that many MiB of random bytes; each call makes a new one."""

    def make(mebibytes: int) -> Path:
        path = tmp_path_factory.mktemp("image") / f"{mebibytes}M.img"
        path.write_bytes(os.urandom(mebibytes << 20))
        return path

    return make
