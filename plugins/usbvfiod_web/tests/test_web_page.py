"""The page itself, in headless Chromium, as a user has it: with a mouse, with the keyboard, on a phone.

Needs Debian's `chromium` and `chromium-driver`. USBVFIOD_REQUIRE_VM=1, as in CI, makes their absence a failure.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from web_browser import Seen, chromium, missing
from web_rig import Page, Rig

pytestmark = pytest.mark.timeout(300)

PHONE, DESK = (390, 844), (1280, 900)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with ExitStack() as stack:
        yield Rig(tmp_path_factory.mktemp("page"), stack)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium with an empty profile. No test leaves anything in its console."""
    if missing() and not os.environ.get("USBVFIOD_REQUIRE_VM"):
        pytest.skip(missing())
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture(scope="module")
def page(rig: Rig) -> Page:
    return rig.page()


@pytest.fixture
def seen(browser: Any) -> Iterator[Seen]:
    seen = Seen(browser)
    seen.size(*DESK)
    yield seen
    browser.get("about:blank")


def test_two_servers_and_a_device(rig: Rig, page: Page, seen: Seen, tmp_path: Path) -> None:
    rig.put("1-2", product="Serial Adapter", serial="A9", driver="ftdi_sio")
    rig.put("1-3", product="Locked Stick", note__db="you may not open it; a udev rule would help: RULE", note__web="no")
    web, db = rig.server("web"), rig.server("db")
    seen.browser.get(page.address)
    assert page.token not in seen.browser.current_url
    seen.wait_for("Serial Adapter", "serial A9")
    seen.wait_for("Serial Adapter", "usable by db, web")
    for name in ("web", "db"):
        seen.wait_for(name, "waits for a VM")
        seen.wait_for(name, "Nothing is attached.")

    # Why one cannot be attached.
    seen.wait_for("Locked Stick", "not usable")
    seen.card("Locked Stick").find_element("tag name", "summary").click()
    seen.wait_for("Locked Stick", "RULE")

    # Attached by a click, and used.
    seen.choose("Serial Adapter", "db")
    seen.press("Attach Serial Adapter")
    seen.wait_for("Serial Adapter", "in db")
    seen.until(lambda: "Serial Adapter is plugged into port 1" in seen.text, "it is not said")
    with db.guest() as driver:
        usb = driver.enumerate(1)

        def rate() -> bool:
            for _ in range(30):
                usb.bulk_in(0x81, 8192)
            return "kB/s" in seen.card("db").text or "MB/s" in seen.card("db").text

        seen.wait_for("db", "running")
        seen.until(rate, "its rate is not seen")

        # Unplugged at the host, and back.
        rig.pull("1-2")
        seen.wait_for("db", "waiting")
        usb.port.wait_disconnected()
        rig.put("1-2", product="Serial Adapter", serial="A9", driver="ftdi_sio")
        seen.wait_for("Serial Adapter", "in db")
        driver.enumerate(1)

    # Captured, into a file of the browser.
    downloads = tmp_path / "downloads"
    behaviour = {"behavior": "allow", "downloadPath": str(downloads)}
    seen.browser.execute_cdp_cmd("Browser.setDownloadBehavior", behaviour)
    seen.press("Capture Serial Adapter")
    seen.press("Stop capture Serial Adapter")
    file = downloads / "db-Serial-Adapter.pcapng"
    seen.until(lambda: file.exists() and file.read_bytes()[:4] == bytes.fromhex("0a0d0d0a"), "it is not downloaded")

    # Moved, by the keyboard alone.
    from selenium.webdriver.common.keys import Keys

    seen.until(lambda: seen.button("Move Serial Adapter"), "it cannot be moved")
    seen.button("Move Serial Adapter").send_keys(Keys.ENTER)
    seen.wait_for("Serial Adapter", "in web")
    seen.wait_for("db", "Nothing is attached.")
    with web.guest() as driver:
        assert driver.enumerate(1).bulk_in(0x81, 512) == bytes(512)

    # A server that is killed and started again under it.
    web.process.kill()
    seen.wait_for("web", "gone")
    seen.wait_for("Serial Adapter", "free")
    rig.server("web")
    seen.wait_for("web", "waits for a VM")
    log = seen.browser.find_element("id", "log").text
    for words in ("has gone", "device removed: shelf:1-2", "device added: shelf:1-2", "Serial Adapter"):
        assert words in log
    assert seen.console() == []


def test_a_phone_and_the_keyboard(rig: Rig, page: Page, seen: Seen) -> None:
    """Nothing is wider than the screen, everything has a name, and Tab reaches every control."""
    seen.size(*PHONE)
    seen.browser.get(page.address)
    seen.wait_for("Serial Adapter", "Attach to")
    seen.card("web").find_element("tag name", "summary").click()
    assert seen.browser.execute_script("return document.documentElement.scrollWidth") <= PHONE[0]
    nameless = seen.browser.execute_script(
        "return [...document.querySelectorAll('button, select, input')].filter((each) => each.checkVisibility() &&"
        " !(each.getAttribute('aria-label') ?? each.labels?.[0]?.textContent ?? each.textContent)).length"
    )
    assert nameless == 0
    small = seen.browser.execute_script(
        "return [...document.querySelectorAll('button, select, input')].filter((each) => each.checkVisibility() &&"
        " each.getBoundingClientRect().height < 36).length"
    )
    assert small == 0
    from selenium.webdriver.common.keys import Keys

    field = seen.card("web").find_element("tag name", "input")
    field.send_keys("virtual:keyboard?name=keys", Keys.ENTER)
    seen.wait_for("web", "keys: usbvfiod Keyboard")
    wanted = {"Detach usbvfiod Keyboard", "Capture usbvfiod Keyboard", "Attach to web", "Attach Serial Adapter"}
    for _ in range(100):
        seen.browser.switch_to.active_element.send_keys(Keys.TAB)
        wanted.discard(seen.browser.execute_script("return document.activeElement.getAttribute('aria-label')"))
        if not wanted:
            break
    assert not wanted
    seen.press("Detach usbvfiod Keyboard")
    seen.wait_for("web", "Nothing is attached.")
    assert seen.console() == []


def test_the_wrong_token_and_another_site(page: Page, seen: Seen) -> None:
    """A page of another origin can neither read nor do anything, though the browser has the cookie."""
    _, _, port = page.host.partition(":")
    seen.browser.get(page.address)
    seen.until(lambda: "Live" in seen.text, "it is not live")
    seen.browser.get(f"http://{page.host}/?token=wrong")
    assert "The token is missing or wrong" in seen.text
    seen.browser.get(f"http://{page.host}/")
    seen.until(lambda: "Live" in seen.text, "the cookie is gone")
    assert [line for line in seen.console() if "403" not in line] == []
    seen.browser.get(f"http://localhost:{port}/")  # the same server by another name: another origin
    assert "The token is missing or wrong" in seen.text
    said = seen.browser.execute_async_script(
        """
        const [address, done] = arguments;
        const said = [];
        const body = '{"vm": "web", "device": "virtual:mouse"}';
        for (const [path, how] of [
          ["events", {}],
          ["do/attach", { method: "POST", headers: { "Content-Type": "application/json" }, body }],
          ["do/attach", { method: "POST", mode: "no-cors", body }],
        ]) {
          try {
            const answer = await fetch(address + path, { credentials: "include", ...how });
            said.push(answer.type === "opaque" ? "opaque" : answer.status);
          } catch (error) { said.push(error.name); }
        }
        done(said);
        """,
        f"http://{page.host}/",
    )
    assert 200 not in said
    view = page.until(lambda view: view["vms"])
    assert all("Mouse" not in each["product"] for vm in view["vms"] for each in vm["attachments"])
    seen.console()  # what was refused is in it
    seen.browser.get(f"http://localhost:{port}/")
    seen.browser.find_element("id", "token").send_keys(page.token + "\n")
    seen.until(lambda: "Live" in seen.text, "the form does not let in")
    seen.console()
