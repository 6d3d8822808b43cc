"""`usbvfiod completion`: the scripts with which shells complete, and how bash does it."""

from __future__ import annotations

import os

import click
from click.shell_completion import BashComplete, add_completion_class, get_completion_class, split_arg_string

VARIABLE = "_USBVFIOD_COMPLETE"
"""What click looks at under the name `usbvfiod`."""

SHELLS = ("bash", "zsh", "fish")

_BASH = """\
# Words are split here, not by bash: it takes the colons in specifications of devices for spaces, and then only replaces
# what is behind the last one.
%(complete_func)s() {
    local IFS=$'\\n' line=${COMP_LINE:0:COMP_POINT} word breaks= prefix= type value response
    word=${line##*[[:space:]]}
    [[ $COMP_WORDBREAKS == *:* ]] && breaks+=:
    [[ $COMP_WORDBREAKS == *=* ]] && breaks+==
    [[ -n $breaks && $word != [\\"\\']* ]] && prefix=${word%%"${word##*[$breaks]}"}
    response=$(env COMP_WORDS="$line" %(complete_var)s=bash_complete "$1")
    for completion in $response; do
        IFS=, read -r type value <<< "$completion"
        case $type in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain) COMPREPLY+=("${value#"$prefix"}") ;;
        esac
    done
}

complete -o nosort -F %(complete_func)s %(prog_name)s
"""


class Bash(BashComplete):
    """Completion by the line as it is, in COMP_WORDS, up to the cursor."""

    source_template = _BASH

    def get_completion_args(self) -> tuple[list[str], str]:
        line = os.environ.get("COMP_WORDS", "")
        words = split_arg_string(line)[1:]
        incomplete = "" if not words or line[-1:].isspace() else words.pop()
        return words, incomplete


add_completion_class(Bash)


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that completes commands, options, devices and attachments in a shell.

    Put it where the shell looks for it: ~/.local/share/bash-completion/completions/usbvfiod (bash), _usbvfiod in a
    directory of $fpath (zsh), ~/.config/fish/completions/usbvfiod.fish (fish).
    """
    kind = get_completion_class(shell)
    assert kind is not None
    source = kind(context.find_root().command, {}, "usbvfiod", VARIABLE)
    click.echo(source.source_template % source.source_vars())
