"""`usbvfiod completion`: what makes a shell complete the commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

VARIABLE = "_USBVFIOD_COMPLETE"
"""What click looks at under the name `usbvfiod`."""

_PLACES = {
    "bash": "~/.local/share/bash-completion/completions/usbvfiod",
    "zsh": "a directory of $fpath, as _usbvfiod",
    "fish": "~/.config/fish/completions/usbvfiod.fish",
}


@click.command()
@click.argument("shell", type=click.Choice(list(_PLACES)))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what makes a shell complete commands and options of usbvfiod.

    Put it where the shell looks for it: ~/.local/share/bash-completion/completions/usbvfiod (bash), _usbvfiod in a
    directory of $fpath (zsh), ~/.config/fish/completions/usbvfiod.fish (fish).
    """
    kind = get_completion_class(shell)
    assert kind is not None
    source = kind(context.find_root().command, {}, "usbvfiod", VARIABLE)
    click.echo(source.source_template % source.source_vars())
