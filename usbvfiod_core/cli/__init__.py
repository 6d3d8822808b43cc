"""The command `usbvfiod`: reads what the user typed, calls the rest, and turns errors into lines and exit codes."""

from __future__ import annotations

import gc
import os
import sys
import traceback
from collections.abc import Sequence

import click

from ..daemon.config import SocketError
from ..errors import ConfigError, ConfigErrors, DeviceError, PluginError, UsbvfiodError
from ..hooks.registry import Registry
from .checks import Mistakes
from .command import application, fits, selection
from .output import say, say_lines
from .unreached import NotAttached, ServerTimeout, ServerUnreachable

OK = 0
FAILURE = 1
USAGE = 2
SOCKET = 3
DEVICE = 4
PLUGIN = 5
NOT_ATTACHED = 6
TIMEOUT = 7
UNREACHABLE = 8
INTERRUPTED = 130

_EXIT_CODES: tuple[tuple[type[UsbvfiodError], int], ...] = (
    (ConfigError, USAGE),
    (SocketError, SOCKET),
    (DeviceError, DEVICE),
    (PluginError, PLUGIN),
    (NotAttached, NOT_ATTACHED),
    (ServerTimeout, TIMEOUT),
    (ServerUnreachable, UNREACHABLE),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (`sys.argv` without `arguments`); return the exit code, which docs/cli.md explains."""
    color = False if os.environ.get("NO_COLOR") else None
    try:
        registry = Registry()
        registry.discover(selection(sys.argv[1:] if arguments is None else arguments))
        group = application(registry)
        gc.freeze()
        gc.enable()
        result = group.main(arguments, prog_name="usbvfiod", standalone_mode=False, color=color)
        sys.stdout.flush()
    except (ConfigErrors, Mistakes) as several:
        for error in several.errors:
            _fail(str(error), exit_code(error))
        return exit_code(several.errors[0])
    except UsbvfiodError as error:
        return _fail(str(error), exit_code(error))
    except click.UsageError as error:
        return _fail(f"{error.format_message()} ({_hint(error)})", USAGE)
    except click.ClickException as error:
        return _fail(error.format_message(), FAILURE)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # Whoever reads our output has seen enough; nothing more can be written, at exit neither.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    except OSError as error:
        return _fail(str(error), FAILURE)
    except Exception as error:
        say_lines(traceback.format_exc().rstrip(), err=True)
        return _fail(f"internal error, please report it with the lines above: {type(error).__name__}", FAILURE)
    return result if isinstance(result, int) else OK


def exit_code(error: UsbvfiodError) -> int:
    """The exit code for an error that ends the process."""
    for kind, code in _EXIT_CODES:
        if isinstance(error, kind):
            return code
    return FAILURE


def _hint(error: click.UsageError) -> str:
    """What to try after a wrong command line."""
    context = error.ctx
    if context is None:
        return "try usbvfiod --help"
    root = context.find_root()
    command = context.command_path.removeprefix(root.command_path).strip()
    if isinstance(error, click.NoSuchOption) and command:
        option = error.option_name
        if any(option in each.opts and fits(command, each.name) for each in root.command.params):
            return f"it goes before the command: {root.command_path} {option} ... {command}"
    return f"try {context.command_path} --help"


def _fail(message: str, code: int) -> int:
    say(f"usbvfiod: error: {' '.join(message.split())}", err=True)
    return code
