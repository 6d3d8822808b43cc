"""What the documentation says is so: hooks, options and commands are documented, links lead somewhere, code runs."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import subprocess
import sys
import tomllib
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import click
import pytest
from usbvfiod_usbfs.backend import UsbfsBackend

from tests import command_pages, picture, prose, recording
from usbvfiod_core import PLUGIN_API, InterceptedTransfer, Interceptor, hookimpl, opener
from usbvfiod_core.cli import ending
from usbvfiod_core.cli.activity import VIEWS
from usbvfiod_core.cli.command import application
from usbvfiod_core.daemon.config import CORE_OPTIONS, CommandLine
from usbvfiod_core.daemon.config_file import load
from usbvfiod_core.daemon.server_settings import ServerSettings
from usbvfiod_core.hooks.loading import hook_signatures
from usbvfiod_core.hooks.registry import Registry
from usbvfiod_core.testing.limits import scaled

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*/*.md")])
COMMAND_LINE = (ROOT / "docs/cli.md").read_text()
PLUGINS = (ROOT / "docs/plugins.md").read_text()
CONFIGURATION = (ROOT / "docs/configuration.md").read_text()
HOOKS = (ROOT / "docs/hooks.md").read_text()
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block of code."""

    path: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}"


def blocks(*languages: str) -> list[Block]:
    """The blocks of these languages in all documents."""
    found = []
    for path in DOCUMENTS:
        text = path.read_text()
        for match in FENCE.finditer(text):
            if match[1] in languages:
                found.append(Block(path, text.count("\n", 0, match.start()) + 1, match[1], match[2]))
    return found


def shell_commands(block: Block) -> Iterator[list[str]]:
    """The commands of a shell block as words, without prompts and comments."""
    for line in block.text.replace("\\\n", " ").splitlines():
        line = line.removeprefix("$ ").strip()
        if line and not line.startswith("#"):
            yield shlex.split(line, comments=True)


def commands() -> dict[str, click.Command]:
    """Bare `usbvfiod` and the commands beside it, without those of plugins that happen to be installed."""
    group = application(Registry())
    found = {"": group, **group.commands}
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            found.update((f"{name} {below}", each) for below, each in command.commands.items())
    return found


# -- hooks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", hook_signatures())
def test_every_hook_is_documented_with_its_signature(name: str) -> None:
    heading = f"### `{name}({', '.join(hook_signatures()[name].parameters)})`"
    assert heading in HOOKS
    section = HOOKS.partition(heading)[2].partition("\n##")[0]
    for word in ("**When**", "**Thread**", "**An exception**"):
        assert word in section, f"{name}: {word}"
    for parameter in hook_signatures()[name].parameters.values():
        assert f"`{parameter.name}: {parameter.annotation}`" in section


def test_no_hook_is_documented_that_does_not_exist() -> None:
    assert set(re.findall(r"^### `(usbvfiod_\w+)\(", HOOKS, re.MULTILINE)) == set(hook_signatures())


@pytest.mark.parametrize("cls", [Interceptor, InterceptedTransfer])
def test_every_method_of_an_interceptor_is_documented(cls: type) -> None:
    section = HOOKS.partition("\n## Interceptor\n")[2]
    internal = {"complete", "end", "write"}  # for the device and the framework
    for name, member in vars(cls).items():
        if callable(member) and not name.startswith("_") and name not in internal:
            assert re.search(rf"`{name}[`(]", section), name


def test_the_version_of_the_plugin_api_is_documented() -> None:
    assert f"The plugin API has version {PLUGIN_API}." in PLUGINS


# -- the command line -----------------------------------------------------------------------------------------------


def test_the_page_of_commands_is_the_command_line_s_own() -> None:
    """It is made of the help, so what is missing there is missing in `usbvfiod --help` too."""
    assert command_pages.DOCUMENT.read_text() == command_pages.page(), "run `python -m tests.command_pages`"


@pytest.mark.parametrize("name", commands())
def test_every_command_and_option_has_help(name: str) -> None:
    command = commands()[name]
    assert command.help
    for parameter in command.params:
        assert isinstance(parameter, click.Argument) or getattr(parameter, "help", None), f"{name} {parameter.name}"


def test_every_exit_code_is_documented() -> None:
    codes = {value for key, value in vars(ending).items() if key.isupper() and isinstance(value, int)}
    table = COMMAND_LINE.partition("## Exit codes")[2]
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)} == codes


def test_no_option_is_documented_that_does_not_exist() -> None:
    known = {option for command in commands().values() for parameter in command.params for option in parameter.opts}
    known |= {"--help", "-h", "-vv"}
    known |= {option for action in opener.parser()._actions for option in action.option_strings}
    written = set(re.findall(r"`(--?[a-z][a-z0-9-]*)", COMMAND_LINE))
    assert written <= known


def test_the_keys_of_the_configuration_file_are_options_and_documented() -> None:
    """`[server]` has the options of serving, but for those that the page names."""
    keys = {field.name for field in dataclasses.fields(ServerSettings)}
    options = {parameter.opts[-1].removeprefix("--") for parameter in application(Registry()).params}
    section = CONFIGURATION.partition("| `[server]` |")[2].partition("\n")[0]
    exceptions = set(re.findall(r"`([a-z-]+)`", section.partition(", except ")[2].partition(". ")[0]))
    assert {key.replace("_", "-") for key in keys} == options - exceptions
    assert exceptions <= options
    for key in CORE_OPTIONS:
        assert f"`{key}`" in CONFIGURATION.partition("| `[[device]]` |")[2].partition("\n")[0]


# -- commands that a reader would type ------------------------------------------------------------------------------


@pytest.mark.parametrize("block", blocks("sh", "console"), ids=str)
def test_commands_exist_with_their_options(block: Block) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for words in shell_commands(block):
        if words[0] == "make":
            assert set(words[1:]) <= targets, words
        elif words[0] == "usbvfiod":
            known = commands()
            name = words[1] if len(words) > 1 and words[1] in known else ""
            known[name].make_context("usbvfiod", words[2 if name else 1 :], resilient_parsing=False, obj=Registry())


@pytest.mark.parametrize("block", blocks("toml"), ids=str)
def test_configuration_is_toml(block: Block, tmp_path: Path) -> None:
    """And in quickstarts a configuration file for the plugin usbfs."""
    assert tomllib.loads(block.text)
    if "quickstart" in block.path.parts:
        path = tmp_path / "web.toml"
        path.write_text(block.text)
        assert load(CommandLine(file=path), {"usbfs": UsbfsBackend()}, {}).devices


@pytest.mark.parametrize("block", blocks("xml"), ids=str)
def test_xml_is_well_formed(block: Block) -> None:
    ElementTree.fromstring(block.text)


@pytest.mark.parametrize("path", sorted(ROOT.glob("docs/*.svg")), ids=lambda path: path.name)
def test_pictures_are_complete_in_themselves(path: Path) -> None:
    """As images of a page they get nothing from elsewhere, neither fonts nor scripts."""
    assert ElementTree.fromstring(path.read_text()).tag == "{http://www.w3.org/2000/svg}svg"
    assert not re.search(r"<script|<image|@import|url\(h|href=", path.read_text())


def test_the_picture_of_top_has_its_columns() -> None:
    """As far as there is room. Its script, which runs it, is tests/picture.py."""
    texts = ElementTree.fromstring(picture.DOCUMENT.read_text()).iter("{http://www.w3.org/2000/svg}text")
    titles = " ".join(text.text or "" for text in list(texts)[1:4]).split()
    assert len(titles) >= 9
    assert titles == [column.title for column in VIEWS["devices"]][: len(titles)]


def test_the_recording_shows_the_commands_of_its_script() -> None:
    """That they do what it shows, tests/vm/test_recording.py finds out."""
    rows = ElementTree.fromstring(recording.DOCUMENT.read_text()).iter("{http://www.w3.org/2000/svg}text")
    texts = ["".join(row.itertext()) for row in rows]
    prompts = tuple(recording.PROMPTS.values())
    shown = [re.sub("^(host[$]|guest#) ", "", text) for text in texts if text.startswith((*prompts, "#"))]
    assert shown == [step.command for step in recording.STEPS]


@pytest.mark.parametrize(
    "path", DOCUMENTS + sorted(ROOT.glob("plugins/**/*.md")), ids=lambda path: str(path.relative_to(ROOT))
)
def test_nobody_is_told_to_install_our_names(path: Path) -> None:
    """usbvfiod is on no package index: whoever took the name there would be installed. Paths and files are meant."""
    for line in path.read_text().splitlines():
        for _, words in re.findall(r"\b(pip|pipx|apt|apt-get) (?:install|inject usbvfiod) ([^`#&]*)", line):
            assert not [word for word in words.split() if re.match(r"['\"]?usbvfiod(?!_)", word)], line


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("A file that is no file is ignored.\n", "is not a"),
        ("There is no file. It is no longer there.\n", ""),
        ("The word word is there twice.\n", "a word twice"),
        ("`it is no file` in code, and\n\n```\nit is no file\n```\n", ""),
        (f"A sentence{' of many words' * 20}.\n", "62 words in one sentence; make it two"),
        (f"One sentence{' of words' * 12}. Another{' of words' * 12}.\n", ""),
    ],
)
def test_the_list_of_phrases_finds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, advice: str
) -> None:
    path = tmp_path / "page.md"
    path.write_text(text)
    monkeypatch.setattr(prose, "ROOT", tmp_path)
    assert [each.advice for each in prose.in_document(path)] == ([advice] if advice else [])
    assert [str(each).partition(":")[0] for each in prose.in_document(path)] == (["page.md"] if advice else [])


# -- links ----------------------------------------------------------------------------------------------------------


def anchors(path: Path) -> set[str]:
    """The anchors that a page's headings make."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        place, _, anchor = target.partition("#")
        page = (path.parent / place).resolve() if place else path
        assert page.exists(), f"{path.name}: {target}"
        assert page.is_relative_to(ROOT)
        if anchor:
            assert anchor in anchors(page), f"{path.name}: {target}"


def test_promises_are_held_by_tests_that_exist() -> None:
    """Each row of a table of promises ends with the files, or the single tests, that hold it."""
    table = (ROOT / "docs/security.md").read_text().partition("| held by |\n")[2].partition("\n\n")[0]
    rows = table.splitlines()[1:]
    assert rows
    for row in rows:
        named = re.findall(r"`([^`]+)`", row.rstrip("|").rpartition("|")[2])
        assert named, row
        for test in named:
            path, _, name = test.partition("::")
            assert (ROOT / path).is_file(), row
            assert not name or f"def {name}(" in (ROOT / path).read_text(), row


# -- code -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tested(tmp_path_factory: pytest.TempPathFactory) -> dict[Block, tuple[int, str]]:
    """The examples that have tests, in one run of pytest: how many passed, and what was wrong with the others."""
    directory = tmp_path_factory.mktemp("examples")
    found = {
        f"test_example_{number}": block for number, block in enumerate(blocks("python")) if "def test_" in block.text
    }
    for name, block in found.items():
        (directory / f"{name}.py").write_text(block.text)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "--junitxml=report"]
    command += ["-p", "no:hypothesispytest", "--rootdir=.", "--continue-on-collection-errors"]
    result = subprocess.run([*command, "."], capture_output=True, text=True, cwd=directory, timeout=scaled(170))
    outcomes = dict.fromkeys(found.values(), (0, ""))
    assert (directory / "report").exists(), result.stdout + result.stderr
    for case in ElementTree.parse(directory / "report").iter("testcase"):
        name = next(part for part in f"{case.get('classname')}.{case.get('name')}".split(".") if part in found)
        passed, wrong = outcomes[found[name]]
        wrong += "".join(f"{each.text}\n" for kind in ("failure", "error") for each in case.iter(kind))
        outcomes[found[name]] = (passed + (case.find("skipped") is None), wrong)
    return outcomes


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_examples_run(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Each example is a program of its own. One that implements hooks is also accepted as a plugin, one that has tests
    passes them."""
    if "def test_" in block.text:
        passed, wrong = request.getfixturevalue("tested")[block]
        assert not wrong, wrong
        assert passed
        return
    path = tmp_path / "test_example.py"
    path.write_text(block.text)
    module = types.ModuleType("example")
    vars(module)["__file__"] = str(path)
    monkeypatch.setitem(sys.modules, "example", module)
    exec(compile(block.text, str(block), "exec", dont_inherit=True), vars(module))
    if "@hookimpl" in block.text:
        registry = Registry()
        record = registry.register(module, "example")
        registry.declared()
        assert record.error == ""
        assert record.hooks


@pytest.mark.parametrize("name", hook_signatures())
def test_every_hook_has_an_example(name: str) -> None:
    section = HOOKS.partition(f"### `{name}(")[2].partition("\n##")[0]
    examples = [match[2] for match in FENCE.finditer(section) if match[1] == "python"]
    assert examples
    for example in examples:
        assert f"def {name}(" in example
    assert callable(hookimpl)


def test_the_types_of_the_examples_are_strict(tmp_path: Path) -> None:
    """As a plugin's author would check them."""
    for number, block in enumerate(blocks("python")):
        if block.path.name in ("hooks.md", "plugins.md"):
            (tmp_path / f"example_{block.path.stem}_{number}.py").write_text(block.text)
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), "."]
    environment = {**os.environ, "MYPYPATH": str(ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=scaled(150))
    assert result.returncode == 0, result.stdout + result.stderr
