"""The look at a page finds what is wrong with one: a look that finds nothing proves nothing."""

from pathlib import Path

import pytest
from browser import PHONE, assert_good, look

GOOD = '<div role="img" aria-label="A figure of nothing at all."><svg></svg></div>'


def page(tmp_path: Path, body: str, head: str = "") -> Path:
    path = tmp_path / "page.html"
    path.write_text(f"<!DOCTYPE html><html><head>{head}</head><body>{body}</body></html>")
    return path


def test_a_good_page(tmp_path: Path) -> None:
    assert assert_good(page(tmp_path, GOOD), tmp_path).figures == ["A figure of nothing at all."]


@pytest.mark.parametrize(
    "body",
    [
        f'<div style="width:{PHONE + 10}px">wide</div>',
        '<img alt="A figure of nothing at all." src="http://127.0.0.1:9/a.png">',
        "<svg></svg>",
        '<img src="data:,">',
        "<script>console.error('broken')</script>",
        "<script>absent()</script>",
    ],
)
def test_what_is_wrong_is_seen(tmp_path: Path, body: str) -> None:
    bad = page(tmp_path, GOOD + body)
    look(bad, tmp_path)  # skips without a browser, which must not pass for a failure
    with pytest.raises(AssertionError):
        assert_good(bad, tmp_path)


def test_a_request_that_the_page_forbids_itself_is_seen(tmp_path: Path) -> None:
    policy = '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'">'
    seen = look(page(tmp_path, '<img alt="x" src="http://127.0.0.1:9/a.png">', policy), tmp_path)
    assert any("Content Security Policy" in line for line in seen.console)
