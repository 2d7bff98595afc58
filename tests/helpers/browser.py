"""Looks at a page in headless Chromium: on a phone's screen, and at what it asks of the network."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

PHONE = 380
_SCRIPT = """
addEventListener('load', () => {
  const page = document.getElementById('page');
  const root = page.contentDocument.documentElement;
  const name = (one) => one.getAttribute('alt') || one.getAttribute('aria-label') || '';
  const figures = [...root.querySelectorAll('img, svg')].map((one) => name(one.closest('[role=img]') || one));
  const requests = page.contentWindow.performance.getEntriesByType('resource').map((one) => one.name);
  const found = {inner: root.clientWidth, needed: root.scrollWidth, figures, requests};
  document.getElementById('found').textContent = JSON.stringify(found);
});
"""


class Look(NamedTuple):
    """What there was to see of a page."""

    inner: int
    """Pixels of the window in which the page is laid out, without its scroll bar."""
    needed: int
    """Pixels that it takes: more than `inner` makes it scroll sideways."""
    figures: list[str]
    """The alternative text of each figure, empty where it has none."""
    requests: list[str]
    """Addresses that it asked for."""
    console: list[str]
    """Lines on the console: errors, and what the page's Content-Security-Policy refused."""


def look(page: Path, scratch: Path, width: int = PHONE) -> Look:
    """Opens a page as wide as said; skips the test where there is no Chromium."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("chromium is not installed")
    source = html.escape(page.read_text(encoding="utf-8"))
    frame = f'<iframe id="page" style="width:{width}px;height:800px;border:0" srcdoc="{source}"></iframe>'
    wrapper = scratch / "wrapper.html"
    document = f'<!DOCTYPE html><meta charset="utf-8">{frame}<pre id="found"></pre><script>{_SCRIPT}</script>'
    wrapper.write_text(document, encoding="utf-8")
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom",
        "--virtual-time-budget=5000", f"--user-data-dir={scratch / 'profile'}", wrapper.as_uri(),
    ]  # fmt: skip
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'<pre id="found">(.*?)</pre>', ended.stdout, re.DOTALL)
    assert found, ended.stderr
    console = [line for line in ended.stderr.splitlines() if "CONSOLE" in line]
    return Look(**json.loads(html.unescape(found[1])), console=console)


def assert_good(page: Path, scratch: Path) -> Look:
    """The page fits a phone, asks for nothing, complains of nothing, and says in words what it shows."""
    seen = look(page, scratch)
    assert PHONE - 20 <= seen.inner <= PHONE
    assert seen.needed <= seen.inner
    assert seen.requests == []
    assert seen.console == []
    assert all(len(text) > 20 for text in seen.figures)
    return seen
