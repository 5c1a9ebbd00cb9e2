"""A headless Chromium with a fresh profile, off the network, and what the tests ask a page of `unils view`."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


@contextmanager
def chromium(profile: Path, width: int = 1000, height: int = 800, flags: tuple[str, ...] = ()) -> Iterator[Any]:
    """A selenium driver. Skips, saying how to enable it, where a part is missing."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not browser or not driver:
        pytest.skip("needs Chromium and its driver: apt-get install chromium chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install '.[dev]'")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, *flags, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    session = webdriver.Chrome(service=webdriver.ChromeService(driver), options=options)
    try:
        session.set_page_load_timeout(120)
        session.set_script_timeout(60)
        yield session
    finally:
        session.quit()


def until(condition: Any, what: str, seconds: float = 30.0) -> Any:
    """The first true value of `condition()`, asked often."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"waited {seconds} s for: {what}")


class Page:
    """A page of `unils view` in a browser."""

    def __init__(self, session: Any, path: Path) -> None:
        self.session = session
        session.get_log("browser")
        session.get(path.as_uri())
        until(lambda: self.run("return !!window.unils && unils.state().time >= 0"), "the page to be drawn", 90.0)

    def run(self, script: str) -> Any:
        return self.session.execute_script(script)

    def state(self) -> dict[str, Any]:
        return self.run("return unils.state()")

    def seek(self, seconds: float) -> dict[str, Any]:
        """The state once the page has drawn that moment."""
        self.run(f"unils.seek({seconds})")
        return until(
            lambda: (state := self.state())["time"] == pytest.approx(seconds, abs=1e-4) and state, "a seek to be drawn"
        )

    def key(self, *keys: str) -> None:
        """Presses keys together on the page."""
        from selenium.webdriver.common.action_chains import ActionChains

        chain = ActionChains(self.session)
        for key in keys:
            chain = chain.key_down(key)
        for key in reversed(keys):
            chain = chain.key_up(key)
        chain.perform()

    def errors(self) -> list[str]:
        """What the browser has complained about since the last call."""
        return [
            entry["message"] for entry in self.session.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")
        ]
