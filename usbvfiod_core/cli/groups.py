"""Help that a reader finds his way in: commands in sections, before the options, with summaries that are not cut."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from importlib import import_module
from typing import Any

import click

_SUMMARY = 1000
"""Characters, more than any summary has: long ones are wrapped, not cut."""


class Commands(MutableMapping[str, click.Command]):
    """The commands of a group, each imported when somebody wants it: a server needs none, a command only itself.

    `places` says where they are: `module:name`, by their names on the command line.
    """

    def __init__(self, places: Mapping[str, str]) -> None:
        self._commands: dict[str, click.Command | str] = dict(places)

    def __getitem__(self, name: str) -> click.Command:
        found = self._commands[name]
        if isinstance(found, str):
            module, _, attribute = found.partition(":")
            command = getattr(import_module(module), attribute)
            assert isinstance(command, click.Command)
            self._commands[name] = found = command
        return found

    def __setitem__(self, name: str, command: click.Command) -> None:
        self._commands[name] = command

    def __delitem__(self, name: str) -> None:
        del self._commands[name]

    def __contains__(self, name: object) -> bool:
        return name in self._commands

    def __iter__(self) -> Iterator[str]:
        return iter(self._commands)

    def __len__(self) -> int:
        return len(self._commands)


class SectionedGroup(click.Group):
    """A group whose help lists its commands by `sections`: title and names, in the order in which they are read.

    Commands that are in none, as plugins add them, come last. `otherwise` is what it does without a command, which is
    said of a name that none of them has and that is near none. `hints` says what to do instead for names that people
    look for.
    """

    def __init__(
        self,
        *arguments: Any,
        sections: Mapping[str, Sequence[str]] | None = None,
        otherwise: str = "",
        hints: Mapping[str, str] | None = None,
        **rest: Any,
    ) -> None:
        super().__init__(*arguments, **rest)
        self.sections = dict(sections or {})
        self.otherwise = otherwise
        self.hints = dict(hints or {})

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            message = error.format_message()
            hint = self.hints.get(args[0], "" if "Did you mean" in message else self.otherwise)
            if not hint:
                raise
            raise click.UsageError(f"No such command {args[0]!r}; {hint}", ctx) from None

    def list_commands(self, ctx: click.Context) -> list[str]:
        known = [name for names in self.sections.values() for name in names if name in self.commands]
        return known + [name for name in self.commands if name not in known]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self.format_commands(ctx, formatter)
        click.Command.format_options(self, ctx, formatter)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        known = {name for names in self.sections.values() for name in names}
        others = [name for name in self.list_commands(ctx) if name not in known]
        sections = {**self.sections, "Commands of plugins" if self.sections else "Commands": others}
        longest = max(map(len, self.commands), default=0)
        for title, names in sections.items():
            # Names of one width, so that summaries are below each other throughout.
            rows = [
                (name.ljust(longest), self.commands[name].get_short_help_str(_SUMMARY))
                for name in names
                if name in self.commands and not self.commands[name].hidden
            ]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)
