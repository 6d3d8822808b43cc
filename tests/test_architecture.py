"""The house rules that a program can check: who may import whom, and how long a file may be."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "usbvfiod_core"
MAX_LINES = {"usbvfiod_core": 440, "plugins": 440, "tests": 500, "examples": 180}
"""About 400 is the rule; here is where a file has to be divided."""

LAYERS = {
    "errors": 0,
    "compiled": 0,
    "native": 0,
    "state": 0,
    "installation": 0,
    "installed": 0,
    "options": 0,
    "files": 0,
    "visible": 0,
    "bucket": 0,
    "keeping": 0,
    "needs": 0,
    "front": 1,
    "search_path": 0,
    "rights": 0,
    "descriptors": 0,
    "usb": 0,
    "host": 1,
    "capture": 1,
    "remote": 4,
    "sandbox": 1,
    "xhci.spec": 0,
    "pci.vfio": 0,
    "vfio_user.wire": 0,
    "backing": 0,
    "mapping": 0,
    "sigbus": 0,
    "shared_area": 0,
    "state_file": 1,
    "kept_maps": 3,
    "shared_page": 1,
    "memory": 1,
    "memory_state": 2,
    "xhci.registers": 1,
    "xhci.states": 1,
    "xhci.state": 1,
    "xhci.kept": 1,
    "pci.state": 1,
    "pci": 1,
    "xhci.ring": 2,
    "xhci.event_ring": 2,
    "xhci.interrupter": 2,
    "xhci.contexts": 2,
    "xhci.td": 2,
    "xhci.long_td": 2,
    "xhci.transfer_ring": 2,
    "xhci.report": 2,
    "xhci.shared_interrupter": 2,
    "xhci.interrupters": 2,
    "xhci.mfindex": 2,
    "xhci.remapping": 3,
    "xhci.statistics": 2,
    "xhci.complaints": 2,
    "xhci.journal": 2,
    "xhci.allowance": 2,
    "xhci.turns": 2,
    "xhci.xhc": 2,
    "xhci.engine": 3,
    "xhci.endpoint": 3,
    "xhci.isochronous": 3,
    "xhci.streams": 3,
    "xhci.revocation": 3,
    "xhci.taking_back": 3,
    "xhci.slot": 3,
    "xhci.slot_table": 3,
    "xhci.ports": 3,
    "xhci.root_hub": 3,
    "vfio_user": 3,
    "xhci.commands": 4,
    "xhci.quiescence": 4,
    "xhci.command_ring": 4,
    "xhci": 5,
    "xhci.coverage": 6,
    "xhci.coverage_registers": 6,
    "vfio_user.transport": 6,
    "serving": 7,
    "hooks": 6,
    "": 7,  # usbvfiod_core itself: the plugin API, re-exported
    "virtual": 8,  # as far from the core as anybody's plugin
    "daemon": 8,
    "embedding": 9,
    "opener": 9,
    "testing": 10,
    "cli": 11,
    "version": 8,
    "__main__": 12,
}
"""Layer of a module or package, the longest name counts. A file imports lower layers, or files of its own package that
are not in a higher one."""

DEPENDENCIES = {"pluggy", "click", "h11", "pytest"}
VOCABULARY = {"usb", "errors", "native", "options", "files", "rights", "state"}

CLIENT_OF_SERVERS = {
    "daemon.answers",
    "daemon.places",
    "daemon.report",
    "daemon.host_devices",
    "vfio_user.listener",
    "vfio_user.access",
    "visible",
}
"""What a plugin also imports that does with servers what our commands do."""

PURE = ("xhci", "pci", "usb", "vfio_user.session", "vfio_user.wire")
IMPURE = {"socket", "os", "asyncio", "threading", "pluggy", "select", "selectors", "subprocess", "signal"}
"""What the pure parts do not import: they are given memory, callables and bytes, and are tested with a bytearray."""


def modules() -> dict[str, Path]:
    """Every module of the package by its name below `usbvfiod_core`; a package is named like its directory."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


MODULES = modules()


def layer(name: str) -> int:
    """The layer of a module below `usbvfiod_core`."""
    if name == "":
        return LAYERS[""]
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        known = LAYERS.get(".".join(parts[:length]))
        if known is not None:
            return known
    raise AssertionError(f"{name} has no layer; add it to LAYERS")


def imports(path: Path, source: str | None = None, *, types: bool = False) -> set[str]:
    """The absolute names of the modules that a file imports when it runs, inside functions too; with `types` also those
    that it imports for its types only.

    `source` takes the place of the file's text.
    """
    package = ("usbvfiod_core", *path.relative_to(PACKAGE).parts[:-1])
    found = set()
    tree = ast.parse(path.read_text() if source is None else source)
    for node in ast.walk(tree) if types else walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            origin = ".".join([*base, *filter(None, [node.module])])
            for alias in node.names:
                name = f"{origin}.{alias.name}"
                found.add(name if name.removeprefix("usbvfiod_core.") in MODULES else origin)
    return found


def walk(node: ast.AST) -> Iterator[ast.AST]:
    """Every node but what is under `if TYPE_CHECKING:`."""
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        for statement in node.orelse:
            yield from walk(statement)
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from walk(child)


def own_imports(name: str, *, types: bool = False) -> set[str]:
    """The modules of the package that a module imports, below `usbvfiod_core`; `types`: for its types, too."""
    ours = {target for target in imports(MODULES[name], types=types) if target.split(".")[0] == "usbvfiod_core"}
    return {target.removeprefix("usbvfiod_core").removeprefix(".") for target in ours}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The groups of modules that import each other, directly or by way of others."""

    def reached(start: str) -> set[str]:
        found: set[str] = set()
        todo = [start]
        while todo:
            fresh = graph.get(todo.pop(), set()) - found
            found |= fresh
            todo += fresh
        return found

    behind = {name: reached(name) for name in graph}
    groups = {frozenset(other for other in behind[name] if name in behind[other]) for name in graph}
    return sorted(sorted(group) for group in groups if group)


def test_no_file_is_in_a_circle_of_imports() -> None:
    """Not even for types: what needs its user says in a Protocol what it needs of it."""
    assert circles({name: own_imports(name, types=True) for name in MODULES}) == []


def test_circles_are_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"e"}}
    assert circles(graph) == [["b", "c"], ["e"]]


@pytest.mark.parametrize("name", MODULES)
def test_no_file_imports_from_a_higher_layer_for_its_types(name: str) -> None:
    higher = [target for target in own_imports(name, types=True) if layer(target) > layer(name)]
    assert not higher, f"{name} (layer {layer(name)}) imports {', '.join(higher)}"


@pytest.mark.parametrize("name", MODULES)
def test_a_file_imports_only_lower_layers_or_its_own_package(name: str) -> None:
    package = name.split(".")[0]
    wrong = []
    for target in sorted(own_imports(name)):
        same_package = target.split(".")[0] == package != ""
        allowed = layer(target) <= layer(name) if same_package else layer(target) < layer(name)
        lowest = layer(target) == layer(name) == 0
        if not (allowed or lowest):
            wrong.append(f"{name} (layer {layer(name)}) imports {target} (layer {layer(target)})")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", [name for name in MODULES if name.split(".")[0] in VOCABULARY])
def test_the_vocabulary_imports_nothing_but_itself(name: str) -> None:
    assert {target.split(".")[0] for target in own_imports(name)} <= VOCABULARY


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith(PURE)])
def test_the_pure_parts_touch_no_operating_system(name: str) -> None:
    found = {target.split(".")[0] for target in imports(MODULES[name])} & IMPURE
    assert not found, f"{name} imports {', '.join(sorted(found))}"
    assert not any(target.startswith("logging.config") for target in imports(MODULES[name]))


def test_one_file_imports_pluggy() -> None:
    users = [name for name, path in MODULES.items() if any(t.split(".")[0] == "pluggy" for t in imports(path))]
    assert users == ["hooks.loading"]


def test_the_dependencies_are_few() -> None:
    """What an installation has to bring: what pyproject.toml says, pytest for the test kit, h11 for `--metrics`."""
    found: dict[str, set[str]] = {}
    for name, path in MODULES.items():
        for target in imports(path):
            top = target.split(".")[0]
            if top not in sys.stdlib_module_names and top != "usbvfiod_core":
                found.setdefault(top, set()).add(name.split(".")[0])
    assert set(found) <= DEPENDENCIES
    assert found["pytest"] == {"testing"}
    assert [name for name, path in MODULES.items() if "h11" in imports(path)] == [
        "daemon.metrics_client",
        "daemon.metrics_socket",
    ]


def test_only_the_command_line_and_the_registry_import_click() -> None:
    users = {name for name, path in MODULES.items() if any(t.split(".")[0] == "click" for t in imports(path))}
    assert {name for name in users if name.split(".")[0] != "cli"} == {"hooks.registry"}


@pytest.mark.parametrize(
    "path", sorted((ROOT / "plugins").glob("*/*/**/*.py")), ids=lambda path: str(path.relative_to(ROOT))
)
def test_a_plugin_uses_the_plugin_api(path: Path) -> None:
    """What plugins may import of the core; their tests may use the test kit and virtual devices as well."""
    tests = {"testing", "virtual"} if "tests" in path.relative_to(ROOT).parts else set()
    public = {*VOCABULARY, "host", "installation", "remote"} | tests
    client = CLIENT_OF_SERVERS if "usbvfiod_web" in path.relative_to(ROOT).parts else set()
    for node in walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        for name in names:
            package, _, module = name.partition(".")
            assert package != "usbvfiod_core" or not module or module in client or module.split(".")[0] in public, (
                f"{path} imports {name}"
            )


def test_a_built_in_plugin_uses_the_plugin_api() -> None:
    """`virtual` comes in as a third party does, and sees of the core what a third party sees; and it reads recordings,
    as one would with a library."""
    for name in MODULES:
        if name.split(".")[0] == "virtual":
            outside = {target.split(".")[0] for target in own_imports(name)} - {"virtual"}
            assert outside <= {"", *VOCABULARY, "host", "capture"}, name


@pytest.mark.parametrize(
    "path",
    [path for directory in MAX_LINES for path in sorted((ROOT / directory).rglob("*.py")) if ".venv" not in path.parts],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_LINES[path.relative_to(ROOT).parts[0]]


def test_imports_are_seen_in_every_form() -> None:
    source = """
from typing import TYPE_CHECKING
import os.path
from ..daemon import loop
from usbvfiod_core.cli import main
from .. import Device
from . import spec, states
def f():
    from ..memory import GuestMemory
if TYPE_CHECKING:
    import socket
"""
    assert imports(PACKAGE / "xhci" / "made_up.py", source) == {
        "typing",
        "os.path",
        "usbvfiod_core.daemon.loop",
        "usbvfiod_core.cli",
        "usbvfiod_core",
        "usbvfiod_core.xhci.spec",
        "usbvfiod_core.xhci.states",
        "usbvfiod_core.memory",
    }
