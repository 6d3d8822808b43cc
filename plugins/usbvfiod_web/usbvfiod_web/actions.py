"""What the page can do: attach, detach, and move a device from one VM to another, wholly or not at all."""

from __future__ import annotations

import asyncio
from typing import Final

from usbvfiod_core.daemon.host_devices import identity

from .link import Json, Lost, Refused
from .servers import Server, Servers
from .view import usable

SETTLE: Final = 10.0
"""Seconds for a device to be plugged in after the server has answered: it may be opened slowly, and a device that
another server has just closed may be away for a moment."""

_ON_THE_WAY: Final = ("opening", "waiting", "retrying", "leaving")


class Actions:
    """The actions on `servers`, each of which answers with what it has done, for people. All raise Refused and Lost."""

    def __init__(self, servers: Servers) -> None:
        self._servers = servers
        self._moving: set[tuple[str, int]] = set()

    async def attach(self, vm: str, device: str) -> str:
        """Plug `device` into a VM: the `id` of one of the host's, a specification, or the number of an attachment."""
        server = self._servers[vm]
        listed = usable(server.devices, device)
        if listed is None and self._servers.lists(device):
            # A device of the host that this server has not listed to us yet; never a specification of the same text.
            listed = usable((await server.request("devices"))["devices"], device)
            if listed is None:
                raise Refused("device", f"{vm} does not see {device}")
        answer = await server.request("attach", device=listed["device"] if listed is not None else device)
        return f"{vm}: {_told(answer['attachment'])}"

    async def detach(self, vm: str, number: int) -> str:
        """Unplug an attachment."""
        attachment = (await self._servers[vm].request("detach", attachment=str(number)))["attachment"]
        return f"{vm}: {attachment['product'] or attachment['spec']} is detached"

    async def move(self, vm: str, number: int, to: str) -> str:
        """Detach from one VM and attach to another. If that refuses, the first one gets it back."""
        source, target = self._servers[vm], self._servers[to]
        attachment = source.attachments.get(number)
        if attachment is None:
            raise Refused("not-attached", f"{vm} has no attachment {number}")
        if source is target:
            raise Refused("request", f"it is at {vm} already")
        if (vm, number) in self._moving:
            raise Refused("request", "it is being moved already")
        self._moving.add((vm, number))
        try:
            return await self._servers.transact(self._move(source, attachment, target))
        finally:
            self._moving.discard((vm, number))

    async def _move(self, source: Server, attachment: Json, target: Server) -> str:
        number = str(attachment["number"])
        await self._hopeless(source, attachment, target)
        # Held and not forgotten: with it the server keeps the descriptors that it was given.
        await source.request("detach", attachment=number, hold=True)
        try:
            arrived = await self._plug(target, attachment["spec"])
        except (Refused, Lost) as error:
            self._servers.say(target.name, f"does not take {attachment['product']}: {error}", bad=True)
            try:
                await self._plug(source, number)
            except (Refused, Lost) as worse:
                raise Refused("device", f"{target.name}: {error}; {source.name} has not got it back: {worse}") from None
            raise Refused("device", f"{target.name}: {error}; {source.name} has it back") from None
        if not attachment["configured"]:
            try:
                await source.request("detach", attachment=number)
            except (Refused, Lost):
                pass  # it has ended, or somebody was faster
        return f"{target.name}: {_told(arrived)}"

    async def _hopeless(self, source: Server, attachment: Json, target: Server) -> None:
        """Raises Refused if a move would come to nothing, before anything is touched: the new server cannot use the
        device, or the old one could not open it again."""
        if attachment["device"] is None:
            return
        wanted = identity(attachment["device"])
        for server, what in ((target, "cannot use it"), (source, "could not take it back")):
            device = usable((await server.request("devices"))["devices"], wanted)
            if device is not None and device["note"]:
                raise Refused("device", f"{server.name} {what}: {device['note']}")

    async def _plug(self, server: Server, device: str) -> Json:
        """Attach, and wait until it is plugged in. Raises Refused with the reason, and has then detached it again, but
        for the attachment that `device` is the number of."""
        attachment: Json = (await server.request("attach", device=device))["attachment"]
        number = attachment["number"]
        if attachment["state"] in ("held", "asking"):  # by its own specification: mode=manual, mode=ask
            attachment = (await server.request("attach", device=str(number)))["attachment"]
        deadline = asyncio.get_running_loop().time() + SETTLE
        while attachment["state"] in _ON_THE_WAY:
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0 or not server.up:
                break
            version = self._servers.version
            if server.attachments.get(number, attachment)["state"] == attachment["state"]:
                await self._servers.wait(version, left)
            attachment = server.attachments.get(number, attachment)
        if attachment["state"] == "plugged":
            return attachment
        if device != str(number):
            try:
                await server.request("detach", attachment=str(number))
            except (Refused, Lost):
                pass  # then it is not there either
        raise Refused("device", attachment["reason"] or f"it is {attachment['state']}")


def _told(attachment: Json) -> str:
    """Where an attachment stands."""
    product = attachment["product"] or attachment["spec"]
    if attachment["state"] == "plugged":
        return f"{product} is plugged into port {attachment['port']}"
    return f"{product} is {attachment['state']}" + (f": {attachment['reason']}" if attachment["reason"] else "")
