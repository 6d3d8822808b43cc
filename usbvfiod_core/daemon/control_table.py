"""The table `[control]` of a configuration file: what users other than the server's own may do.

[control]
directories = ["/srv/images"]       # what the server may open for them

[control.allow]
alice = ["list", "status", "watch"]
"@operators" = ["all"]              # a group
"*" = ["list"]                      # anyone who can connect
"""

from __future__ import annotations

import pwd
from pathlib import Path
from typing import Any, Final

from ..errors import ConfigError, Gathered, unknown
from ..vfio_user.access import group_id, number_of
from .peers import ALL, ANYONE, REQUESTS, Policy, Rule
from .toml_file import TomlFile

_KEYS: Final = ("allow", "directories")


def read_policy(file: TomlFile, gathered: Gathered) -> Policy:
    """What the table says; mistakes are gathered."""
    table: dict[str, Any] = {}
    allow: dict[str, Any] = {}
    with gathered:
        table = file.table(("control",), file.document.get("control", {}))
    for key in table:
        if key not in _KEYS:
            gathered.errors.append(file.error(("control", key), unknown("key", key, _KEYS)))
    with gathered:
        allow = file.table(("control", "allow"), table.get("allow", {}))
    rules = []
    for who, requests in allow.items():
        with gathered:
            try:
                rules.append(_rule(who, requests))
            except ConfigError as error:
                raise file.error(("control", "allow", who), str(error)) from None
    directories = []
    value = table.get("directories", [])
    if not isinstance(value, list):
        gathered.errors.append(file.error(("control", "directories"), "is a list of absolute paths"))
        value = []
    for number, each in enumerate(value):
        if isinstance(each, str) and Path(each).is_absolute() and "\0" not in each:
            directories.append(Path(each))
        else:
            message = f"{each!r} is not the absolute path of a directory"
            gathered.errors.append(file.error(("control", "directories", number), message))
    return Policy(tuple(rules), tuple(directories))


def _rule(who: str, requests: Any) -> Rule:
    """Raises ConfigError."""
    if not isinstance(requests, list) or not all(isinstance(each, str) for each in requests):
        raise ConfigError(f"is a list of requests: {', '.join(REQUESTS)}, or {ALL}")
    for each in requests:
        if each not in (*REQUESTS, ALL):
            raise ConfigError(unknown("request", each, (*REQUESTS, ALL)))
    named = frozenset(REQUESTS if ALL in requests else requests)
    return Rule(who, named, **who_is(who))


def who_is(who: str) -> dict[str, int]:
    """The number that a user, `@` and a group, or ANYONE stands for: `uid`, `gid` or nothing. Raises ConfigError."""
    if who == ANYONE:
        return {}
    return {"gid": group_id(who[1:])} if who.startswith("@") else {"uid": _user_id(who)}


def _user_id(user: str) -> int:
    missing = f'there is no user {user!r} on this host; a group is written "@NAME", anyone "{ANYONE}"'
    return number_of(user, lambda name: pwd.getpwnam(name).pw_uid, missing)
