"""For all tests: which are collected here, in which order and beside which, how long they may take, that they leave
logging as they found it, and that none hides an exception that the code logs.

Tests in directories named `lab` need the lab (tests/vm/lab.py): Linux with USB devices that may be broken. Elsewhere
they are not even collected; tests/vm/test_lab.py runs them there, as part of the whole suite.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from usbvfiod_core.testing.limits import SCALE, scaled

# Tests of a plugin that is installed elsewhere have this file too, and the project's packages from there.
sys.path.append(str(Path(__file__).parent))

from tests.heard import Heard, told

IN_LAB = "usbvfiod.lab" in Path("/proc/cmdline").read_text().split()


def pytest_addoption(parser: pytest.Parser) -> None:
    """For whoever runs long tests by hand."""
    parser.addoption("--rounds", type=int, default=sys.maxsize, help="of tests that repeat for long, so many at most")


@pytest.fixture(scope="session")
def most_rounds(pytestconfig: pytest.Config) -> int:
    """How often a test repeats at most."""
    rounds: int = pytestconfig.getoption("rounds")
    return rounds


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave the directories out where this is not the lab."""
    return True if collection_path.name == "lab" and collection_path.is_dir() and not IN_LAB else None


def pytest_configure() -> None:
    """A machine that is slow says nothing about what Hypothesis found. Servers end where their sandbox would refuse a
    system call. Programs heed SIGINT, also where the suite is a job in the background, which ignores it and has
    everything ignore it that it starts."""
    os.environ.setdefault("USBVFIOD_SANDBOX", "kill")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not IN_LAB:  # where it takes a quarter of a minute to import, and no test uses it
        from hypothesis import HealthCheck, settings

        settings.register_profile("usbvfiod", deadline=None, suppress_health_check=[HealthCheck.too_slow])
        settings.load_profile("usbvfiod")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give whole modules to the processes that share the suite (`-n`), as a module's tests share fixtures; and one by
    one the files of the lab, of which each process has its own. Modules keep their order."""
    from xdist.scheduler import LoadScopeScheduling

    class ByModule(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            module, _, test = nodeid.partition("::")
            return nodeid if test.startswith("test_inside") else module

    config.option.loadscopereorder = False
    return ByModule(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Scale the limit of each test, its own or that of all; the long tests go first, and none is left for the end."""
    items.sort(key=lambda item: item.get_closest_marker("vm") is None)
    if SCALE == 1 or not config.pluginmanager.hasplugin("timeout"):
        return
    everybodys = float(config.getini("timeout") or 0)
    for item in items:
        own = item.get_closest_marker("timeout")
        seconds = everybodys if own is None else float(own.args[0])
        item.add_marker(pytest.mark.timeout(scaled(seconds)), append=False)


@pytest.fixture(autouse=True, scope="session")
def control_sockets_of_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Servers of tests have their control sockets in a directory of their own, and commands look there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("USBVFIOD_CONTROL", str(tmp_path_factory.mktemp("control")))
        yield


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """A command that is run in the test's own process sets up logging; the next test finds it as this one did."""
    root = logging.getLogger()
    handlers, levels = root.handlers[:], {logger: logger.level for logger in loggers()}
    yield
    root.handlers[:] = handlers
    for logger in loggers():
        if logger.level != (level := levels.get(logger, logging.NOTSET)):
            logger.setLevel(level)


def loggers() -> list[logging.Logger]:
    """All that there are."""
    made = logging.Logger.manager.loggerDict.values()
    return [logging.getLogger(), *(logger for logger in made if isinstance(logger, logging.Logger))]


@pytest.fixture(autouse=True)
def nothing_hidden(request: pytest.FixtureRequest, logging_as_it_was: None) -> Iterator[None]:
    """A test fails if an exception was logged while it ran (see `heard.is_fault`), unless it says that it provokes it:
    `@pytest.mark.faults(PATTERN, ...)`, of which one must be found in each. What nobody has taken, pytest reports."""
    with Heard(unraisable=False) as heard:
        yield
    patterns = [pattern for marker in request.node.iter_markers("faults") for pattern in marker.args]
    unexpected = [text for text in map(told, heard.faults) if not any(re.search(each, text) for each in patterns)]
    if unexpected:
        pytest.fail("logged, and not expected by @pytest.mark.faults:\n" + "\n".join(unexpected), pytrace=False)
