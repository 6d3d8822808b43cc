"""Phrases that readers stumbled over, found in the documents and in what programs say: `make lint`.

A list of our own, because general linters of prose take command lines and option names for bad style. Spelling is
codespell's. What is in code blocks of a document is not looked at; in Python the strings are, and the docstrings that
click prints as help.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ("*.md", "docs/**/*.md", "contrib/**/*.md", "examples/*/*.md", "plugins/*/*.md")
PROGRAMS = ("usbvfiod_core/**/*.py", "plugins/*/usbvfiod_*/**/*.py")
HELP = "usbvfiod_core/cli"
LONGEST_SENTENCE = 45
"""Words. What is longer has to be read twice."""

PHRASES = {
    r"(?<![Tt]here )\b(is|are|was|were) no (?!longer\b|more than\b|less than\b|different\b|use\b)\w+": "is not a",
    r"\b(and|which|that) (is|are) none\b": "say what it is instead",
    r"\bwhich there (is|are) none of\b": "of which there is none, or say it otherwise",
    r"\bis meant\?": "did you mean",
    r"\bexclude each other\b": "cannot be used together",
    r"\blog (more or less|less or more)\b": "set how much is logged",
    r"\b(lets?|letting) (a|the|your) (running )?server \w+": "makes the server, or tells it to",
    r"\b(steer|steers|steered|steering)\b": "control",
    r"\banew\b": "again",
    r"\bwhereof\b|\bwherein\b|\bthereof\b|\bhitherto\b": "plain words",
    r"^Beside,|\. Beside,": "Besides, or Also",
    r"\bbelongs? into\b": "belongs in",
    r"\bis said by\b": "comes from, or is in",
    r"\bsays? neither\b": "has neither",
    r"\bsomething you wish for\b": "say what it does",
    r"\bmay be meant so\b": "may be intended",
    r"\b(is|are) (to be had|not to be had|had by)\b": "get",
    r"\b(utili[sz]e|leverage|seamless(ly)?|robust(ly)?|cutting-edge)\b": "plain words",
    r"\b(simply|obviously|of course|just simply)\b": "leave it out",
    r"\b(\w+) \1 (?!\1)": "a word twice",
}
_FENCE = re.compile(r"^```.*?^```$|<!--.*?-->", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`[^`\n]*`")
_ALLOWED_TWICE = {"that", "had", "0", "1", "00", "ff", "ffff", "25"}


class Finding(NamedTuple):
    """One phrase: where it is, and what to write instead."""

    path: Path
    line: int
    phrase: str
    advice: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}: {self.phrase!r}: {self.advice}"


def findings() -> Iterator[Finding]:
    """Everything that is found in the documents and programs."""
    for pattern in DOCUMENTS:
        for path in sorted(ROOT.glob(pattern)):
            yield from in_document(path)
    for pattern in PROGRAMS:
        for path in sorted(ROOT.glob(pattern)):
            yield from in_program(path)


def in_document(path: Path) -> Iterator[Finding]:
    """The phrases and long sentences of a document. Code blocks are blanked, so that lines keep their numbers."""
    text = _FENCE.sub(lambda match: re.sub(r"[^\n]", "", match[0]), path.read_text())
    yield from _phrases(path, 1, _CODE.sub("`code`", text))
    for line, sentence in _sentences(text):
        words = len(sentence.split())
        if words > LONGEST_SENTENCE:
            yield Finding(
                path, line, " ".join(sentence.split()[:8]) + " ...", f"{words} words in one sentence; make it two"
            )


def in_program(path: Path) -> Iterator[Finding]:
    """The phrases of a program's strings."""
    tree = ast.parse(path.read_text())
    documentation: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            documentation.add(id(node.value))
    printed = HELP in str(path)
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and (printed or id(node) not in documentation)
        ):
            yield from _phrases(path, node.lineno, node.value)


def _phrases(path: Path, line: int, text: str) -> Iterator[Finding]:
    for pattern, advice in PHRASES.items():
        for match in re.finditer(pattern, text, re.MULTILINE):
            if match.re.groups == 1 and match[1] in _ALLOWED_TWICE:
                continue
            yield Finding(path, line + text.count("\n", 0, match.start()), match[0], advice)


def _sentences(text: str) -> Iterator[tuple[int, str]]:
    """The sentences of paragraphs and list items, with the line that each begins in; not of tables."""
    for block in re.finditer(r"(?:^(?!\||#|\s*$).*\n?)+", text, re.MULTILINE):
        begin = 0
        for item in re.split(r"(?<=[.:;!?])\s+|\n(?=\s*(?:-|\d+\.)\s)", block[0]):
            at = block[0].find(item, begin)
            begin = max(begin, at)
            yield text.count("\n", 0, block.start() + begin) + 1, item


def main() -> int:
    """Print what is found; 1 if anything is."""
    found = list(findings())
    for each in found:
        print(each)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
