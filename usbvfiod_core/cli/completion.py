"""`usbvfiod completion`: the scripts with which shells complete, and how bash does it."""

from __future__ import annotations

import os

import click
from click.shell_completion import (
    BashComplete,
    FishComplete,
    ZshComplete,
    add_completion_class,
    get_completion_class,
    split_arg_string,
)

from .completing import COMPLETING

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
            plain)
                COMPREPLY+=("${value#"$prefix"}")
                [[ $value == *[=/] ]] && compopt -o nospace
                ;;
        esac
    done
}

complete -o nosort -F %(complete_func)s %(prog_name)s
"""


_ZSH = """\
#compdef %(prog_name)s

# No space goes behind what ends in = or /, as there is more to come.
%(complete_func)s() {
    local -a plain described unfinished response
    local -x COMP_WORDS="${words[*]}" COMP_CWORD=$((CURRENT-1)) %(complete_var)s=zsh_complete
    local type key told
    (( ! $+commands[%(prog_name)s] )) && return 1
    response=("${(@f)$(command %(prog_name)s)}")
    for type key told in ${response}; do
        case "$type:$key" in
            dir:*) _path_files -/ ;;
            file:*) _path_files -f ;;
            plain:*[=/]) unfinished+=("${key//\\\\:/:}") ;;
            plain:*) if [[ $told == _ ]]; then plain+=("$key"); else described+=("$key:$told"); fi ;;
        esac
    done
    (( $#described )) && _describe -V unsorted described -U
    (( $#plain )) && compadd -U -V unsorted -a plain
    (( $#unfinished )) && compadd -U -S '' -V unfinished -a unfinished
}

if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    %(complete_func)s "$@"
else
    compdef %(complete_func)s %(prog_name)s
fi
"""

_FISH = """\
function %(complete_func)s
    set -lx COMP_WORDS (commandline -cp)
    set -lx COMP_CWORD (commandline -ct)
    set -lx %(complete_var)s fish_complete
    for completion in (command %(prog_name)s)
        set -l parts (string split -m 1 , -- $completion)
        switch $parts[1]
            case dir
                __fish_complete_directories $parts[2]
            case file
                __fish_complete_path $parts[2]
            case plain
                echo $parts[2]
        end
    end
end

complete --no-files --command %(prog_name)s --arguments "(%(complete_func)s)"
"""


class Bash(BashComplete):
    """Completion by the line as it is, in COMP_WORDS, up to the cursor."""

    source_template = _BASH

    def get_completion_args(self) -> tuple[list[str], str]:
        line = os.environ.get("COMP_WORDS", "")
        words = split_arg_string(line)[1:]
        incomplete = "" if not words or line[-1:].isspace() else words.pop()
        return words, incomplete


class Zsh(ZshComplete):
    """Click's, with a script that takes more to come for granted behind some words."""

    source_template = _ZSH


class Fish(FishComplete):
    """Click's, with a script that leaves commas in words and descriptions."""

    source_template = _FISH


for _shell in (Bash, Zsh, Fish):
    add_completion_class(_shell)


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
    source = kind(context.find_root().command, {}, "usbvfiod", COMPLETING)
    click.echo(source.source_template % source.source_vars())
