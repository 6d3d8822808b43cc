"""Pages of the public API, made by pdoc from the docstrings: `python -m tests.api_pages [DIRECTORY]` writes them."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pdoc
import pdoc.render

from tests.public_api import MODULES

PAGES = Path(__file__).resolve().parents[1] / "build" / "api"

BESIDE = (
    "usbvfiod_core.errors",
    "usbvfiod_core.hooks.interceptor",
    "usbvfiod_core.usb.backend",
    "usbvfiod_core.usb.device",
    "usbvfiod_core.usb.speed",
    "usbvfiod_core.usb.transfer",
)
"""Where what `usbvfiod_core` exports is defined, so that links to it lead somewhere."""

_ENTRY = re.compile(r"^( *)(\S(?:.*?\S)?) {2,}(\S.*)$")
_CODE = " " * 4


def write(directory: Path) -> None:
    """Write a page for each module, and an index, into `directory`."""
    pdoc.render.configure(docformat="markdown", show_source=False, footer_text="usbvfiod")
    convert = pdoc.render.env.filters["to_markdown"]
    pdoc.render.env.filters["to_markdown"] = _with_lists(convert)
    try:
        pdoc.pdoc(*MODULES, *BESIDE, output_directory=directory)
    finally:
        pdoc.render.env.filters["to_markdown"] = convert


def as_lists(text: str) -> str:
    """A docstring as Markdown: lines of a name and what it is, in two columns, become a list."""
    lines: list[str] = []
    inside = False
    for line in text.split("\n"):
        entry = None if line.startswith(_CODE) else _ENTRY.match(line)
        if entry is not None:
            if not inside and lines and lines[-1]:
                lines.append("")
            lines.append(f"- `{entry[2]}`: {entry[3]}" if "`" not in entry[2] else f"- {entry[2]}: {entry[3]}")
            inside = True
        elif inside and line.startswith("  "):
            lines.append(f"  {line.strip()}")
        else:
            if inside and line:
                lines.append("")
            inside = False
            lines.append(line)
    return "\n".join(lines)


def _with_lists(convert: Any) -> Any:
    """pdoc's filter, which is marked to be given the template's context, behind `as_lists`."""

    def converted(context: object, docstring: str) -> str:
        return str(convert(context, as_lists(docstring)))

    converted.jinja_pass_arg = convert.jinja_pass_arg  # type: ignore[attr-defined]
    return converted


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else PAGES
    write(target)
    print(f"{target}/index.html")
