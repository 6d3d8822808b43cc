"""Who besides the server's own user may connect to a socket: its group and its mode, as the user writes them."""

from __future__ import annotations

import grp
import os
import pwd
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from ..errors import ConfigError

OWNER_ONLY: Final = 0o600
WITH_GROUP: Final = 0o660
_WRITE: Final = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True, slots=True)
class SocketAccess:
    """The group and the mode of a socket; `gid` None leaves it in the group of whoever makes it."""

    mode: int = OWNER_ONLY
    gid: int | None = None

    def apply(self, path: str) -> None:
        """Give these to the socket at `path`, which was made with OWNER_ONLY and does not listen yet. Nobody else can
        connect before this is done. Raises ConfigError."""
        if self == OWN_USER:
            return
        try:
            fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise ConfigError(f"socket path {path}: {error.strerror}") from None
        try:
            status = os.fstat(fd)
            if not stat.S_ISSOCK(status.st_mode) or status.st_uid != os.geteuid():
                raise ConfigError(f"socket path {path}: somebody has put something else there")
            itself = f"/proc/self/fd/{fd}"  # not the path, which could be another's by now
            if self.gid is not None and self.gid != status.st_gid:
                os.chown(itself, -1, self.gid)
            os.chmod(itself, self.mode)
        except PermissionError as error:
            if self.gid is None:
                raise ConfigError(f"socket path {path} cannot be opened to others: {error.strerror}") from None
            user, group = user_name(os.geteuid()), group_name(self.gid)
            raise ConfigError(
                f"socket path {path} cannot be given to group {group}: user {user} is not in it; "
                f"`usermod -aG {group} {user}`, or SupplementaryGroups={group} in a unit, changes that"
            ) from None
        except OSError as error:
            raise ConfigError(f"socket path {path} cannot be opened to others: {error.strerror}") from None
        finally:
            os.close(fd)

    def cautions(self, path: str) -> Iterator[str]:
        """What may not be meant so, for people."""
        place = os.path.dirname(os.path.abspath(path))
        if self.mode & stat.S_IWOTH:
            yield f"every user of this host may connect to {path}, as its mode {self.mode:04o} says"
        elif self.gid is not None and (closed := _closed_to(self.gid, place)):
            yield f"group {group_name(self.gid)} cannot reach {path}: it may not enter {closed}"
        status = _status(place)
        if status is not None and status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
            yield f"every user of this host may put another socket in the place of {path}: {place} is open to all"


OWN_USER: Final = SocketAccess()


def socket_access(group: str | None, mode: str | None) -> SocketAccess:
    """What the options say; a group without a mode may connect. Raises ConfigError."""
    gid = None if group is None else group_id(group)
    if mode is None:
        return SocketAccess(OWNER_ONLY if gid is None else WITH_GROUP, gid)
    number = parse_mode(mode)
    if gid is not None and not number & stat.S_IWGRP:
        raise ConfigError(f"mode {mode} lets nobody of group {group} connect, which takes write permission; use 0660")
    return SocketAccess(number, gid)


def access_mistakes(name: str, group: str | None, mode: str | None) -> Iterator[tuple[str, str]]:
    """What is wrong with the options `NAME-group` and `NAME-mode`, each mistake with its key."""
    for key, value, check in ((f"{name}-group", group, group_id), (f"{name}-mode", mode, parse_mode)):
        try:
            if value is not None:
                check(value)
        except ConfigError as error:
            yield key, f"{key}: {error}"
            return
    try:
        socket_access(group, mode)
    except ConfigError as error:
        yield f"{name}-mode", f"{name}-mode: {error}"


def parse_mode(text: str) -> int:
    """A mode in octal digits, under which somebody can connect. Raises ConfigError."""
    if not re.fullmatch("0?[0-7]{3}", text):
        raise ConfigError(f"a socket's mode is three octal digits such as 0660, not {text!r}")
    mode = int(text, 8)
    if not mode & _WRITE:
        raise ConfigError(f"mode {text} lets nobody connect, which takes write permission; use 0660 for user and group")
    return mode


def group_id(group: str) -> int:
    """The number of a group that is given by name or number. Raises ConfigError."""
    missing = f"there is no group {group!r} on this host; `getent group` lists them"
    return number_of(group, lambda name: grp.getgrnam(name).gr_gid, missing)


def number_of(name: str, look_up: Callable[[str], int], missing: str) -> int:
    """The number of a user or a group, which may be given as one. Raises ConfigError with `missing`."""
    if re.fullmatch("[0-9]{1,10}", name) and int(name) < 0xFFFF_FFFF:
        return int(name)
    try:
        return look_up(name)
    except (KeyError, ValueError, OSError):
        raise ConfigError(missing) from None


def group_name(gid: int) -> str:
    """Its name, or its number if it has none."""
    try:
        return grp.getgrgid(gid).gr_name
    except (KeyError, OSError):
        return str(gid)


def user_name(uid: int) -> str:
    """Its name, or its number if it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OSError):
        return str(uid)


def _closed_to(gid: int, place: str) -> str:
    """The first directory on the way to `place` that a group may not enter, as far as the modes tell; else empty."""
    place = os.path.realpath(place)
    above = [place]
    while above[0] != "/":
        above.insert(0, os.path.dirname(above[0]))
    for each in above:
        status = _status(each)
        if status is None:
            return ""
        allowed = stat.S_IXOTH | (stat.S_IXGRP if status.st_gid == gid else 0)
        if not status.st_mode & allowed and not _has_acl(each):
            return each
    return ""


def _has_acl(place: str) -> bool:
    try:
        return "system.posix_acl_access" in os.listxattr(place)
    except OSError:
        return False


def _status(place: str) -> os.stat_result | None:
    try:
        return os.stat(place)
    except OSError:
        return None
