"""The command `usbvfiod`: reads what the user typed, calls the rest, and turns errors into lines and exit codes."""

from __future__ import annotations

import gc
import os
import sys
import traceback
from collections.abc import Sequence

from ..errors import ConfigErrors, UsbvfiodError
from ..hooks.registry import Registry
from . import plain, serve
from .checks import Mistakes
from .ending import FAILURE, INTERRUPTED, OK, exit_code, fail


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (`sys.argv` without `arguments`); return the exit code, which docs/cli.md explains."""
    try:
        code = _run(sys.argv[1:] if arguments is None else list(arguments))
        sys.stdout.flush()
    except (ConfigErrors, Mistakes) as several:
        for error in several.errors:
            fail(str(error), exit_code(error))
        return exit_code(several.errors[0])
    except UsbvfiodError as error:
        return fail(str(error), exit_code(error))
    except KeyboardInterrupt:
        return fail("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # Whoever reads our output has seen enough; nothing more can be written, at exit neither.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    except OSError as error:
        return fail(_of_system(error), FAILURE)
    except Exception as error:
        from .output import say_lines

        say_lines(traceback.format_exc().rstrip(), err=True)
        return fail(f"internal error, please report it with the lines above: {type(error).__name__}", FAILURE)
    return code


def _run(words: Sequence[str]) -> int:
    registry = Registry()
    command_line = plain.read(words)
    if command_line is None:
        from . import command  # click, which a server does without

        return command.run(registry, words)
    file = plain.file_of(command_line)
    registry.discover(plain.with_file(command_line, file))
    gc.freeze()
    gc.enable()
    serve.serve(serve.told(registry, command_line, file))
    return OK


def _of_system(error: OSError) -> str:
    """What the operating system refuses, and of which file."""
    if error.filename is None or error.strerror is None:
        return str(error)
    return f"{error.filename}: {error.strerror}"
