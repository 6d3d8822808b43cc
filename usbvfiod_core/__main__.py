"""The program `usbvfiod`, and `python -m usbvfiod_core`. Programs often ask for the version; they get it without
the rest being loaded."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line; return the exit code, which docs/cli.md explains."""
    if sys.argv[1:] == ["--version"]:
        from .version import version_line

        print(version_line())
        return 0
    from .cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
