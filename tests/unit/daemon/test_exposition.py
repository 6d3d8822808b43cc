"""The metrics as text, read by the official library's parsers."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests import exposed
from tests.exposed import Samples, value
from usbvfiod_core.daemon.exposition import METRICS, MOST_ENDPOINTS, Exposition, exposition
from usbvfiod_core.usb.transfer import TransferType
from usbvfiod_core.xhci import spec
from usbvfiod_core.xhci.statistics import EndpointCounters, EndpointStatistics

ROOT = Path(__file__).resolve().parents[3]


def endpoint(**more: Any) -> dict[str, Any]:
    found = {"slot_id": 1, "address": 0x81, "type": "bulk", "state": "Running", "transfers": 6, "bytes": 3072}
    return {**found, "errors": {}, "missed": 0, "queued": 2, "latency": [], "nanoseconds": 0, **more}


def attachment(number: int = 1, **more: Any) -> dict[str, Any]:
    device = {"vendor_id": 0x1209, "product_id": 1}
    found = {"number": number, "name": "", "spec": "virtual:flash?image=/srv/secret.img", "state": "plugged", "port": 9}
    return {**found, "plugs": 1, "product": "Drive", "device": device, "endpoints": [endpoint()], **more}


def status(*attachments: dict[str, Any], **server: Any) -> dict[str, Any]:
    own = {"usbvfiod": "0.1.0", "started": 1.5e9, "cpu_seconds": 0.5, "lateness": {"latency": [], "nanoseconds": 0}}
    memory = {"shared": 4096, "unshared": 0}
    return {"server": {**own, **server}, "client": None, "memory": memory, "attachments": list(attachments)}


def samples(servers: dict[str, dict[str, Any] | None]) -> Samples:
    """Those of both formats, which must say the same."""
    found = exposed.samples(exposition(servers))
    assert found == exposed.samples(exposition(servers, openmetrics=True), openmetrics=True)
    return found


def test_a_server() -> None:
    found = samples({"web": status(client={"name": "QEMU"}), "db": None})
    assert value(found, "up", server="web") == 1
    assert value(found, "up", server="db") == 0
    assert value(found, "client_connected") == 0
    assert value(found, "start_time_seconds") == 1.5e9
    assert value(found, "cpu_seconds_total") == 0.5
    assert value(found, "guest_memory_bytes", shared="true") == 4096
    assert value(found, "build_info", version="0.1.0") == 1


def test_nobody_at_all() -> None:
    assert exposition({}) == ""
    assert exposition({}, openmetrics=True) == "# EOF\n"


def test_attachments_by_state() -> None:
    states = ("plugged", "plugged", "waiting", "refused")
    found = samples({"web": status(*(attachment(number, state=each) for number, each in enumerate(states)))})
    counts = {
        dict(labels)["state"]: int(each) for (name, labels), each in found.items() if name.endswith("attachments")
    }
    assert counts == {
        "waiting": 1, "asking": 0, "held": 0, "opening": 0, "plugged": 2, "leaving": 0, "retrying": 0, "refused": 1
    }  # fmt: skip
    assert [value(found, "attachment_plugged", attachment=each) for each in "0123"] == [1, 1, 0, 0]


def test_an_endpoint() -> None:
    latency = [0] * 13 + [1, 2, 0, 3]  # less than 8 µs, 16 µs, and 66 µs
    found = samples({"web": status(attachment(endpoints=[endpoint(latency=latency, nanoseconds=250_000, missed=5)]))})
    labels = {"server": "web", "attachment": "1", "device": "virtual:flash", "endpoint": "0x81", "type": "bulk"}
    assert value(found, "endpoint_transfers_total", **labels) == 6
    assert value(found, "endpoint_bytes_total", **labels) == 3072
    assert value(found, "endpoint_queued_transfers", **labels) == 2
    for le, count in (("8.192e-06", 1), ("3.2768e-05", 3), ("0.000131072", 6), ("+Inf", 6)):
        assert value(found, "endpoint_latency_seconds_bucket", le=le, **labels) == count
    assert value(found, "endpoint_latency_seconds_count", **labels) == 6
    assert value(found, "endpoint_latency_seconds_sum", **labels) == 250e-6
    assert not [name for name, _ in found if "missed" in name], "only of isochronous endpoints"


def test_times_beyond_the_last_bucket() -> None:
    found = samples({"web": status(attachment(endpoints=[endpoint(latency=[1] + [0] * 40 + [1], nanoseconds=2**41)]))})
    assert value(found, "endpoint_latency_seconds_bucket", le="2.147483648") == 1
    assert value(found, "endpoint_latency_seconds_bucket", le="+Inf") == 2


def test_errors_and_misses() -> None:
    bad = endpoint(type="isochronous", missed=7, errors={"Stall": 2, "Transaction Error": 1})
    found = samples({"web": status(attachment(endpoints=[bad]))})
    assert value(found, "endpoint_errors_total", error="Stall") == 2
    assert value(found, "endpoint_errors_total", error="Transaction Error") == 1
    assert value(found, "endpoint_missed_intervals_total") == 7


def test_lateness() -> None:
    found = samples({"web": status(lateness={"latency": [0] * 20 + [9, 1, 0, 0], "nanoseconds": 3_000_000})})
    assert value(found, "loop_lateness_seconds_bucket", le="0.002097152") == 10
    assert value(found, "loop_lateness_seconds_count") == 10
    assert value(found, "loop_lateness_seconds_sum") == 0.003


def test_what_has_not_changed_is_kept_and_what_has_is_not() -> None:
    """Whatever happens between two questions, the answer is what somebody is told who asks for the first time."""
    idle = EndpointStatistics(1, 1, 0x81, "bulk", "Running", 6, 3072, latency=[0] * 13 + [6])
    busy = replace(idle, bytes=4096, errors={"Stall": 1})

    def told(*statistics: EndpointStatistics, **more: Any) -> dict[str, Any]:
        return attachment(number=2, endpoints=[(each.address, each, each.queued) for each in statistics], **more)

    first = attachment(endpoints=[(0x81, idle, 2)])
    kept = Exposition()
    for attachments in (
        [first],
        [first, told(idle)],
        [first, told(busy)],
        [first, told(idle, busy)],
        [first, told(idle, state="waiting")],
        [first, told(idle, product="another")],
        [told(idle)],
        [],
        [first, told(idle)],
    ):
        for openmetrics in (False, True):
            for called in ("web", "db"):
                asked = {called: status(*attachments)}
                assert kept.parts(asked, openmetrics=openmetrics) == Exposition().parts(asked, openmetrics=openmetrics)


def test_whatever_an_endpoint_counts_is_told_at_once() -> None:
    """The server gives its counters themselves: it is their content that may have changed."""
    counters = EndpointCounters(TransferType.ISOCHRONOUS)
    queued = 0

    def of_nothing() -> None:
        counters.latency[0] += 1

    def later() -> None:
        counters.latency[20] += 1
        counters.nanoseconds += 1 << 19

    def moved() -> None:
        counters.bytes += 512

    def missed() -> None:
        counters.error(spec.CC_MISSED_SERVICE)

    def failed() -> None:
        counters.error(spec.CC_STALL)

    def taken() -> None:
        nonlocal queued
        queued += 1

    def another() -> None:
        counters.type = TransferType.INTERRUPT

    kept, before = Exposition(), b""
    for change in (of_nothing, later, moved, missed, failed, failed, taken, another):
        change()
        asked = {"web": status(attachment(endpoints=[(0x81, counters, queued)]))}
        told = b"".join(kept.parts(asked))
        assert told != before, change
        assert told == b"".join(Exposition().parts(asked)), change
        before = told
    assert b'error="Stall"} 2' in before


@pytest.mark.parametrize(
    "product", ['a "quoted" \\ name', "two\nlines", "% d %s %(x)s", "\x1b[31m", "\udc80", "µ 键盘 {}"]
)
def test_names_are_hostile(product: str) -> None:
    """No name forges a sample, or breaks a line; and none is lost."""
    found = samples({'"}\n': status(attachment(name=product, product=product))})
    [labels] = [dict(labels) for name, labels in found if name == "usbvfiod_attachment_info"]
    assert labels["device"] == labels["product"]
    assert "\n" not in labels["product"]
    assert "\x1b" not in labels["product"]
    assert len(labels["product"]) >= len(product)
    assert value(found, "endpoint_latency_seconds_count") == 0


def test_a_server_forges_no_sample_by_its_endpoints() -> None:
    """The server of `usbvfiod metrics` may be another user's."""
    forged = 'bulk"} 1\nusbvfiod_up{server="db"} 1\nusbvfiod_up{a="'
    found = samples({"web": status(attachment(endpoints=[endpoint(type=forged, errors={forged: 3})])), "db": None})
    assert value(found, "up", server="db") == 0
    assert value(found, "endpoint_errors_total") == 3


@pytest.mark.parametrize("text", ["x" * 100_000, "\n" * 100_000, '"' * 100_000])
def test_names_are_no_longer_than_a_string_of_a_device(text: str) -> None:
    wide = attachment(name="", spec=f"usbip:{text}", product=text, endpoints=[endpoint(type=text, errors={text: 1})])
    assert max(map(len, exposition({text: status(wide, usbvfiod=text)}).splitlines())) < 4096
    string = "µ" * 126
    assert f'product="{string}"' in exposition({"web": status(attachment(product=string))})


def test_there_are_no_more_endpoints_than_a_controller_has() -> None:
    many = [attachment(number, endpoints=[]) for number in range(MOST_ENDPOINTS + 1)]
    for wrong, what in (
        (many, "attachments"),
        ([attachment(endpoints=[endpoint()] * (MOST_ENDPOINTS + 1))], "endpoints"),
        ([attachment(endpoints=[endpoint(errors={str(each): 1 for each in range(MOST_ENDPOINTS + 1)})])], "errors"),
    ):
        with pytest.raises(ValueError, match=f"it says that it has {MOST_ENDPOINTS + 1} {what}"):
            exposition({"web": status(*wrong)})


def test_no_options_of_a_specification_are_told() -> None:
    assert "secret" not in exposition({"web": status(attachment())})


def test_attachments_that_are_called_the_same() -> None:
    found = samples({"web": status(attachment(1), attachment(2))})
    assert value(found, "attachment_plugged", attachment="1") == value(found, "attachment_plugged", attachment="2") == 1


def test_a_device_that_was_never_there() -> None:
    found = samples({"web": status(attachment(device=None, state="waiting", port=0, product="", endpoints=[]))})
    assert value(found, "attachment_info", id="0000:0000", port="0") == 1


def test_names_follow_the_conventions() -> None:
    """prometheus.io/docs/practices/naming: base units, and suffixes that say what a number is."""
    for name, kind in METRICS.items():
        assert re.fullmatch(r"usbvfiod(_[a-z]+)+", name)
        assert name.endswith("_total") == (kind == "counter")
        assert name.endswith("_info") == (kind == "info")
        assert not re.search("milli|micro|kilo|percent|count|sum$|bucket$", name)
    text = exposition({"web": status(attachment())})
    for name, kind in METRICS.items():
        if name in text:
            assert f"# HELP {name} " in text
            assert f"# TYPE {name} {'gauge' if kind == 'info' else kind}\n" in text


def test_every_metric_is_documented() -> None:
    page = (ROOT / "docs/metrics.md").read_text()
    assert set(re.findall(r"^\| `(usbvfiod_\w+)", page, re.MULTILINE)) == set(METRICS)


def test_the_dashboard_asks_for_what_there_is() -> None:
    """Each query of the dashboard names metrics and labels that exist, and each metric is in one."""
    dashboard = json.loads((ROOT / "contrib/grafana/usbvfiod.json").read_text())
    everything = endpoint(type="isochronous", errors={"Stall": 1}, latency=[1], missed=1)
    text = exposition({"web": status(attachment(endpoints=[everything]), lateness={"latency": [1], "nanoseconds": 1})})
    there: dict[str, set[str]] = {}
    for name, labels in exposed.samples(text):
        there.setdefault(name, set()).update(key for key, _ in labels)
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    queries += [each["query"]["query"] for each in dashboard["templating"]["list"] if each["type"] == "query"]
    asked = set()
    for query in queries:
        names = re.findall(r"usbvfiod_\w+", query)
        assert names, query
        assert set(names) <= set(there), query
        asked |= set(names)
        used = set(re.findall(r"(\w+)(?:=~|!=|=)\"", query))
        for group in re.findall(r"(?:by|on) \(([^)]*)\)", query):
            used |= set(group.split(", "))
        assert used <= there[names[0]], query
    families = {name.removesuffix("_bucket") for name in asked}
    assert families == set(METRICS)
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
