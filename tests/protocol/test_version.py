"""VFIO_USER_VERSION: the first message, and every way to get it wrong."""

from __future__ import annotations

import json
from errno import EINVAL

import pytest

from tests.protocol.fakes import Serving
from tests.protocol.raw import RawClient, hello, message, region_read, region_write
from usbvfiod_core.vfio_user import wire


def version(data: bytes, *, major: int = 0, minor: int = 0) -> bytes:
    return message(wire.VERSION, wire.VERSION_FIELDS.pack(major, minor) + data)


def capabilities(value: str) -> bytes:
    return b'{"capabilities":' + value.encode() + b"}\0"


@pytest.mark.parametrize(
    ("proposed", "answered"),
    [
        (
            '{"max_msg_fds":1,"max_data_xfer_size":1048576,"migration":{"pgsize":4096}}',
            ["max_msg_fds", "max_data_xfer_size"],
        ),
        (
            '{"migration":{"max_bitmap_size":268435456,"pgsize":4096},"max_msg_fds":16,"max_data_xfer_size":1048576,'
            '"write_multiple":true,"pgsizes":4096,"max_dma_maps":65535}',
            ["max_msg_fds", "max_data_xfer_size", "max_dma_maps", "pgsizes"],
        ),
        (
            '{"max_msg_fds":8,"max_data_xfer_size":1048576,"twin_socket":{"supported":true}}',
            ["max_msg_fds", "max_data_xfer_size"],
        ),
        ('{"something_new":[1,2,3]}', []),
        ("{}", []),
    ],
)
def test_reply_names_what_both_sides_know(serving: Serving, path: str, proposed: str, answered: list[str]) -> None:
    offer = {"max_msg_fds": 16, "max_data_xfer_size": 1 << 20, "max_dma_maps": 65535, "pgsizes": 4096}
    request = version(capabilities(proposed))
    with RawClient(path, greet=False) as client:
        reply = client.ask(request)
        assert wire.VERSION_FIELDS.unpack_from(reply.payload) == (0, 0)
        assert reply.payload[-1] == 0
        assert json.loads(reply.payload[4:-1]) == {"capabilities": {key: offer[key] for key in answered}}
        assert len(reply.payload) + 16 <= len(request)
        assert client.alive()


def test_reply_is_cut_to_the_length_of_the_request(serving: Serving, path: str) -> None:
    request = version(capabilities('{"max_msg_fds":1,"pgsizes":0,"max_dma_maps":1}'))
    with RawClient(path, greet=False) as client:
        reply = client.ask(request)
        assert json.loads(reply.payload[4:-1]) == {"capabilities": {"max_msg_fds": 16, "pgsizes": 4096}}
        assert len(reply.payload) + 16 <= len(request)


def test_reply_has_version_data_even_if_the_request_has_none(serving: Serving, path: str) -> None:
    with RawClient(path, greet=False) as client:
        assert client.ask(version(b"")).payload[4:] == b'{"capabilities":{}}\0'
        assert client.alive()


@pytest.mark.parametrize("minor", [1, 2, 65535])
def test_later_minor_versions_are_answered_with_ours(serving: Serving, path: str, minor: int) -> None:
    with RawClient(path, greet=False) as client:
        assert wire.VERSION_FIELDS.unpack_from(client.ask(version(capabilities("{}"), minor=minor)).payload) == (0, 0)


@pytest.mark.parametrize(
    "request_bytes",
    [
        pytest.param(version(capabilities("{}"), major=1), id="major version 1"),
        pytest.param(message(wire.VERSION, b"\0\0\0"), id="shorter than a version"),
        pytest.param(version(b"{}"), id="no NUL"),
        pytest.param(version(b"{\0"), id="not JSON"),
        pytest.param(version(b"\0"), id="empty text"),
        pytest.param(version(b"[]\0"), id="not an object"),
        pytest.param(version(b"\xff\xfe{}\0"), id="not UTF-8"),
        pytest.param(version(b"{}\0{}\0"), id="NUL inside"),
        pytest.param(version(capabilities("[]")), id="capabilities not an object"),
        pytest.param(version(capabilities("null")), id="capabilities null"),
        pytest.param(version(capabilities('{"max_msg_fds":"x"}')), id="text for a number"),
        pytest.param(version(capabilities('{"max_msg_fds":-1}')), id="negative number"),
        pytest.param(version(capabilities('{"max_msg_fds":1e9}')), id="number with a fraction"),
        pytest.param(version(capabilities('{"max_msg_fds":true}')), id="boolean for a number"),
        pytest.param(version(capabilities('{"max_data_xfer_size":99999999999999999999}')), id="huge number"),
        pytest.param(version(capabilities('{"pgsizes":NaN}')), id="NaN"),
        pytest.param(version(capabilities('{"max_dma_maps":Infinity}')), id="Infinity"),
        pytest.param(version(capabilities('{"migration":1}')), id="number for an object"),
        pytest.param(version(capabilities('{"twin_socket":[]}')), id="list for an object"),
        pytest.param(version(capabilities('{"write_multiple":1}')), id="number for a boolean"),
        pytest.param(version(b"[" * 4000 + b"\0"), id="nested lists"),
        pytest.param(version(b'{"a":' * 800 + b"\0"), id="nested objects"),
        pytest.param(version(b'{"a":' + b"9" * 4000 + b"}\0" + b" "), id="digits and no NUL"),
    ],
)
def test_unsound_proposal_is_refused_and_the_connection_closed(
    serving: Serving, path: str, request_bytes: bytes
) -> None:
    with RawClient(path, greet=False) as client:
        assert client.errno(request_bytes) == EINVAL
        assert client.ended()
    with RawClient(path) as client:
        assert client.alive()


def test_version_data_above_the_limit_is_not_even_read(serving: Serving, path: str) -> None:
    with RawClient(path, greet=False) as client:
        client.send(wire.HEADER.pack(1, wire.VERSION, 16 + 4 + 4097, 0, 0))
        assert client.ended()


def test_file_descriptors_with_the_version_are_refused(serving: Serving, path: str, memfd: int) -> None:
    with RawClient(path, greet=False) as client:
        assert client.errno(hello(), [memfd]) == EINVAL
        assert client.ended()


@pytest.mark.parametrize("command", [*range(2, 20), 0, 65535])
def test_other_commands_before_the_version_close_the_connection(serving: Serving, path: str, command: int) -> None:
    with RawClient(path, greet=False) as client:
        client.send(message(command, bytes(64)))
        assert client.ended()
    assert serving.controller.accesses == []


def test_register_accesses_before_the_version_do_nothing(serving: Serving, path: str) -> None:
    for access in (region_read(0, 0, 4), region_write(0, 0, bytes(4)), region_write(0, 0, bytes(4), flags=0x10)):
        with RawClient(path, greet=False) as client:
            client.send(access)
            assert client.ended()
    assert serving.controller.accesses == []


def test_second_version_is_refused_and_changes_nothing(client: RawClient) -> None:
    assert client.errno(hello()) == EINVAL
    assert client.alive()


def test_client_is_known_by_its_proposal(serving: Serving, path: str) -> None:
    assert serving.server.client is None
    with RawClient(path, greet=False) as client:
        client.ask(
            version(capabilities('{"max_msg_fds":1,"max_data_xfer_size":9,"migration":{"pgsize":4096}}'), minor=1)
        )
        facts = serving.server.client
        assert facts is not None
        assert (facts.name, facts.version) == ("Cloud Hypervisor", "0.1")
        assert facts.pid > 0
