"""Which attachment somebody means, whatever it is called by."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

from ..errors import UsbvfiodError, nearest
from .escapes import escaped
from .intents import Attachment
from .matching import describe, matching

REMEMBERED: Final = 64
"""Names of attachments that were detached."""


class NotAttached(UsbvfiodError):
    """No attachment is meant, or more than one."""


class Lookup:
    """Among `attachments`, as they are when something is asked; `backends` are the names that an address may have in
    front. On the loop's thread."""

    def __init__(self, attachments: Iterable[Attachment], backends: Collection[str]) -> None:
        self._attachments = attachments
        self._backends = backends
        self.gone: dict[str, str] = {}
        """The specifications of those that were detached and are not there any more, by name, the latest last."""

    def named(self, who: str) -> Attachment | None:
        """The attachment of this number, name or specification."""
        who = escaped(who)
        for attachment in self._attachments:
            if who in (str(attachment.number), attachment.spec.name, attachment.spec.text):
                return attachment
        return None

    def find(self, who: str) -> Attachment:
        """The attachment that somebody means by its number, name or specification, or by an address of its device.

        Raises NotAttached.
        """
        named = self.named(who)
        if named is not None:
            return named
        backend, _, address = who.partition(":")
        found = [each for each in self._attachments if matching(who, [each.info])]
        if not found and backend in self._backends:
            found = [
                each for each in self._attachments if each.spec.backend == backend and matching(address, [each.info])
            ]
        if len(found) > 1:
            choices = "; ".join(f"{each.number} ({each}, {describe(each.info)})" for each in found)
            raise NotAttached(f"{who} is more than one attachment, give a number: {choices}")
        if not found:
            raise NotAttached(f"there is no attachment {who}{self.hint(who)}; `usbvfiod list` shows what there is")
        return found[0]

    def leaves(self, attachment: Attachment) -> None:
        """It is detached and not kept: whoever looks for it by its name is told how to have it again."""
        name = attachment.spec.name
        if name:
            self.gone.pop(name, None)
            self.gone[name] = attachment.spec.text
            if len(self.gone) > REMEMBERED:
                self.gone.pop(next(iter(self.gone)))

    def hint(self, who: str) -> str:
        """What to say behind the name of an attachment that there is not: which may have been meant, or how to have it
        again."""
        if who in self.gone:
            from shlex import quote  # which only mistakes need

            return f" any more; `usbvfiod attach {quote(self.gone[who])}` plugs it in again"
        near = nearest(who, [each.spec.name for each in self._attachments if each.spec.name])
        return f" ({near})" if near else ""
