"""The report in a real browser: on paper, at the widths of a phone and a desk, in the dark, and without a request."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import token_samples
from chromium import launched, strict_page
from drawn_runs import write_run

from analysis import explorer
from analysis.report import report
from hooklearn.locate.tokens import write_sample


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as found:
        yield found


@pytest.fixture(scope="module")
def page_of(tmp_path_factory: pytest.TempPathFactory) -> Path:
    name = "drawn_by_hand_and_called_as_long_as_somebody_calls_a_run_of_a_sweep"  # in which no line can be broken
    folder = write_run(tmp_path_factory.mktemp("run") / name, items=12)
    drawn = token_samples.sample(layers=2, tokens=200, texts=12, steps=(0, 2))
    write_sample(folder / explorer.SAMPLE_FILE, *token_samples.saved(drawn))
    return report(folder)


def body(page: Any, key: str) -> str:
    return page.locator("body").evaluate("(e, key) => getComputedStyle(e)[key]", key)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_paper_is_light_whole_and_has_nothing_to_click(browser: Any, page_of: Path, scheme: str) -> None:
    """Whatever the reader's screen: dark ink, no table or figure wider than the sheet, all that was folded open, and of
    the explorer, awake or not, picture and table. On the screen it is dark if asked for: the positive control."""
    with strict_page(browser, scheme=scheme, width=1440) as page:
        page.goto(page_of.as_uri())
        page.locator("[data-hlx]").scroll_into_view_if_needed()
        page.wait_for_selector(".hlx-card")
        paper = {"light": "rgb(251, 250, 248)", "dark": "rgb(20, 22, 26)"}[scheme]
        assert body(page, "backgroundColor") == paper
        assert page.locator(".hlx").is_visible()
        assert not page.locator(".hlx-still").is_visible()
        page.emulate_media(media="print", color_scheme=scheme)
        page.set_viewport_size({"width": 703, "height": 1000})  # A4 less two margins of 12 mm
        assert body(page, "backgroundColor") == "rgb(255, 255, 255)"
        assert body(page, "color") == "rgb(34, 37, 43)"
        assert page.locator(".hlx-still img").is_visible()
        assert not page.locator(".hlx").is_visible()
        assert (
            page.evaluate("[...document.querySelectorAll('input, button, select')].filter((e) => e.offsetParent)") == []
        )
        wide = """() => [...document.querySelectorAll("table, svg, img, pre, article")]
          .filter((e) => e.getBoundingClientRect().right > 703 + 1).map((e) => e.closest("section").id)"""
        assert page.evaluate(wide) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_the_report_fits(browser: Any, page_of: Path, width: int, scheme: str) -> None:
    with strict_page(browser, width=width, scheme=scheme) as page:
        page.goto(page_of.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator("#next li").first.is_visible()
