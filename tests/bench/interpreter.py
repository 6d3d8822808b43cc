"""How the interpreter was built: Python without optimisation is half as fast, and figures of both do not compare."""

from __future__ import annotations

import platform
import sys
import sysconfig


def description() -> str:
    """Version, kernel and the flags that matter."""
    arguments = sysconfig.get_config_var("CONFIG_ARGS") or ""
    flags = sysconfig.get_config_var("PY_CFLAGS") or sysconfig.get_config_var("CFLAGS") or ""
    level = next((word for word in reversed(flags.split()) if word.startswith("-O")), "no -O")
    facts = [level]
    for name, option in (("profile-guided", "--enable-optimizations"), ("link-time", "--with-lto")):
        facts.append(f"{name} optimisation" if option in arguments else f"no {name} optimisation")
    if sysconfig.get_config_var("Py_DEBUG"):
        facts.append("a debug build")
    return f"Python {platform.python_version()} ({', '.join(facts)}), {sys.platform} {platform.release()}"
