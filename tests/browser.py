"""A headless Chromium for tests of pages; skips, and says how to get one, where there is none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_HOW = (
    "no Chromium: `apt-get install chromium`, or `playwright install chromium`, "
    "or name one in GFSHADOW_CHROMIUM"
)


@contextmanager
def opened(path, scheme="light", width=1200) -> Iterator[tuple[object, list[str]]]:
    """Yield a page showing ``path`` without a network, and the list of what went wrong there."""
    sync_api = pytest.importorskip("playwright.sync_api")
    named = os.environ.get("GFSHADOW_CHROMIUM") or next(
        filter(None, map(shutil.which, _NAMES)), None
    )
    with sync_api.sync_playwright() as playwright:
        if named is None and not os.path.exists(playwright.chromium.executable_path):
            pytest.skip(_HOW)
        browser = playwright.chromium.launch(executable_path=named, args=["--no-sandbox"])
        context = browser.new_context(
            color_scheme=scheme, viewport={"width": width, "height": 900}, offline=True
        )
        page, wrong = context.new_page(), []
        page.on("console", lambda m: wrong.append(m.text) if m.type in ("error", "warning") else 0)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        page.on(
            "request",
            lambda r: (
                wrong.append(r.url) if not r.url.startswith(("file:", "data:", "blob:")) else 0
            ),
        )
        page.goto(path.resolve().as_uri())
        page.wait_for_selector(".plot .main-svg")
        yield page, wrong
        browser.close()
