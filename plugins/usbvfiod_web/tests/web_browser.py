"""The page in headless Chromium, by what a user reads on it and presses."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from usbvfiod_core.testing.limits import scaled, wait_until

PROGRAMS = ("chromium", "chromedriver")


def missing() -> str:
    """What of Debian's chromium and chromium-driver is not here, in words."""
    names = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"there is no {' and no '.join(names)} (Debian: apt install chromium chromium-driver)" if names else ""


@contextmanager
def chromium(directory: Path) -> Iterator[Any]:
    """Chromium with an empty profile in `directory`."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which(PROGRAMS[0]))
    # No sandbox as root, and in containers; it opens nothing but our page.
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        f"--user-data-dir={directory}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(shutil.which(PROGRAMS[1]))))
    try:
        driver.set_page_load_timeout(scaled(60))
        yield driver
    finally:
        driver.quit()


class Seen:
    """The page, by what a user reads on it."""

    def __init__(self, browser: Any) -> None:
        self.browser = browser

    def size(self, width: int, height: int) -> None:
        self.browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
        )

    def until(self, condition: Callable[[], Any], what: str) -> None:
        """Wait for it, while elements come and go."""
        from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException

        def holds() -> Any:
            try:
                return condition()
            except (NoSuchElementException, StaleElementReferenceException):
                return False

        wait_until(holds, lambda: f"{what}:\n{self.text}\n{self.console()}", pace=0.05)

    @property
    def text(self) -> str:
        return str(self.browser.find_element("tag name", "body").text)

    def card(self, title: str) -> Any:
        """That of a device or of a VM."""
        return self.browser.find_element("xpath", f"//li[contains(@class, 'card')][.//h3[. = '{title}']]")

    def button(self, label: str) -> Any:
        """One that can be pressed."""
        path = f"//button[@aria-label = '{label}' or . = '{label}']"
        return next((each for each in self.browser.find_elements("xpath", path) if each.is_displayed()), None)

    def press(self, label: str) -> None:
        self.until(lambda: (button := self.button(label)) is not None and button.is_enabled(), f"no button {label}")
        self.browser.execute_script("arguments[0].scrollIntoView({ block: 'center' })", self.button(label))
        self.button(label).click()

    def choose(self, title: str, vm: str) -> None:
        """The VM in the list of a card."""
        from selenium.webdriver.support.ui import Select

        def chosen() -> bool:
            Select(self.card(title).find_element("tag name", "select")).select_by_value(vm)
            return True

        self.until(chosen, f"{title} cannot go to {vm}")

    def wait_for(self, title: str, text: str) -> None:
        """Until a card says so."""
        self.until(lambda: text in self.card(title).text, f"{title} does not say {text}")

    def console(self) -> list[str]:
        """What the browser complains of."""
        return [f"{entry['level']}: {entry['message']}" for entry in self.browser.get_log("browser")]
