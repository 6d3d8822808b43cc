"""VFIO_USER_VERSION: what is read out of the client's proposal, and what it is answered.

Every refusal here is fatal: without an agreed version nothing else can be said.
"""

from __future__ import annotations

import json
from errno import EINVAL
from typing import Any, Final, NamedTuple, NoReturn

from ..errors import ClientError
from .wire import DEFAULT_MAX_DMA_MAPS, DEFAULT_PGSIZES, MAJOR, MAX_DATA_XFER_SIZE, MAX_MSG_FDS, MINOR, VERSION_FIELDS

MAX_VERSION_DATA: Final = 4096
"""Largest JSON text, its NUL included, that is looked at; QEMU sends 190 bytes."""

# In the order in which they are left out of a reply that would be longer than the request.
_OFFER: Final = {
    "max_dma_maps": DEFAULT_MAX_DMA_MAPS,
    "pgsizes": DEFAULT_PGSIZES,
    "max_data_xfer_size": MAX_DATA_XFER_SIZE,
    "max_msg_fds": MAX_MSG_FDS,
}
_OBJECTS: Final = ("migration", "twin_socket")
_NUMBER_LIMIT: Final = 1 << 64


class ClientVersion(NamedTuple):
    """What the client said of itself. `name` is a guess from the form of its proposal, for logs and status."""

    name: str
    version: str
    capabilities: dict[str, Any]


def negotiate(payload: bytes) -> tuple[bytes, ClientVersion]:
    """The reply's payload, and who asks. Raises ClientError(EINVAL, fatal) for anything but a sound proposal.

    The reply is version 0.0, the only one that QEMU takes, with those of our capabilities that the client named too. It
    always has version data, which Cloud Hypervisor needs, and is no longer than the request, which QEMU needs.
    """
    if len(payload) < VERSION_FIELDS.size:
        _refuse("the message is shorter than a version")
    major, minor = VERSION_FIELDS.unpack_from(payload)
    if major != MAJOR:
        _refuse(f"version {major}.{minor} is not 0.x")
    capabilities = _capabilities(payload[VERSION_FIELDS.size :])
    offer = {key: value for key, value in _OFFER.items() if key in capabilities}
    data = _encode(offer)
    for key in _OFFER:
        if VERSION_FIELDS.size + len(data) <= len(payload):
            break
        if offer.pop(key, None) is not None:
            data = _encode(offer)
    client = ClientVersion(_guess(minor, capabilities), f"{major}.{minor}", capabilities)
    return VERSION_FIELDS.pack(MAJOR, MINOR) + data, client


def _capabilities(data: bytes) -> dict[str, Any]:
    if not data:
        return {}
    if len(data) > MAX_VERSION_DATA:
        _refuse(f"version data of {len(data)} bytes is longer than {MAX_VERSION_DATA}")
    if data[-1]:
        _refuse("version data does not end with a NUL")
    try:
        proposal = json.loads(data[:-1].decode(), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        _refuse("version data is not JSON")
    if not isinstance(proposal, dict):
        _refuse("version data is not a JSON object")
    capabilities = proposal.get("capabilities", {})
    if not isinstance(capabilities, dict):
        _refuse("the capabilities are not a JSON object")
    for key in _OFFER:
        value = capabilities.get(key, 0)
        if type(value) is not int or not 0 <= value < _NUMBER_LIMIT:  # bool is an int, and none of these is a bool
            _refuse(f"capability {key} is not a number in range")
    for key in _OBJECTS:
        if not isinstance(capabilities.get(key, {}), dict):
            _refuse(f"capability {key} is not an object")
    if not isinstance(capabilities.get("write_multiple", False), bool):
        _refuse("capability write_multiple is not a boolean")
    return capabilities


def _encode(offer: dict[str, int]) -> bytes:
    return json.dumps({"capabilities": offer}, separators=(",", ":")).encode() + b"\0"


def _guess(minor: int, capabilities: dict[str, Any]) -> str:
    keys = set(capabilities)
    if minor == 0 and "write_multiple" in keys:
        return "QEMU"
    if minor == 1 and keys == {"max_msg_fds", "max_data_xfer_size", "migration"}:
        return "Cloud Hypervisor"
    return "vfio-user client"


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _refuse(reason: str) -> NoReturn:
    raise ClientError(EINVAL, reason, fatal=True)
