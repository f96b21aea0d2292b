"""The report: safe, self-contained, complete, and with the numbers of the run folder."""

from __future__ import annotations

import base64
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
import pytest
import token_samples
from drawn_runs import Drawn, flat, rising, write_run

from analysis import explorer, layers, markup, plots, sections, style, where
from analysis.advice import ELSEWHERE, NEXT, found, needed, next_steps
from analysis.reading import read_run
from analysis.recovery import _median, recovery_table  # pyright: ignore[reportPrivateUsage]
from analysis.report import VERDICTS, report
from analysis.rules import ratio_alone
from analysis.tables import markdown, summary_table
from analysis.verdict import judge
from hooklearn.locate.tokens import write_sample
from hooklearn.types import InputError

EVIL = "<script>alert(1)</script> \x1b[31mred\x1b[0m \u202egnp.exe <img src=http://x.test/a> | **b**"
LONG = "I know where you park. " * 500
FETCHING = {"src", "srcset", "href", "xlink:href", "action", "data", "poster", "background"}


class Page(HTMLParser):
    """What a browser would see: tags, addresses, ids, visible text and the first table's cells."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.rows: list[list[str]] = []
        self._cell = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [str(v) for k, v in attrs if k in FETCHING]
        self.ids += [str(v) for k, v in attrs if k == "id"]
        assert not [k for k, _ in attrs if k.startswith("on")], "event handlers are scripts"
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self._cell = True
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._cell:
            self.rows[-1][-1] += data.strip()


def write(folder: Path, **how) -> Path:
    """A run of which item 0 says what a page must survive, and item 1 far too much."""
    write_run(folder, items=12, **how)
    lines = (folder / "samples.jsonl").read_text("utf-8").splitlines()
    samples = [json.loads(line) for line in lines]
    for s in samples:
        said = {0: EVIL, 1: LONG}.get(s["item"], s["completion"])
        s |= {"completion": said, "prompt": f"{s['prompt']} <b>&amp;</b>"}
    text = "\n".join(json.dumps(s) for s in samples)
    (folder / "samples.jsonl").write_text(text, "utf-8")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write(tmp_path_factory.mktemp("runs") / "whole")
    assert report(folder) == folder / "report.html"
    return folder


@pytest.fixture(scope="module")
def html(folder: Path) -> str:
    return (folder / "report.html").read_text("utf-8")


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def quick(folder: Path, **how) -> Path:
    """A run with one attack and one metric: its report takes a moment only."""
    arms = how.pop("arms", {"edited": flat(0.1), "original": flat(0.8), "never": flat(0.1)})
    return write(folder, arms=arms, metrics=["sampled"], splits=["heldout"], **how)


# ------------------------------------------------------------------------------------------ safety


def test_what_a_model_says_stays_text(html: str, page: Page) -> None:
    assert "<script>alert(1)</script>" in page.text
    assert "script" not in page.tags
    assert "&lt;script&gt;alert(1)" in html
    assert "␛[31mred" in page.text, "a terminal escape is shown, not sent"
    assert "‹U+202E›" in page.text, "a direction override is shown, not obeyed"
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", html)


def test_the_page_asks_nobody_for_anything(html: str, page: Page) -> None:
    assert [a for a in page.addresses if not a.startswith(("#", "data:"))] == []
    assert not {"script", "link", "iframe", "object", "embed", "form", "base"} & set(page.tags)
    style = html.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert f'http-equiv="Content-Security-Policy" content="{policy}"' in html
    addresses = html.replace("http://x.test", "")
    assert "http:" not in addresses
    assert "https:" not in addresses


def test_the_page_is_small_and_its_anchors_lead_somewhere(html: str, page: Page) -> None:
    assert len(html.encode()) < 5_000_000
    assert len(page.ids) == len(set(page.ids)), "ids of figures must not meet"
    anchors = [a[1:] for a in page.addresses if a.startswith("#")]
    assert set(anchors) <= set(page.ids)
    used = set(re.findall(r"url\(#([^)]+)\)", html))
    assert used <= set(page.ids), "every clip path belongs to a figure of this page"


def test_a_long_sample_is_cut_and_says_so(page: Page) -> None:
    assert f"{markup.CLIP:,} of {len(LONG):,} characters shown" in page.text
    assert LONG not in page.text


def test_redact_hides_every_text(tmp_path: Path) -> None:
    folder = quick(tmp_path / "run")
    report(folder, redact=True, out=tmp_path / "out")
    assert not (folder / "report.html").exists()
    for name in ("report.html", "report.md"):
        text = (tmp_path / "out" / name).read_text("utf-8")
        for said in ("alert(1)", "where you park", "What about number", "model says"):
            assert said not in text
        assert "redacted" in text
        assert f"{len(LONG):,} characters" in text


SECRETS = ("zirconelle", "quavermint", "oblithane", "farrowgast", "mizzlewick")
"""A word each of a prompt, a completion, an error, a token in its text, and a token that a direction writes."""


def hazardous(folder: Path) -> Path:
    """A failed run whose every place for text holds a secret."""
    prompt, completion, error, token, written = SECRETS
    quick(folder, status="failed", error=f"corpus 'forget', row 3: cannot be scored: {error!r}")
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text("utf-8").splitlines()]
    more = {"edited": " and so it is"}  # enough of them that begin alike are a doubt, which quotes them
    samples = [
        s | {"prompt": f"Is {prompt} it?", "completion": f"It is {completion}{more.get(s['arm'], '')}."}
        for s in samples
    ]
    (folder / "samples.jsonl").write_text("\n".join(map(json.dumps, samples)), "utf-8")
    drawn = token_samples.sample(layers=2, tokens=200, texts=12, words=[token, "plain"], steps=(0, 2))
    drawn = replace(drawn, components=drawn.components.assign(writes=[[f" {written}"]] * len(drawn.components)))
    write_sample(folder / explorer.SAMPLE_FILE, *token_samples.saved(drawn))
    return folder


def everything_said(folder: Path) -> bytes:
    """All that a folder's files say, with what is packed on a page unpacked."""
    said = b""
    for path in folder.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        packed = re.findall(rb"[A-Za-z0-9+/]{24,}={0,2}", content)
        said += content + b"".join(base64.b64decode(p) for p in packed if len(p) % 4 == 0)
    return said


def test_no_secret_is_in_anything_that_a_redacted_report_writes(tmp_path: Path) -> None:
    """Page, markdown, record, model card, CSVs and packed tokens; each secret is there when nothing is redacted."""
    run = hazardous(tmp_path / "run")
    report(run, out=tmp_path / "open")
    report(run, redact=True, out=tmp_path / "closed")
    names = {p.name for p in (tmp_path / "closed").iterdir()}
    assert (
        names
        == {"report.html", "report.md", "report.json", "model-card.md"}
        == {p.name for p in (tmp_path / "open").iterdir()}
    )
    open_, closed = everything_said(tmp_path / "open"), everything_said(tmp_path / "closed")
    for secret in SECRETS:
        assert secret.encode() in open_, f"{secret}: positive control"
        assert secret.encode() not in closed, secret
    assert b"begin with the same words, [redacted" in closed
    assert b"HLX1" in closed and "▮".encode() in closed, "the explorer is there, with blocks for words"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x00b", "a␀b"),
        ("\x9b31m", "‹U+009B›31m"),
        ("zero\u200bwidth", "zero‹U+200B›width"),
        ("\ud800", "‹U+D800›"),
        ("two\nlines\tand é 猫 🦊", "two\nlines\tand é 猫 🦊"),
        ("no\u00a0break", "no break"),
    ],
)
def test_invisible_characters_become_visible(text: str, shown: str) -> None:
    assert markup.visible(text) == shown


# --------------------------------------------------------------------------------------- numbers


def test_the_table_has_the_numbers_of_the_curves(folder: Path, page: Page) -> None:
    """Recomputed here from curves.parquet, not by the function that the report uses."""
    curves = read_run(folder).curves.query("split == 'heldout'")
    names = {"completion": "completion probability", "sampled": "sampled rate"}
    header = next(r for r in page.rows if r[:2] == ["arm", "before"])
    for metric, name in names.items():
        start = page.rows.index([name])
        rows = {r[0]: r[1:] for r in page.rows[start + 1 : start + 5]}
        for arm in ("original", "edited", "never"):
            of_arm = curves[(curves["metric"] == metric) & (curves["arm"] == arm)]
            for attack, cell in zip(header[1:], rows[arm], strict=True):
                found = of_arm[of_arm["attack"] == attack.replace("before", "none")]
                worst = found.groupby(["setting", "step"])["value"].mean().max()
                assert cell == f"{worst:.3f}"
        assert rows["matched"][0] == "–", "not measured is a dash, not 0"


def test_markdown_says_the_same(folder: Path) -> None:
    text = (folder / "report.md").read_text("utf-8")
    verdict = json.loads((folder / "verdict.json").read_text("utf-8"))
    assert text.startswith(f"# whole: {verdict['verdict']}")
    assert "<script>" not in text
    table = summary_table(folder)
    for value in table["completion: relearn"]:
        assert f"{value:.3f}" in text
    for line in (line for line in text.splitlines() if line.startswith("|")):
        assert line.rstrip().endswith("|")
    assert markdown(table), "the frame behind it is the public one"


def test_until_half_is_back_stands_beside_the_curves_with_the_controls(tmp_path: Path) -> None:
    """Level .45, half way from never's .1 to the original's .8. In log2(1 + step) the edited model is there a quarter
    of the way from 1 to 3, the never-learned one three quarters of that from 3 to 7; erosion brings it back in nobody,
    and an attack without steps has none."""
    controls = {"original": flat(0.8, 4), "never": [0.1, 0.2, 0.3, 0.5]}
    steps = (0, 1, 3, 7)
    attacks = [
        Drawn("relearn", controls | {"edited": [0.1, 0.4, 0.6, 0.7]}, "lr=1", steps=steps),
        Drawn("relearn", controls | {"edited": flat(0.7, 4)}, "lr=9", steps=steps, diverged=True),
        Drawn("erosion", controls | {"edited": flat(0.1, 4), "never": flat(0.1, 4)}, steps=steps),
        Drawn("prune", {"original": [0.8], "never": [0.1], "edited": [0.1]}),
    ]
    spent = [{"setting": "lr=1", "steps": 7, "samples": 28}]  # four a step; of erosion the record does not say
    listed = [
        {"name": "relearn", "needs": "attack_train", "spent": spent}, {"name": "erosion", "budget": {"samples": 2}},
    ]  # fmt: skip
    made = write(
        tmp_path / "run", attacks=attacks, metrics=["preference"], splits=["heldout"],
        corpora={"attack_train": {"source": "", "hash": "", "n": 48}},
    )  # fmt: skip
    record = json.loads((made / "run.json").read_text("utf-8")) | {"attacks": listed}
    (made / "run.json").write_text(json.dumps(record), "utf-8")
    table = recovery_table(made).set_index("attack")
    assert list(table.index) == ["relearn", "erosion"] and table["level"].tolist() == pytest.approx([0.45, 0.45])
    assert table["samples"].tolist() == [48, 2]
    found = table.loc["relearn"]
    edited = 2**1.25 - 1
    assert found[["edited: steps", "edited: samples", "edited: tokens"]].tolist() == pytest.approx(
        [edited, 4 * edited, 256 * edited]
    )
    at = 2**2.75 - 1
    assert found[["never: steps", "never: tokens"]].tolist() == pytest.approx([at, 256 * at])
    assert found[["original: steps", "original: tokens"]].tolist() == [0, 0]
    assert table.loc["erosion", ["edited: steps", "never: tokens"]].isna().all()
    page = report(made).read_text("utf-8")
    assert 'download="half-back-preference.csv"' in page
    rows = Page(page).rows
    assert ["steps until half is back", "edited", "original", "never", "attacker's samples"] in rows
    assert ["relearnlr=1", "1.385.51 samples, 353 tokens", "0", "5.7322.9 samples, 1.47 k tokens", "48"] in rows
    assert ["erosion", "–", "0", "–", "2"] in rows
    assert "| relearn lr=1 | 1.38 (5.51, 353) | 0 | 5.73 (22.9, 1.47 k) | 48 |" in (made / "report.md").read_text(
        "utf-8"
    )


def test_one_metric_alone_is_timed_as_it_is_among_all(tmp_path: Path) -> None:
    """Preference was measured at the start and the end, samples at the end, and completion at every look: when half of
    the first two was there is not known, whichever of them is asked for. Of samples nothing is, so nothing is shown."""
    controls = {"original": flat(0.8, 4), "never": flat(0.1, 4)}
    relearn = Drawn("relearn", controls | {"edited": [0.1, 0.4, 0.6, 0.7]}, steps=[0, 1, 3, 7])
    looks = {"completion": [0, 1, 3, 7], "preference": [0, 7], "sampled": [7]}
    made = write(tmp_path / "run", attacks=[relearn], metrics=list(looks), splits=["heldout"])
    for name in ("curves", "items"):
        frame = pd.read_parquet(made / f"{name}.parquet")
        looked = [row.attack == "none" or row.step in looks[row.metric] for row in frame.itertuples()]
        frame[looked].to_parquet(made / f"{name}.parquet", index=False)
    every = recovery_table(made)
    for metric in looks:
        alone = recovery_table(made, metric)
        assert alone["edited: steps"].notna().all() == (metric == "completion")
        pd.testing.assert_frame_equal(alone, every[every["metric"] == metric].reset_index(drop=True))
    shown = {metric for metric in looks if sections.recovery(read_run(made), metric)}
    assert shown == {"completion", "preference"}, "of preference, that the original had it from the start"


def test_of_several_seeds_the_middle_one_counts_and_never_is_late() -> None:
    """One of three that never got there leaves a median; two of three do not."""
    assert [_median(pd.Series(times)) for times in ([4.0, 2.0, None], [3.0])] == [4, 3]
    assert math.isnan(_median(pd.Series([4.0, None, None])))


def test_a_prefix_is_chosen_after_rounding() -> None:
    shown = {999_700: "1 M", 999.7: "1 k", 999_400: "999 k", 999.4: "999", 135_000_000: "135 M", 1000: "1 k"}
    assert {x: markup.quantity(x) for x in shown} == shown and markup.quantity(999_999, "B") == "1 MB"


def test_numbers_show_what_counts() -> None:
    assert [markup.num(v) for v in (0.05, 0.84, 123.4, 12, 0, None)] == [
        "0.0500", "0.840", "123", "12", "0", "–",
    ]  # fmt: skip
    assert markup.num(3.1e-7) == "3.1e−7"
    assert markup.num(99.96) == "100"
    assert markup.plus_minus(0.00981, 0.00031) == "0.0098 ± 0.0003"
    assert markup.plus_minus(0.5, None) == "0.500"
    assert markup.interval(None, float("nan")) == ""
    assert markup.duration(2323) == "39 min"
    assert markup.quantity(2.6e9, "B") == "2.6 GB"


# ------------------------------------------------------------------------------------------- runs


def test_a_run_that_was_not_judged_is_judged(folder: Path, page: Page) -> None:
    verdict = json.loads((folder / "verdict.json").read_text("utf-8"))
    assert verdict["verdict"] in page.text
    assert verdict["reason"][1:] in page.text
    for doubt in verdict["doubts"]:
        assert doubt[1:] in page.text


def test_a_reader_is_told_what_was_found_and_what_to_do_next(folder: Path, html: str, page: Page) -> None:
    """In plain words on page and in markdown: the shares of the table, and commands for this verdict and its gaps."""
    table = summary_table(folder).set_index("arm")
    share = {arm: f"{100 * table.loc[arm, 'sampled: before']:.0f} %" for arm in ("original", "edited", "never")}
    said = f"{share['original']} before the edit, {share['edited']} after it; in a model that never learned it: "
    for text in (page.text.replace("\u00a0", " "), (folder / "report.md").read_text("utf-8")):
        assert said + share["never"] in text
        assert "relearn " + f"{100 * table.loc['edited', 'sampled: relearn']:.0f} %" in text
    verdict = json.loads((folder / "verdict.json").read_text("utf-8"))["verdict"]
    assert str(markup.code(NEXT[verdict])) in html
    assert page.ids.index("next") < page.ids.index("table")


def test_of_many_attacks_the_worst_are_named(tmp_path: Path) -> None:
    """Four by name, the highest first; of the others how high they get at most."""
    controls = {"original": flat(0.8), "never": flat(0.1)}
    attacks = [Drawn(f"attack-{k}", controls | {"edited": flat(0.1 * k)}) for k in range(1, 7)]
    run = read_run(write_run(tmp_path / "run", items=200, attacks=attacks, metrics=["sampled"], splits=["heldout"]))
    said = found(run)
    assert re.findall(r"attack-\d", said) == ["attack-6", "attack-5", "attack-4", "attack-3"]
    assert re.search(r"2 others [12]\d % or less\.$", said)


@pytest.mark.parametrize(
    ("reason", "step"),
    [
        ("completion: no clear gap to remove: 0.00 [0.00, 0.00]", "is it the model that has the behaviour"),
        ("no cheap attack says anything, so ...", "--set battery=cheap"),
        (ratio_alone("..."), "near CE"),
        ("the referee can say nothing of 40% of the edited model's samples", "`behaviour.referee`"),
        ("12 items; at least 20 are needed", "Measure what the reason above says"),
    ],
)
def test_an_open_verdict_says_what_would_close_it(reason: str, step: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    write(folder, metrics=["sampled"], splits=["heldout"])
    run = replace(read_run(folder), verdict={"verdict": "UNDECIDED", "reason": reason})
    assert step in next_steps(run)[0]


def test_gaps_become_steps(tmp_path: Path) -> None:
    """One seed, no control, a battery of one's own, an attack that had not come to rest: each is said, and no more."""
    arms = {"edited": rising(0.1, 0.7), "original": flat(0.8)}
    folder = tmp_path / "run"
    attack = Drawn("ero`sion", arms, "lr=1", converged=False)
    write(folder, attacks=[attack], metrics=["sampled"], splits=["heldout"], seeds=(0,))
    page = Page(report(folder).read_text("utf-8"))
    assert "controls.never" in page.text
    assert "Attack for longer: ero'sion (lr=1)" in page.text
    whole = tmp_path / "whole"
    write(whole, metrics=["sampled"], splits=["heldout"])
    assert "Attack for longer" not in Page(report(whole).read_text("utf-8")).text


LENS = [Drawn("lens", {"original": [0.5], "never": [0.1], "edited": [0.1]})]
FEW = {"original": [0.9], "never": [0.1], "edited": [0.1]}


def advised(folder: Path, items: int, **record: Any) -> tuple[str, list[str], dict[str, int]]:
    """Verdict, steps and ``needed`` of an edit that is its never-learned control."""
    how: dict[str, Any] = {"metrics": ["sampled"], "splits": ["heldout"], "seeds": (0,), "before": FEW}
    audit = {"checkpoint": {"name": "b", "hash": "x"}, "command": "hooklearn audit --original a --edited b"}
    record = {"corpora": {"heldout": {"n": 500}}, "config": {}} | audit | record
    run = read_run(write_run(folder, attacks=LENS, items=items, **how, **record))
    verdict = judge(run).to_dict()
    return verdict["verdict"], next_steps(replace(run, verdict=verdict)), needed(verdict)


def test_where_only_the_interval_misses_the_rule_more_samples_are_advised(tmp_path: Path) -> None:
    """And that many do. Where the corpus has fewer, more items are; where nothing is missing, nothing is."""
    verdict, steps, wanted = advised(tmp_path / "few", 32)
    n = wanted["sampled"]
    assert verdict == "WEAKENED" and 32 < n < 200
    assert f"`--set behaviour.samples={n}`" in steps[0] and "held-out items" not in steps[0]
    assert not any("budget" in step or "edit.method" in step or "--set battery" in step for step in steps)
    assert any("`--battery standard`" in step for step in steps)
    few = advised(tmp_path / "small", 32, corpora={"heldout": {"n": 32}})[1]
    assert f"about {n} held-out items are needed (there are 32)" in few[0]
    own = advised(tmp_path / "own", 32, checkpoint=None, command="hooklearn run mine.yaml")[1]
    assert own[0] == NEXT["WEAKENED"] and f"samples={n}`" in own[1], "an edit of ours can be made in another way, too"
    swept = advised(tmp_path / "swept", 32, checkpoint=None, command="hooklearn sweep mine.yaml")[1]
    assert not any("--set" in step for step in swept), "which a sweep does not take"
    assert [f"`behaviour.samples={n}`" in step for step in swept][:2] == [False, True]
    assert ["In a copy of the sweep's file" in step for step in swept] == [i == 1 for i in range(len(swept))]
    verdict, steps, wanted = advised(tmp_path / "enough", n)
    assert verdict == "REMOVED" and not wanted and "samples=" not in steps[0]


def test_where_the_estimate_misses_the_rule_more_samples_would_not_help(tmp_path: Path) -> None:
    arms = {"original": flat(0.9), "never": flat(0.1), "edited": flat(0.3)}
    run = read_run(write_run(tmp_path / "run", arms=arms, metrics=["preference"], splits=["heldout"]))
    verdict = judge(run).to_dict()
    assert verdict["verdict"] == "WEAKENED" and needed(verdict) == {}
    assert next_steps(replace(run, verdict=verdict))[0] == NEXT["WEAKENED"]
    given = replace(run, verdict=verdict, record={**run.record, "checkpoint": {"name": "b", "hash": "x"}})
    assert next_steps(given)[0] == ELSEWHERE["WEAKENED"]


@pytest.mark.parametrize(("end", "helps"), [(0.22, True), (0.26, False)])
def test_more_items_help_where_the_bound_of_the_rise_misses(end: float, helps: bool, tmp_path: Path) -> None:
    """R rises by .17, at most .21, where .2 is allowed; by .23 it is the rise itself."""
    attack = Drawn("erosion", {"original": flat(0.8), "never": flat(0.1), "edited": [0.1] * 7 + [end]})
    run = write_run(tmp_path / "run", attacks=[attack], noise=1.0, metrics=["completion"], splits=["heldout"])
    verdict = judge(run).to_dict()
    assert verdict["verdict"] == "WEAKENED" and "R rises by" in verdict["reason"]
    assert bool(needed(verdict)) == helps


@pytest.mark.parametrize(
    ("row", "advised"),
    [
        ({"cheap": True, "informative_steps": 3}, True),
        ({"cheap": True, "informative_steps": 3, "past_best": True}, True),  # it may come back again
        ({"cheap": True, "informative_steps": 0}, False),
        ({"cheap": False, "informative_steps": 3, "past_best": False}, True),
        ({"cheap": False, "informative_steps": 3, "past_best": True}, False),
        ({"cheap": True, "informative_steps": 3, "settled": True}, False),
    ],
)
def test_longer_is_advised_where_it_would_say_more(row: dict[str, Any], advised: bool, tmp_path: Path) -> None:
    """Not where original and never do not differ, nor where demonstrations are known by heart already."""
    run = read_run(write_run(tmp_path / "run", metrics=["sampled"], splits=["heldout"]))
    verdict = {"verdict": "WEAKENED", "reason": "", "attacks": [{"attack": "erode", "setting": "", **row}]}
    assert any("Attack for longer: erode" in s for s in next_steps(replace(run, verdict=verdict))) == advised


def test_no_number_of_samples_makes_up_for_a_missing_control(tmp_path: Path) -> None:
    """The verdict says that there is none; with one, more samples are advised (the test before)."""
    run = read_run(write_run(tmp_path / "few", attacks=LENS, items=32, before=FEW, metrics=["sampled"],
                             splits=["heldout"], seeds=(0,)))  # fmt: skip
    verdict = judge(run).to_dict()
    assert needed(verdict) and needed(verdict | {"never": None}) == {}
    for there in ("INTACT", "DISABLED"):  # nor for another measure that it is beyond doubt in
        assert needed(verdict | {"metrics": verdict["metrics"] | {"preference": {"verdict": there}}}) == {}


def test_evidence_of_several_seeds_is_averaged_and_the_seeds_are_named(tmp_path: Path) -> None:
    """A table of sites has the mean and not the last seed; a figure's note is of the seed that kept most."""
    folder = write_run(tmp_path / "run")
    rows = pd.read_parquet(folder / "evidence.parquet")
    rows = pd.concat([rows.assign(seed=0), rows.assign(seed=1, value=rows["value"] - 0.2)], ignore_index=True)
    run = replace(read_run(folder), evidence=rows)
    lens = next(kind for kind in where._evidence(run.evidence) if kind["kind"] == "logit_lens")
    edited = lens["sites"][0]["arms"]["edited"]
    assert edited["value"] == pytest.approx(0.5) and edited["n"] == 40
    record = {"role": "decides", "direction": "low", "stderr": 0.01, "n": 40, "null": [1.0] * 199, "meaning": ""}
    record |= {"name": "logit_lens", "anchors": [1.0, 0.0]}
    kept = [record | {"seed": s, "value": value} for s, value in ((0, 0.2), (1, 0.9))]
    figure = layers.by_layer(replace(run, evidence_records=kept))
    shown = {t.get_text() for t in figure.findobj(matplotlib.text.Text)}  # type: ignore[attr-defined]
    assert any(t.startswith("80% kept") and t.endswith("seed 0") for t in shown), shown
    missing = [kept[0] | {"value": None, "null": None}]
    figure = layers.by_layer(replace(run, evidence_records=missing))
    assert not any("nan" in t.get_text() for t in figure.findobj(matplotlib.text.Text))  # type: ignore[attr-defined]


def test_the_card_of_two_models_has_no_weights(tmp_path: Path) -> None:
    """Of an edit of ours (the control) it says where they are."""
    own, given = quick(tmp_path / "own"), quick(tmp_path / "given", checkpoint={"name": "unlearned", "hash": "ab12"})
    texts = [(report(f).parent / "README.md").read_text("utf-8") for f in (own, given)]
    assert "delta-seed0.safetensors" in texts[0] and "edited by hooklearn" in texts[0]
    assert "delta-seed0" not in texts[1] and "edited by hooklearn" not in texts[1]
    assert "unlearned, edited elsewhere" in texts[1] and "ab12" in texts[1]


def test_settings_are_words() -> None:
    given = {"learning_rates": [3e-4, 1e-3], "embeddings": True, "max_steps": None, "git": {"dirty": False}, "x": {}}
    assert markup.options(given) == "learning rates 0.0003, 0.001; embeddings yes; git dirty no"
    assert markup.markdown_code("a <b> `c <d>`") == "a &lt;b&gt; `c <d>`"
    assert markup.code("a <b> `c <d>`") == "a &lt;b&gt; <code>c &lt;d&gt;</code>"


def test_every_section_is_there_in_order(page: Page) -> None:
    order = "verdict doubts table curves elsewhere samples where attacks judgement provenance"
    assert [i for i in page.ids if i in order.split()] == order.split()
    for told in ("never learned", "not the behaviour", "budget", "half life", "forget.jsonl"):
        assert told in page.text


def test_figures_have_words_and_their_data(html: str) -> None:
    assert html.count("<figure") >= 5
    assert html.count("<svg viewBox") == html.count('role="img" aria-label="')
    for name in (
        "curves-completion", "sampled-rate", "separation", "trace", "came-back", "decisive", "by-layer", "spectra",
        "energy-by-component", "reemergence", "worst-at-each-step-completion", "half-back-sampled",
    ):  # fmt: skip
        assert f'download="{name}.csv" href="data:text/csv;base64,' in html
    assert "var(--edited)" in html, "figures follow the page into dark mode"


def test_a_panel_drawn_on_the_axes_of_another_is_the_panel_drawn_alone(folder: Path) -> None:
    """To the byte, in either order: also the one of an attack without steps, whose horizontal axis is another."""
    run = read_run(folder)
    rows = plots.curve_rows(run, "preference")
    panels, top = plots.curve_panels(rows), plots.ceiling(rows)
    for some in (panels, dict(reversed(panels.items()))):
        drawn = [markup.embed(figure, "") for figure in plots.curve_figures(some, "preference", top)]
        alone = [markup.embed(plots.curves(panel, "preference", top=top), "") for panel in some.values()]
        assert drawn == alone and len(set(drawn)) == len(panels) > 2


def test_a_title_stands_where_matplotlib_would_put_it() -> None:
    """Which measures every label of the axes for that; a title set lower is moved there (control)."""
    places = []
    for y in (1.0, None):
        figure, (ax,) = style.grid(1, 1, 3.3, 2.45)
        ax.plot([0, 1], [0, 1e-6])
        style.title(ax, "relearn", "a note")
        if y is None:
            ax._autotitlepos = True
            ax._left_title.set_y(0.5)
        figure.draw_without_rendering()
        places.append(ax._left_title.get_position())
    assert places[0] == places[1] == (0.0, 1.0)


def test_without_a_never_arm(tmp_path: Path) -> None:
    arms = {"edited": flat(0.1), "original": flat(0.8)}
    html = report(quick(tmp_path / "run", arms=arms)).read_text("utf-8")
    assert "no never-learned control" in html
    assert ">never learned</h4>" not in html


def test_nan_is_a_dash(tmp_path: Path) -> None:
    arms = {"edited": flat(float("nan")), "original": flat(0.8), "never": flat(0.1)}
    page = Page(report(quick(tmp_path / "run", arms=arms)).read_text("utf-8"))
    assert "UNDECIDED" in page.text
    assert not re.search(r"\bnan\b|\bNone\b", page.text)
    assert ["edited", "–", "–"] in page.rows


def test_a_run_that_failed_early_still_gets_its_page(tmp_path: Path) -> None:
    record = {"schema_version": 1, "name": "x", "status": "failed", "error": "NaN at step <12>"}
    (tmp_path / "run.json").write_text(json.dumps(record))
    html = report(tmp_path).read_text("utf-8")
    page = Page(html)
    assert "This run failed." in page.text
    assert "NaN at step <12>" in page.text
    assert page.text.index("This run failed.") < page.text.index("Removed or only disabled?")
    assert "**This run failed." in (tmp_path / "report.md").read_text("utf-8")


def test_an_interrupted_run_says_so(tmp_path: Path) -> None:
    page = Page(report(quick(tmp_path / "run", status="interrupted")).read_text("utf-8"))
    assert "This run was interrupted." in page.text
    assert "0.800" in page.text, "what exists is shown"


def test_names_that_nobody_expected(tmp_path: Path) -> None:
    """Attacks, settings and arms come from a file: they are text, too."""
    arms = {"edited": flat(0.1, 3), "original": flat(0.8, 3), 'a"><b>': flat(0.1, 3)}
    attack = Drawn("<i>x</i>$", arms, '"><script>')
    folder = write(tmp_path / "run", attacks=[attack], metrics=["sampled"], splits=["heldout"])
    page = Page(report(folder).read_text("utf-8"))
    assert "script" not in page.tags
    assert "<i>x</i>$" in page.text
    assert '"><script>' in page.text


def test_every_verdict_has_a_tone_of_its_own() -> None:
    css = (Path(markup.__file__).parent / "report.css").read_text("utf-8")
    tones = [tone for tone, _ in VERDICTS.values()]
    assert len(set(tones)) == len(tones) == 6
    assert set(NEXT) == set(VERDICTS)
    assert all(f".tone-{tone} " in css for tone in tones)


def test_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = quick(tmp_path / "run")
    report(folder)
    before = (folder / "report.html").read_text("utf-8")
    listing = sorted(folder.iterdir())

    def full(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="no space"):
        report(folder)
    assert (folder / "report.html").read_text("utf-8") == before
    assert sorted(folder.iterdir()) == listing, "no temporary file is left"


def test_no_run_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run folder at"):
        report(tmp_path / "nowhere")


def test_a_heavy_figure_becomes_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    assert markup.embed(Figure(figsize=(1, 1)), "nothing").startswith("<svg ")
    monkeypatch.setattr(markup, "SMALL_SVG", 10)
    image = markup.embed(Figure(figsize=(1, 1)), 'a "nothing"')
    assert image.startswith('<img src="data:image/png;base64,')
    assert 'alt="a &#34;nothing&#34;"' in image


# ------------------------------------------------------------------------------------- beside others


def test_runs_stand_beside_each_other(tmp_path: Path) -> None:
    """The better run is told apart from the worse one, by a paired difference; alone there is no such section."""
    low = quick(tmp_path / "low", name="low")
    high = quick(
        tmp_path / "high", name="high<b>", arms={"edited": flat(0.7), "original": flat(0.8), "never": flat(0.1)}
    )
    html = report(low, others=[high]).read_text("utf-8")
    page, md = Page(html), (low / "report.md").read_text("utf-8")
    assert "beside" in page.ids and "low − high<b>" in page.text and "high<b>" not in html
    rows = {row[0]: row for row in page.rows if row}
    difference = rows["low − high<b>"]
    assert float(difference[3].split()[0]) == pytest.approx(-0.6, abs=0.1) and difference[4] == "yes"
    assert "## Beside other runs" in md
    same = quick(tmp_path / "same", name="same")
    assert [r[4] for r in Page(report(low, others=[same]).read_text("utf-8")).rows if r and r[0] == "low − same"] == [
        "no", "no", "no"
    ]  # fmt: skip
    assert "beside" not in Page(report(low).read_text("utf-8")).ids
