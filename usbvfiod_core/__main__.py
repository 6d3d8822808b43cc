"""The program `usbvfiod`, and `python -m usbvfiod_core`. Programs often ask for the version; they get it without
the rest being loaded. So does a front, which is there as long as its server."""

from __future__ import annotations

import gc
import sys

from . import search_path


def main() -> int:
    """Run the command line; return the exit code, which docs/cli.md explains."""
    if sys.argv[1:] == ["--version"]:
        from .version import version_line

        print(version_line())
        return 0
    search_path.clean()
    if sys.argv[1:2] == ["front"]:
        from . import front

        if (words := front.plain(sys.argv[2:])) is not None:
            try:
                return front.front(*words)
            except OSError as error:
                print(f"usbvfiod: error: {error}", file=sys.stderr)
                return 1
    # What is loaded stays, and looking through it for garbage again and again is a sixth of the start.
    gc.disable()
    from .cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
