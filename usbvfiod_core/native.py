"""What sources say to mypyc. At run time it means nothing, and mypy_extensions need not be installed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mypy_extensions import i64 as i64
    from mypy_extensions import mypyc_attr as mypyc_attr
else:
    i64 = int
    """A whole number of 64 bits with a sign, for what is never a guest's address: those have 64 bits without one."""

    def mypyc_attr(**_: object):
        """On a class: `allow_interpreted_subclasses=True` where plugins or tests have subclasses."""
        return lambda decorated: decorated
