"""Devices that go from one VM to another, and servers that come and go."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from web_rig import Rig, holder, products, vm

KEYS = ("--device", "virtual:keyboard?name=keys")


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with ExitStack() as stack:
        yield Rig(tmp_path, stack)


def number(view: dict[str, Any], name: str, product: str) -> int:
    """Of an attachment."""
    return next(int(each["number"]) for each in vm(view, name)["attachments"] if each["product"] == product)


def test_a_move_is_whole_or_not_at_all(rig: Rig) -> None:
    for port, product in (("1-2", "Adapter"), ("1-3", "Stick")):
        rig.put(port, product=product)
    one = rig.server("one", *KEYS)
    two = rig.server("two", refuses="1-3")
    page = rig.page()
    page.until(lambda view: len(view["devices"]) == 2 and vm(view, "one")["up"] and vm(view, "two")["up"])
    with one.guest() as first, two.guest() as second:
        for port in ("1-2", "1-3"):
            assert page.do("attach", vm="one", device=port)["ok"]
        usb = first.enumerate(2)
        view = page.until(lambda view: holder(view, "1-2") == "one")
        assert page.do("move", vm="one", number=number(view, "one", "Adapter"), to="two") == {
            "status": 200,
            "ok": True,
            "text": "two: Adapter is plugged into port 1",
        }
        usb.port.wait_disconnected()
        assert second.enumerate(1).bulk_in(0x81, 512) == bytes(512)
        view = page.until(lambda view: holder(view, "1-2") == "two")
        assert products(view, "one") == {"usbvfiod Keyboard": "plugged", "Stick": "plugged"}

        # A plugin there refuses it; the guest sees it go and come back, at the same port.
        stick = number(view, "one", "Stick")
        answer = page.do("move", vm="one", number=stick, to="two")
        assert (answer["ok"], "two is not to have it" in answer["text"]) == (False, True)
        assert answer["text"].endswith("one has it back")
        assert first.enumerate(3).bulk_in(0x81, 512) == bytes(512)
        view = page.until(lambda view: holder(view, "1-3") == "one")
        assert (number(view, "one", "Stick"), "Stick" in products(view, "two")) == (stick, False)

        # One of the configuration stays in the list, held, and can be had back.
        keys = number(view, "one", "usbvfiod Keyboard")
        assert page.do("move", vm="one", number=keys, to="two")["ok"]
        view = page.until(lambda view: "usbvfiod Keyboard" in products(view, "two"))
        assert products(view, "one")["usbvfiod Keyboard"] == "held"
        back = number(view, "two", "usbvfiod Keyboard")
        assert "refuses" not in page.do("detach", vm="two", number=back)["text"]
        assert page.do("attach", vm="one", device=str(keys))["ok"]
    assert one.errors == []
    assert [line for line in two.errors if "1-3" not in line] == []


def test_a_server_that_dies_in_the_middle_leaves_the_device_where_it_was(rig: Rig, tmp_path: Path) -> None:
    """It is killed while it opens the device, which the old one has given up by then."""
    rig.put("1-2", product="Adapter")
    slow = tmp_path / "slow"
    slow.touch()
    rig.server("one")
    two = rig.server("two", slow=slow)
    page = rig.page()
    page.until(lambda view: view["devices"] and vm(view, "one")["up"] and vm(view, "two")["up"])
    assert page.do("attach", vm="one", device="1-2")["ok"]
    view = page.until(lambda view: holder(view, "1-2") == "one")
    with ThreadPoolExecutor() as pool:
        move = pool.submit(page.do, "move", vm="one", number=number(view, "one", "Adapter"), to="two")
        view = page.until(lambda view: products(view, "two") == {"Adapter": "opening"})
        assert products(view, "one") == {"Adapter": "held"}
        again = page.do("move", vm="one", number=number(view, "one", "Adapter"), to="two")
        assert again["text"] == "it is being moved already"
        two.process.kill()
        answer = move.result()
    assert (answer["ok"], answer["text"].endswith("; one has it back")) == (False, True), answer
    view = page.until(lambda view: not vm(view, "two")["up"] and holder(view, "1-2"))
    assert (holder(view, "1-2"), products(view, "one")) == ("one", {"Adapter": "plugged"})


def test_a_server_that_is_killed_is_shown_and_comes_back(rig: Rig) -> None:
    rig.put("1-2", product="Adapter")
    one = rig.server("one", *KEYS)
    page = rig.page()
    view = page.until(lambda view: products(view, "one"))
    pid = vm(page.until(lambda view: vm(view, "one").get("pid")), "one")["pid"]
    assert pid == one.process.pid
    one.process.kill()
    view = page.until(lambda view: not vm(view, "one")["up"])
    assert (vm(view, "one")["attachments"], view["devices"], bool(vm(view, "one")["why"])) == ([], [], True)
    again = rig.server("one", *KEYS)
    view = page.until(lambda view: vm(view, "one").get("pid") == again.process.pid and view["devices"])
    assert products(view, "one") == {"usbvfiod Keyboard": "plugged"}
    assert again.terminate() == 0
    page.until(lambda view: not vm(view, "one")["up"])
    assert page.process.terminate() == 0
    assert page.process.log == page.said + "\n"


def test_rates_are_of_what_the_guest_moves(rig: Rig) -> None:
    rig.put("1-2", product="Adapter")
    one = rig.server("one")
    page = rig.page()
    page.until(lambda view: view["devices"])
    assert page.do("attach", vm="one", device="1-2")["ok"]
    with one.guest() as driver:
        usb = driver.enumerate(1)

        def busy(view: dict[str, Any]) -> bool:
            for _ in range(20):
                usb.bulk_in(0x81, 4096)
                usb.bulk_out(0x01, bytes(1024))
            [attachment] = vm(view, "one")["attachments"] or [{"rate": None}]
            return bool(attachment["rate"] and attachment["rate"][0] > 0)

        [attachment] = vm(page.until(busy), "one")["attachments"]
        to_guest, from_guest, transfers, errors, missed = attachment["rate"]
        assert to_guest >= 3 * from_guest > 0
        assert transfers > 0
        assert (errors, missed) == (0, 0)
        usb.submit_in(0x81, 512)


def test_what_is_unplugged_goes_and_comes_back(rig: Rig) -> None:
    rig.put("1-2", product="Adapter", serial="A")
    rig.put("1-3", product="Bell\x1b[31m\u202ename")
    rig.server("one")
    page = rig.page()
    view = page.until(lambda view: len(view["devices"]) == 2)
    assert view["devices"][1]["name"] == r"Bell\x1b[31m\u202ename"
    assert page.do("attach", vm="one", device="1-2")["ok"]
    page.until(lambda view: holder(view, "1-2") == "one")
    rig.pull("1-2")
    view = page.until(lambda view: "1-2" not in [each["id"] for each in view["devices"]])
    view = page.until(lambda view: products(view, "one") == {"Adapter": "waiting"})
    rig.put("1-2", product="Adapter", serial="A")
    page.until(lambda view: holder(view, "1-2") == "one" and products(view, "one") == {"Adapter": "plugged"})


def packets(capture: bytes) -> int:
    """How many a capture has: its Enhanced Packet Blocks (draft-ietf-opsawg-pcapng, 4.3)."""
    assert capture[:4] == bytes.fromhex("0a0d0d0a")
    found, at = 0, 0
    while at < len(capture):
        kind, length = struct.unpack_from("<II", capture, at)
        assert struct.unpack_from("<I", capture, at + length - 4) == (length,)
        found += kind == 6
        at += length
    return found


def test_a_capture_is_downloaded_while_it_runs(rig: Rig) -> None:
    rig.put("1-2", product='Adapter "x"/../y')
    one = rig.server("one")
    page = rig.page()
    page.until(lambda view: view["devices"])
    assert page.do("attach", vm="one", device="1-2")["ok"]
    with one.guest() as driver, ThreadPoolExecutor() as pool:
        usb = driver.enumerate(1)
        started = page.do("capture", vm="one", number=1)
        assert (started["ok"], started["file"]) == (True, "one-Adapter-x-y.pcapng")
        assert "is being captured already" in page.do("capture", vm="one", number=1)["text"]
        assert page.ask("GET", f"/{started['download']}", Cookie=None)[0] == 403
        file = pool.submit(page.ask, "GET", f"/{started['download']}")
        for _ in range(100):
            usb.bulk_in(0x81, 512)
        page.until(lambda view: vm(view, "one")["attachments"][0]["captured"])
        told = page.do("stop", vm="one", number=1)["text"]
        status, headers, data = file.result()
    assert (status, headers["content-type"]) == (200, "application/vnd.tcpdump.pcap")
    assert headers["content-disposition"] == 'attachment; filename="one-Adapter-x-y.pcapng"'
    assert packets(data) >= 200
    assert f"{packets(data)} packets" in told
    assert page.ask("GET", f"/{started['download']}")[0] == 404
    view = page.until(lambda view: not vm(view, "one")["attachments"][0]["captured"])

    # One that nobody ends is over when either side is.
    for server in (True, False):
        started = page.do("capture", vm="one", number=1)
        assert started["ok"], started
        with ThreadPoolExecutor() as pool:
            file = pool.submit(page.ask, "GET", f"/{started['download']}")
            page.until(lambda view: vm(view, "one")["attachments"][0]["captured"])
            if server:
                one.process.kill()
            else:
                assert page.process.terminate() == 0
            assert file.result()[0] == 200
        if server:
            rig.server("one", "--device", "shelf:1-2")
            view = page.until(lambda view: products(view, "one"))
            assert not vm(view, "one")["attachments"][0]["captured"]
    assert page.process.log == page.said + "\n"
