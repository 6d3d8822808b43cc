"""Numbers as people read them."""

from __future__ import annotations


def size(count: float) -> str:
    """Bytes: `3.4 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def microseconds(value: float | None) -> str:
    """A time: `120 us`, `3.4 ms`, `1.2 s`; empty for none."""
    if value is None:
        return ""
    if value < 1000:
        return f"{value:.0f} us"
    return f"{value / 1000:.1f} ms" if value < 1e6 else f"{value / 1e6:.1f} s"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: `1:02:03`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
