"""Makes docs/web.png, the page of `usbvfiod web`: `make recording`, where `chromium` and `chromedriver` are.

Two servers run, a guest reads one of their devices with the test kit's driver, and headless Chromium shows the page.
"""

from __future__ import annotations

import base64
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from web_browser import Seen, chromium, missing
from web_rig import Rig

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "web.png"
LARGEST = 150_000
SIZE = (1200, 780)
HOST = "workshop"
"""A name in the place of this machine's."""


def look(directory: Path) -> bytes:
    """The page when a device moves data, as a PNG."""
    with ExitStack() as stack:
        rig = Rig(directory, stack)
        rig.put("1-2", product="CP2102N USB to UART Bridge", id="10c4:ea60", serial="ec5b31", driver="cp210x")
        rig.put("1-3", product="SkyConnect v1.0", id="10c4:ea61", serial="9a12bc04", driver="usbfs")
        rig.put("1-5", product="YubiKey OTP+FIDO+CCID", id="1050:0407", note__mail="you may not open it")
        in_use = "sdb1 is mounted at /media/backup"
        rig.put("2-1.4", product="Ultra Fit", id="0781:5583", serial="4C531001", driver="usb-storage", in_use=in_use)
        home = rig.server("home", "--device", "shelf:1-3?name=zigbee")
        rig.server("mail", "--device", "virtual:keyboard?name=keys")
        browser = stack.enter_context(chromium(directory / "profile"))
        seen = Seen(browser)
        seen.size(*SIZE)
        browser.get(rig.page().address)
        with home.guest() as driver:
            usb = driver.enumerate(1)

            def moved() -> bool:
                for _ in range(30):
                    usb.bulk_in(0x81, 512)
                # A rate, and a line of it that is worth a look.
                path = "//li[contains(@class, 'card')][.//h3[. = 'home']]//*[name() = 'polyline']"
                points = browser.find_element("xpath", path).get_attribute("points")
                return "kB/s" in seen.card("home").text and len(points.split()) > 12

            seen.until(moved, "its rate is not seen")
            browser.execute_script("document.getElementById('host').textContent = arguments[0]", HOST)
            return base64.b64decode(browser.get_screenshot_as_base64())


def main() -> None:
    if missing():
        print(f"{DOCUMENT.name} stays as it is: {missing()}", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory(prefix="p-") as name:
        picture = look(Path(name))
    assert len(picture) <= LARGEST, f"{len(picture)} bytes are too many"
    DOCUMENT.write_bytes(picture)


if __name__ == "__main__":
    main()
