"""Metrics over HTTP: what is asked rightly, and what anybody may send."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from http.client import HTTPResponse
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from tests.exposed import samples, value
from tests.unit.daemon import test_exposition
from tests.unit.daemon.test_exposition import status
from usbvfiod_core import ConfigError
from usbvfiod_core.daemon.exposition import OPENMETRICS, TEXT
from usbvfiod_core.daemon.metrics_address import MetricsAddress, metrics_address
from usbvfiod_core.daemon.metrics_client import IDLE, MAX_READS, MAX_REQUEST, PATIENCE
from usbvfiod_core.daemon.metrics_socket import MAX_CLIENTS, MetricsSocket
from usbvfiod_core.daemon.server_settings import ServerSettings
from usbvfiod_core.daemon.share import SHARE
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb.transfer import TransferType
from usbvfiod_core.xhci.statistics import EndpointCounters

GET = b"GET /metrics HTTP/1.1\r\nHost: localhost:9742\r\n\r\n"


def attachment(number: int = 1, transfers: int = 6, **more: Any) -> dict[str, Any]:
    """An attachment as the server itself has it."""
    counters = EndpointCounters(TransferType.BULK)
    counters.bytes, counters.latency[13], counters.nanoseconds = 3072, transfers, transfers << 12
    return test_exposition.attachment(number, endpoints=[(0x81, counters, 2)], **more)


class Answer:
    """What was answered: `code`, `headers`, `text`."""

    def __init__(self, data: bytes, method: str = "GET") -> None:
        class Source:
            def makefile(self, mode: str) -> BytesIO:
                return BytesIO(data)

        response: Any = HTTPResponse(Source(), method=method)  # type: ignore[arg-type]
        response.begin()
        self.code: int = response.status
        self.headers: dict[str, str] = {name.lower(): text for name, text in response.getheaders()}
        self.text: str = response.read().decode()


class Caller:
    """A client, which sends what it likes."""

    def __init__(self, loop: StepLoop, address: str | tuple[str, int]) -> None:
        self.loop = loop
        self.socket = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
        self.socket.connect(address)
        if not isinstance(address, str):  # the kernel would wait for an acknowledgement, in real time
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.data = b""
        self.ended = False

    def send(self, data: bytes) -> None:
        try:
            self.socket.send(data)
        except (BrokenPipeError, ConnectionResetError):
            self.ended = True
        self.loop.run_ready()

    def read(self) -> None:
        """Take what is there."""
        try:
            data = self.socket.recv(1 << 20)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        self.data += data
        self.ended |= not data

    def complete(self, method: str) -> bool:
        self.read()
        head, _, body = self.data.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 1 << 30)
        return self.ended or len(body) >= length or (method == "HEAD" and b"\r\n\r\n" in self.data)

    def ask(self, data: bytes = GET, method: str = "GET") -> Answer:
        """The answer to a request."""
        self.data = b""
        self.send(data)
        for _ in range(1000):
            if self.complete(method):
                break
            self.loop.advance(0.01)
        return Answer(self.data, method)

    def is_closed(self) -> bool:
        for _ in range(10):
            self.loop.advance(0.01)
            self.read()
        return self.ended


class Rig:
    def __init__(self, address: MetricsAddress) -> None:
        self.loop = StepLoop()
        self.status = status(attachment(name="stick"))
        self.metrics = MetricsSocket(self.loop, address, lambda: {"web": self.status})
        self.metrics.start()
        listener = self.metrics._acceptor.socket
        assert listener is not None
        self.address: str | tuple[str, int] = listener.getsockname()
        self.callers: list[Caller] = []

    def call(self) -> Caller:
        while self.metrics.resting:  # a full backlog keeps callers waiting, in real time
            self.loop.advance(0.01)
        self.callers.append(Caller(self.loop, self.address))
        self.loop.run_ready()
        return self.callers[-1]

    def works(self) -> None:
        caller = self.call()
        assert value(samples(caller.ask().text), "attachment_plugged", device="stick") == 1
        caller.socket.close()

    def close(self) -> None:
        for caller in self.callers:
            caller.socket.close()
        self.metrics.close()
        self.loop.run_ready()
        assert self.metrics.clients == 0
        assert self.loop.watched == ()
        self.loop.close()


@pytest.fixture(params=["unix", "loopback"])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    address = metrics_address(str(tmp_path / "m.sock") if request.param == "unix" else "127.0.0.1:0")
    rig = Rig(address)
    yield rig
    rig.close()
    assert not (tmp_path / "m.sock").exists()


def test_scraping(rig: Rig) -> None:
    caller = rig.call()
    for _ in range(3):  # over one connection
        answer = caller.ask()
        assert (answer.code, answer.headers["content-type"]) == (200, TEXT)
        assert value(samples(answer.text), "attachment_plugged", device="stick") == 1
    assert not caller.is_closed()


def test_the_same_request_again_is_answered_the_same(rig: Rig) -> None:
    """The second time h11 is not asked, whose head of an answer it has; but what is told is new."""
    caller = rig.call()
    rig.status = status()
    heads = []
    for transfers in (1, 22, 333):
        answer = caller.ask()
        rig.status = status(attachment(transfers=transfers))
        heads.append(caller.data.partition(b"\r\n\r\n")[0])
    lengths = [len(caller.ask().text), *(int(head.partition(b"Content-Length: ")[2].split()[0]) for head in heads)]
    assert len({head.replace(b"%d" % length, b"N") for head, length in zip(heads, lengths[1:], strict=True)}) == 1
    assert value(samples(answer.text), "endpoint_transfers_total") == 22
    assert len(set(lengths)) == 4
    assert caller.ask(GET.replace(b"GET", b"HEAD"), "HEAD").text == ""
    assert caller.ask(GET.replace(b"/metrics", b"/")).code == 404
    assert caller.ask().code == 200
    half = len(GET) // 2
    caller.send(GET[:half])
    assert caller.ask(GET[half:]).code == 200
    assert not caller.is_closed()


@pytest.mark.faults("KeyError")
def test_what_fails_the_second_time(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    caller, was = rig.call(), rig.status
    assert caller.ask().code == 200
    rig.status = {}
    assert caller.ask().code == 500
    assert caplog.text.count("the metrics cannot be told") == 1
    rig.status = was
    assert [caller.ask().code for _ in range(2)] == [200, 200]


def test_openmetrics_for_those_who_want_it(rig: Rig) -> None:
    accepted = b"application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
    answer = rig.call().ask(GET[:-2] + b"Accept: " + accepted + b"\r\n\r\n")
    assert answer.headers["content-type"] == OPENMETRICS
    assert value(samples(answer.text, openmetrics=True), "up") == 1


def test_head(rig: Rig) -> None:
    answer = rig.call().ask(GET.replace(b"GET", b"HEAD"), "HEAD")
    assert (answer.code, answer.text) == (200, "")
    assert int(answer.headers["content-length"]) > 1000


def test_an_older_client(rig: Rig) -> None:
    caller = rig.call()
    assert caller.ask(b"GET /metrics?x=1 HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n").code == 200
    assert caller.is_closed()


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"GET http://localhost/metrics/../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"POST /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc", 405),
        (b"DELETE /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
        (b"PUT /metrics HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n", 405),
        (b"GET /metrics HTTP/1.1\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", 400),
        (b"GET /met\x00rics HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET  /metrics\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),  # TLS
        (b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * MAX_REQUEST, 431),
    ],
)
def test_other_requests(rig: Rig, request_: bytes, code: int) -> None:
    answer = rig.call().ask(request_)
    assert answer.code == code
    assert ("allow" in answer.headers) == (code == 405)
    rig.works()


@pytest.mark.parametrize(
    ("host", "code"),
    [(b"localhost", 200), (b"127.0.0.1:9742", 200), (b"[::1]:9742", 200), (b"LOCALHOST", 200), (b"evil.example", 421),
     (b"127.0.0.1.evil.example:80", 421), (b"169.254.0.1", 421), (b"", 421), (b"[::2]", 421), (b"localhost:x", 421)],
)  # fmt: skip
def test_pages_of_other_hosts_read_nothing_at_a_port(rig: Rig, host: bytes, code: int) -> None:
    """A browser that looks up evil.example may find 127.0.0.1 there. It cannot reach a Unix socket."""
    answer = rig.call().ask(b"GET /metrics HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")
    assert answer.code == (200 if isinstance(rig.address, str) else code)


def test_who_sends_slowly_is_not_waited_for(rig: Rig) -> None:
    slow = rig.call()
    for byte in GET[:8]:
        slow.send(bytes([byte]))
        rig.loop.advance(PATIENCE / 10)
    rig.works()
    rig.loop.advance(PATIENCE)
    assert slow.is_closed()


def test_who_sends_in_too_many_pieces_is_refused(rig: Rig) -> None:
    slow = rig.call()
    for _ in range(3 * MAX_READS):  # some arrive together
        slow.send(b"G")
        rig.loop.advance(0.01)
        slow.read()
        if slow.data:
            break
    assert Answer(slow.data).code == 400
    assert slow.is_closed()
    rig.works()


def test_who_reads_slowly_is_not_waited_for(rig: Rig) -> None:
    rig.status = status(*(attachment(number) for number in range(200)))
    slow = rig.call()
    slow.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow.send(GET)
    rig.loop.advance(PATIENCE / 2)
    assert rig.metrics.clients == 1
    rig.status = status(attachment(name="stick"))
    rig.works()
    rig.loop.advance(PATIENCE if isinstance(rig.address, str) else IDLE)  # the kernel takes all of it over TCP
    assert rig.metrics.clients == 0


def test_a_long_answer_arrives_whole(rig: Rig) -> None:
    rig.status = status(*(attachment(number) for number in range(255)))
    found = samples(rig.call().ask().text)
    assert value(found, "attachment_plugged", attachment="254") == 1


def test_an_idle_connection_is_kept_for_a_while(rig: Rig) -> None:
    caller = rig.call()
    caller.ask()
    rig.loop.advance(IDLE * 0.9)
    assert caller.ask().code == 200
    rig.loop.advance(IDLE * 1.1)
    assert caller.is_closed()


def test_many_connections(rig: Rig) -> None:
    """The one that asks for nothing for longest makes room; whoever scrapes keeps its place."""
    scraper = rig.call()
    for _ in range(3 * MAX_CLIENTS):
        rig.loop.advance(0.1)
        rig.call()
        rig.loop.advance(0.1)
        assert scraper.ask().code == 200
        assert rig.metrics.clients <= MAX_CLIENTS
    assert not scraper.ended


def test_requests_one_after_the_other_without_waiting(rig: Rig) -> None:
    caller = rig.call()
    caller.ask(GET * 3)
    assert caller.is_closed()
    rig.works()


def test_any_bytes(rig: Rig) -> None:
    chance = random.Random(1)
    parts = [GET, b"GET ", b"/metrics", b" HTTP/1.1\r\n", b"Host: localhost\r\n", b"\r\n", b"\x00", b"\xff" * 20, b": "]
    parts += [
        b"Content-Length: 99999999999999999999\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Expect: 100-continue\r\n",
    ]
    parts += [b"Connection: close\r\n", b"Upgrade: h2c\r\n", b"CONNECT x:1 ", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]
    for _ in range(300):
        caller = rig.call()
        for _ in range(chance.randrange(6)):
            caller.send(b"".join(chance.choices(parts, k=chance.randrange(1, 6))))
        rig.loop.advance(0.01)
        caller.read()
        caller.socket.close()
    rig.loop.advance(1)
    rig.works()


def test_a_flood_takes_its_share_of_the_time(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    spent: list[float] = []
    spend = rig.metrics.spent

    def note(seconds: float) -> None:
        spent.append(seconds)
        spend(seconds)

    monkeypatch.setattr(rig.metrics, "spent", note)
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 0.0004
        return now

    started = rig.loop.time()
    callers = [rig.call() for _ in range(8)]
    with monkeypatch.context() as patch:
        patch.setattr("time.thread_time", clock)
        for turn in range(400):
            for index, caller in enumerate(callers):
                if caller.ended or not turn % 10:
                    caller.socket.close()
                    callers[index] = rig.call()
                callers[index].send(GET)
                callers[index].read()
            rig.loop.advance(0.005)
    elapsed = rig.loop.time() - started
    assert 0.5 * SHARE * elapsed < sum(spent) < 1.1 * SHARE * elapsed + 0.01


@pytest.mark.faults("AttributeError", "KeyError")
def test_a_failure_is_said_in_the_log(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    caller, rig.status = rig.call(), {}
    assert caller.ask().code == 500
    assert "the metrics cannot be told" in caplog.text
    rig.status = status(attachment(name="stick"))
    rig.works()


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        metrics = MetricsSocket(StepLoop(), metrics_address(f"127.0.0.1:{port}"), dict)
        with pytest.raises(ConfigError, match=f"cannot listen at http://127.0.0.1:{port}/metrics: Address already in"):
            metrics.start()
        metrics.close()


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("/run/m.sock", MetricsAddress(Path("/run/m.sock"))),
        ("m.sock", MetricsAddress(Path("m.sock"))),
        ("./m:80", MetricsAddress(Path("./m:80"))),
        ("127.0.0.1:80", MetricsAddress(None, "127.0.0.1", 80)),
        ("127.1.2.3:65535", MetricsAddress(None, "127.1.2.3", 65535)),
        ("localhost:0", MetricsAddress(None, "127.0.0.1", 0)),
        ("[::1]:9742", MetricsAddress(None, "::1", 9742)),
    ],
)
def test_addresses(text: str, address: MetricsAddress) -> None:
    assert metrics_address(text) == address


@pytest.mark.parametrize(
    "text",
    ["", "0.0.0.0:80", ":80", "*:80", "192.168.1.1:80", "[::]:80", "example.com:80", "127.0.0.1:", "127.0.0.1:x",
     "127.0.0.1:65536", "128.0.0.1:1", "[::ffff:127.0.0.1]:80", "127.0.0.1.example.com:80", "::1", "[::1]"],
)  # fmt: skip
def test_whatever_others_can_reach_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="metrics"):
        metrics_address(text)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metrics": "0.0.0.0:9742"}, "metrics is the path of a Unix socket, or a loopback address"),
        ({"metrics": "127.0.0.1:99999"}, "99999 is not a TCP port"),
        ({"metrics": "127.0.0.1:9742", "metrics_group": "0"}, "metrics-group is for metrics at a Unix socket"),
        ({"metrics_mode": "0660"}, "metrics-mode is for metrics at a Unix socket"),
        ({"metrics": "/tmp/m.sock", "metrics_mode": "99"}, "a socket's mode is three octal digits"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ServerSettings(**settings)
