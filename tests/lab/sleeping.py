"""The lab's whole machine goes to sleep and wakes, as far as its devices are concerned.

The kernel's own test of suspending (Documentation/power/basic-pm-debugging.rst in Linux) freezes all programs, suspends
all devices, waits, and resumes them: nobody has to wake the machine.
"""

from __future__ import annotations

import errno
import time
from pathlib import Path

TRIES = 5
_POWER = Path("/sys/power")
_DELAY = Path("/sys/module/suspend/parameters/pm_test_delay")


def sleep() -> None:
    """Sleep for a second. Raises OSError if a device or a program does not let the machine sleep."""
    _DELAY.write_text("1")
    (_POWER / "pm_test").write_text("devices")
    try:
        for left in reversed(range(TRIES)):
            try:
                (_POWER / "state").write_text("freeze")
                return
            except OSError as error:
                if error.errno != errno.EBUSY or not left:
                    raise
                time.sleep(0.2)  # a program that waits for a file of another machine cannot be frozen
    finally:
        (_POWER / "pm_test").write_text("none")
