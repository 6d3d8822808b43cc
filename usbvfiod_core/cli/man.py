"""`usbvfiod man`: manual pages, made from the commands themselves."""

from __future__ import annotations

import re
from pathlib import Path

import click

from ..installed import version
from . import completing


@click.command()
@click.argument("command", required=False, shell_complete=completing.commands)
@click.option(
    "--directory",
    metavar="DIRECTORY",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write the pages of all commands there instead.",
)
@click.pass_context
def man(context: click.Context, command: str | None, directory: Path | None) -> None:
    """Print the manual page of a command, or of usbvfiod itself, for man(1).

    `usbvfiod man attach | man -l -` reads one; with --directory they are written as usbvfiod.1, usbvfiod-attach.1, ...
    """
    group = context.find_root().command
    assert isinstance(group, click.Group)
    if directory is None:
        if command is not None and command not in group.commands:
            raise click.UsageError(f"there is no command {command!r}")
        click.echo(page(group, command), nl=False)
        return
    if command is not None:
        raise click.UsageError("--directory writes the pages of all commands")
    directory.mkdir(parents=True, exist_ok=True)
    for name in (None, *group.commands):
        path = directory / f"{_title(name)}.1"
        path.write_text(page(group, name))
        click.echo(path)
    path = directory / "usbvfiod-opener.1"
    path.write_text(opener_page())
    click.echo(path)


def page(group: click.Group, name: str | None) -> str:
    """The manual page of a command of `group`, or of the group, in man(7)'s language."""
    command = group if name is None else group.commands[name]
    context = click.Context(command, info_name=_title(name).replace("-", " ", 1) if name else "usbvfiod")
    title = _title(name)
    summary = (command.help or "").split("\n\n")[0]
    lines = [
        *_heading(title, summary),
        ".SH SYNOPSIS",
        f".B {_escaped(context.command_path)}",
        _escaped(" ".join(command.collect_usage_pieces(context))),
        ".SH DESCRIPTION",
        *_paragraphs(command.help or ""),
    ]
    options = [each for each in command.get_params(context) if isinstance(each, click.Option)]
    records = [record for option in options if (record := option.get_help_record(context))]
    if records:
        lines.append(".SH OPTIONS")
        for option, text in records:
            lines += [".TP", f".B {_escaped(option)}", _escaped(_one_line(text))]
    if isinstance(command, click.Group):
        lines.append(".SH COMMANDS" if name is None else ".SH SUBCOMMANDS")
        for each in command.commands.values():
            reference = (
                f"\\fB{_escaped(title)}\\-{_escaped(each.name or '')}\\fR(1)"
                if name is None
                else _escaped(each.name or "")
            )
            lines += [".TP", reference, _escaped(each.get_short_help_str(200))]
    if command.epilog:
        lines += [".SH EXIT STATUS", *_paragraphs(command.epilog.removeprefix("Exit codes: "))]
    if name is not None:
        lines += [".SH SEE ALSO", r"\fBusbvfiod\fR(1)"]
    return "\n".join(lines) + "\n"


def opener_page() -> str:
    """The manual page of `usbvfiod-opener`, a program of its own."""
    from ..opener import parser  # most commands have nothing to do with it

    made = parser()
    name, summary = made.prog, made.description or ""
    usage = " ".join(made.format_usage().removeprefix("usage:").split()[1:])
    lines = [
        *_heading(name, summary),
        ".SH SYNOPSIS",
        f".B {_escaped(name)}",
        _escaped(usage),
        ".SH DESCRIPTION",
        *_paragraphs(f"{summary}\n\n{made.epilog}"),
        ".SH OPTIONS",
    ]
    for action in made._actions:
        option = " ".join(filter(None, (", ".join(action.option_strings), str(action.metavar or ""))))
        lines += [".TP", f".B {_escaped(option)}", _escaped(_one_line(action.help or ""))]
    lines += [".SH SEE ALSO", r"\fBusbvfiod\fR(1)"]
    return "\n".join(lines) + "\n"


def _heading(title: str, summary: str) -> list[str]:
    return [
        f'.TH {_quoted(title.upper())} 1 "" {_quoted("usbvfiod " + version("usbvfiod"))} {_quoted("usbvfiod")}',
        ".SH NAME",
        f"{_escaped(title)} \\- {_escaped(_one_line(summary).rstrip('.'))}",
    ]


def _title(name: str | None) -> str:
    return "usbvfiod" if name is None else f"usbvfiod-{name}"


def _paragraphs(text: str) -> list[str]:
    lines = []
    for index, paragraph in enumerate(re.split(r"\n\s*\n", text.strip())):
        lines += [".PP"] if index else []
        if paragraph.startswith("\b\n"):  # as it is, which is how click marks it
            lines += [".nf", *map(_escaped, paragraph.splitlines()[1:]), ".fi"]
        else:
            lines.append(_escaped(_one_line(paragraph)))
    return lines


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _quoted(text: str) -> str:
    return '"' + _escaped(text).replace('"', '""') + '"'


def _escaped(text: str) -> str:
    """`text` so that troff prints it as it is: a line that begins with a dot or quote would be a request."""
    text = (
        text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga").replace("~", "\\(ti")
    )
    return "\\&" + text if text.startswith(".") else text
