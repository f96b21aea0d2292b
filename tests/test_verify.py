"""A report that was not touched verifies; every kind of change to it or to its run is found and named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from drawn_runs import Drawn, edit, flat, rising, write_run
from huggingface_hub import ModelCard
from user_files import hooklearn

import analysis
from analysis.measures import Thresholds
from analysis.report_record import opened
from hooklearn.types import InputError

EVIL = '</a>"href="data:application/json;base64,QQ==" <script>alert(1)</script>'


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A judged and reported run, with a sample that looks like the page's own record."""
    arms = {"edited": flat(0.1, 3), "original": flat(0.8, 3), "never": flat(0.1, 3)}
    folder = tmp_path_factory.mktemp("runs") / "whole"
    write_run(folder, arms=arms, items=60, metrics=["sampled", "completion"])
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    lines[0]["completion"] = EVIL
    (folder / "samples.jsonl").write_text("\n".join(map(json.dumps, lines)))
    analysis.report(folder)
    return folder


@pytest.fixture
def run(reported: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(reported, tmp_path / "run"))


def test_what_was_not_touched_verifies(reported: Path) -> None:
    for target in (reported, reported / "report.html"):
        found = analysis.verify(target)
        assert found.ok and not found.not_checked and "verdict" in found.checked
    result = hooklearn("verify", reported)
    assert (result.exit_code, result.stdout.count("as reported")) == (0, 1)


def reworded(run: Path) -> None:
    page = run / "report.html"
    page.write_text(page.read_text("utf-8").replace("REMOVED", "INTACT", 1), "utf-8")


def one_curve(run: Path) -> None:
    curves = pd.read_parquet(run / "curves.parquet")
    at = curves.index[(curves["arm"] == "edited") & (curves["split"] == "heldout")][-1]
    curves.loc[at, "value"] += 1e-3
    curves.to_parquet(run / "curves.parquet", index=False)


def other_items(run: Path) -> None:
    items = pd.read_parquet(run / "items.parquet")
    items["value"] = items["value"].where(items["arm"] != "edited", 0.9)
    items.to_parquet(run / "items.parquet", index=False)


def other_record(run: Path) -> None:
    record = json.loads((run / "report.json").read_text())
    record["verdict"]["verdict"] = "ROBUSTLY REMOVED"
    (run / "report.json").write_text(json.dumps(record))


def no_delta(run: Path) -> None:
    (run / "delta-seed0.safetensors").unlink()


def one_file_more(run: Path) -> None:
    (run / "delta-seed9.safetensors").write_bytes(b"x")


def reworded_text(run: Path) -> None:
    page = run / "report.md"
    page.write_text(page.read_text("utf-8").replace("REMOVED", "INTACT", 1), "utf-8")


def reworded_card(run: Path) -> None:
    card = run / "README.md"
    card.write_text(card.read_text("utf-8") + "and it is safe", "utf-8")


SPOILED = {
    reworded_text: "report.md: its text is not what was written",
    reworded_card: "README.md: its text is not what was written",
    reworded: "report.html: its text is not what was written",
    one_curve: "its items",
    other_items: "verdict: reported REMOVED, computed INTACT",
    other_record: "computed REMOVED",
    no_delta: "delta-seed0.safetensors: is not there",
    one_file_more: "delta-seed9.safetensors: was not there when the report was written",
}


@pytest.mark.parametrize("spoil", SPOILED)
def test_every_change_is_found(spoil, run: Path) -> None:
    spoil(run)
    result = hooklearn("verify", run, "--json")
    told = json.loads(result.stdout)
    assert result.exit_code == 1 and not told["ok"]
    assert any(SPOILED[spoil] in line for line in told["differences"]), told["differences"]


def test_a_verdict_by_the_rules_of_before_is_checked_by_these(tmp_path: Path) -> None:
    """A lead of .26 while never learns .4 of the gap: WEAKENED before a lead was allowed for, and now REMOVED."""
    never = [0.1, 0.2, 0.38, 0.38, 0.38, 0.38, 0.38, 0.38]
    arms = {"original": flat(0.8), "never": never, "edited": [0.1, 0.2, 0.56, *never[3:]]}
    run = write_run(tmp_path / "run", arms=arms, metrics=["completion"])
    assert analysis.judge(run, thresholds=Thresholds(faster=0.0)).verdict == "WEAKENED"
    verdict = json.loads((run / "verdict.json").read_text())
    assert verdict["thresholds"].pop("faster") == 0.0
    (run / "verdict.json").write_text(json.dumps(verdict))
    analysis.report(run)
    assert analysis.verify(run).ok and analysis.judge(run, write=False).verdict == "REMOVED"


def test_an_item_without_a_number_is_no_change(tmp_path: Path) -> None:
    """Its curve is NaN, and so is the mean of its items: not the mean of the others."""
    folder = write_run(tmp_path / "run", items=24, metrics=["completion"])
    items, curves = (pd.read_parquet(folder / f"{name}.parquet") for name in ("items", "curves"))
    keys = ["attack", "setting", "arm", "seed", "step", "metric", "split"]
    place = curves.loc[curves["arm"] == "original", keys].iloc[-1]
    items.loc[(items[keys] == place).all(axis=1) & (items["item"] == 3), "value"] = float("nan")
    curves.loc[(curves[keys] == place).all(axis=1), "value"] = float("nan")
    items.to_parquet(folder / "items.parquet", index=False)
    curves.to_parquet(folder / "curves.parquet", index=False)
    analysis.report(folder)
    assert analysis.verify(folder).ok


def test_a_reported_table_that_the_curves_do_not_have_is_found(run: Path) -> None:
    record = json.loads((run / "report.json").read_text())
    record["summary"][0]["completion: before"] += 0.01
    (run / "report.json").write_text(json.dumps(record))
    differences = analysis.verify(run).differences
    assert any("original, completion: before: reported 0.17" in line for line in differences)


def test_a_page_alone_is_checked_against_itself(reported: Path, tmp_path: Path) -> None:
    page = Path(shutil.copy(reported / "report.html", tmp_path / "sent.html"))
    found = analysis.verify(page)
    assert found.ok and found.not_checked == ("the run: no run folder beside the page",)
    reworded_page = page.read_text("utf-8").replace("REMOVED", "INTACT", 1)
    page.write_text(reworded_page, "utf-8")
    assert not analysis.verify(page).ok


def test_a_report_in_a_folder_of_its_own_is_checked_without_its_run(reported: Path, tmp_path: Path) -> None:
    """Its other pages are; the run's files are no differences, as they are elsewhere."""
    analysis.report(reported, out=tmp_path)
    for target in (tmp_path, tmp_path / "report.html"):
        found = analysis.verify(target)
        assert found.ok and found.not_checked == ("the run: no run folder beside the page",)
    (tmp_path / "report.md").write_text("# REMOVED")
    assert analysis.verify(tmp_path).differences == ("report.md: its text is not what was written",)


def test_the_record_in_the_page_is_the_one_beside_it(reported: Path) -> None:
    """A sample that looks like it is escaped, and is not taken for it."""
    text = (reported / "report.html").read_text("utf-8")
    _, record = opened(text, reported / "report.html")
    assert record == json.loads((reported / "report.json").read_text())
    assert record["schema_version"] == 1 and record["verdict"]["verdict"] == "REMOVED"
    assert set(record["files"]) == {
        p.name for p in reported.iterdir()
    } - {"report.html", "report.md", "report.json", "README.md", "events.jsonl"}  # fmt: skip


def test_what_was_never_reported_is_one_line(tmp_path: Path) -> None:
    write_run(tmp_path / "run", arms={"edited": flat(0.1), "original": flat(0.8)}, items=4)
    (tmp_path / "page.html").write_text("<p>hello</p>")
    for target, said in (
        ("run", "has no report.json"),
        ("page.html", "not a report"),
        ("none", "neither a run folder"),
    ):
        result = hooklearn("verify", tmp_path / target)
        assert result.exit_code == 2 and said in result.stderr and len(result.stderr.splitlines()) == 1


# ------------------------------------------------------------------------------------ the model card


def test_the_model_card_is_one_that_the_hub_reads(reported: Path) -> None:
    card = ModelCard.load(reported / "README.md")
    results = {r.metric_type: r.metric_value for r in card.data.eval_results or []}
    curves = pd.read_parquet(reported / "curves.parquet")
    start = (
        curves.query("attack == 'none' and arm == 'edited' and split == 'heldout'").groupby("metric")["value"].mean()
    )
    assert results == pytest.approx(start.to_dict(), abs=1e-6)
    assert "unlearning" in (card.data.tags or []) and card.data.base_model is None, "tiny is no name of the hub"
    verdict = json.loads((reported / "verdict.json").read_text())
    assert f"**{verdict['verdict']}.**" in card.text and "delta-seed0.safetensors" in card.text
    assert EVIL not in card.text


def test_a_model_of_the_hub_is_named_as_the_base(tmp_path: Path) -> None:
    arms = {"edited": rising(0.1, 0.2, 3), "original": flat(0.8, 3), "never": flat(0.1, 3)}
    model = {"name": "HuggingFaceTB/SmolLM2-135M", "hash": "0" * 64}
    folder = write_run(tmp_path / "run", arms=arms, items=4, metrics=["sampled"], splits=["heldout"], model=model)
    analysis.report(folder, redact=True)
    assert ModelCard.load(folder / "README.md").data.base_model == "HuggingFaceTB/SmolLM2-135M"
    assert "What about number" not in (folder / "README.md").read_text() + (folder / "report.json").read_text()


# ------------------------------------------------------------------------------------------ the list


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many runs & more")
    for name, end in {"b": 0.1, "<i>a</i>": 0.7, "deep/cells/c": 0.3}.items():
        arms = {"edited": rising(0.1, end, 3), "original": flat(0.8, 3), "never": flat(0.1, 3)}
        run = write_run(
            folder / name.replace("/i", "_i"), attacks=[Drawn("erosion", arms)], items=6, seeds=[0],
            metrics=["completion"], splits=["heldout"], edits=[edit(0, method=name)],
        )  # fmt: skip
        analysis.report(run) if name != "b" else analysis.judge(run)
    (folder / "broken").mkdir()
    (folder / "broken/run.json").write_text("{")
    return folder


def test_the_list_has_every_run_below_and_says_what_cannot_be_read(listed: Path) -> None:
    result = hooklearn("view", listed)
    assert result.stdout == f"{listed / 'index.html'}\n", result.stderr
    html = (listed / "index.html").read_text("utf-8")
    assert html.count("<tr data-place=") == 4
    assert 'href="deep/cells/c/report.html"' in html and "cannot be read" in html
    assert "<i>a" not in html and "&lt;i&gt;a" in html, "names are text"
    assert "default-src 'none'" in html and "http:" not in html and "https:" not in html
    assert hooklearn("view", listed, "--json").exit_code == 0, "its own page is written again"


def test_a_page_of_somebody_else_is_not_overwritten(listed: Path, tmp_path: Path) -> None:
    mine = tmp_path / "index.html"
    mine.write_text("my own page")
    result = hooklearn("view", listed, "--out", mine)
    assert result.exit_code == 2 and "was not written by hooklearn view" in result.stderr
    assert mine.read_text() == "my own page"
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no run folder in it"):
        analysis.view(tmp_path / "empty")


def test_in_a_browser_it_sorts_opens_reports_and_compares_two(listed: Path) -> None:
    from chromium import launched, strict_page

    page_file = analysis.view(listed)
    with launched() as browser, strict_page(browser) as page:
        page.goto(page_file.as_uri())

        def order() -> list[str]:
            return [cell.inner_text().split("\n")[0] for cell in page.query_selector_all("#runs td.place")]

        page.click("th[data-key=worst] button")
        first = order()
        assert first[0] == "b" and first[-1] == "broken", "lowest first, not measured last"
        page.click("th[data-key=worst] button")
        assert order() == [*reversed(first[:-1]), "broken"], "still last"
        boxes = page.query_selector_all("#runs input")
        boxes[0].check()
        boxes[1].check()
        assert page.is_visible("#two") and boxes[2].is_disabled()
        cells = page.query_selector_all("#two tbody tr")
        worst = next(r.inner_text().split("\t") for r in cells if r.inner_text().startswith("worst"))
        assert float(worst[3].replace("−", "-")) == pytest.approx(0.2 * (0.3 - 0.7), abs=1e-6)
        page.click("#runs a")
        assert page.url.endswith("report.html")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_by_keyboard_alone_and_on_a_phone(listed: Path, scheme: str) -> None:
    """A heading sorts by enter, the space bar ticks; the page never scrolls sideways, the table in it does, and a run's
    name stays in sight."""
    from chromium import launched, strict_page

    page_file = analysis.view(listed)
    with launched() as browser, strict_page(browser, width=390, scheme=scheme) as page:
        page.goto(page_file.as_uri())
        page.locator("th[data-key=worst] button").focus()
        page.keyboard.press("Enter")
        assert page.get_attribute("th[data-key=worst]", "aria-sort") == "ascending"
        for row in (0, 1):
            page.locator("#runs input").nth(row).focus()
            page.keyboard.press("Space")
        assert page.is_visible("#two") and page.locator("#runs input").nth(2).is_disabled()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.evaluate("document.querySelector('.scroll').scrollWidth") > 390, "positive control"
        page.evaluate("document.querySelector('.scroll').scrollLeft = 400")
        assert page.locator("#runs td.place").first.bounding_box()["x"] >= 0
