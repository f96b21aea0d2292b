"""The explorer's bytes, numbers and pages: small, exact in two languages, and nothing that a corpus says is markup."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import token_samples
import torch
from conftest import corpus
from token_samples import HOSTILE, HUGE

from analysis.explorer import csp, fragment, load, numbers, pack, save, static, unpack
from analysis.explorer.packing import LIMIT, Packing, interleaved
from analysis.explorer.payload import Packed, plain_json
from hooklearn import editing, forward, linalg, losses, models
from hooklearn.data import Corpus, batches, encode
from hooklearn.deltas import Delta
from hooklearn.locate import Subspace, Subspaces, locate
from hooklearn.locate.followed import Follower, follow
from hooklearn.locate.lens import Lens, Spelling, _linear
from hooklearn.locate.tokens import TokenSample, sample_tokens
from hooklearn.measure import sample as sample_of
from hooklearn.preview import preview, scaled
from hooklearn.types import InputError, Site

AGREE = 1e-6
"""What JavaScript and Python may differ by: the same recipe, sums in another order."""


@pytest.fixture(scope="module")
def small() -> Any:
    return token_samples.sample(steps=(0, 2, 8))


@pytest.fixture(scope="module")
def big() -> Packing:
    """Thirty layers of seven sites."""
    return Packing(token_samples.big())


def mixed() -> Corpus:
    """Threats and, on every other row, what retain says as well: an AUC that is neither .5 nor 1."""
    bad, good = corpus("forget").take(24).rows, corpus("forget", "good").take(48).rows[24:]
    return Corpus("mixed", tuple(b if i % 2 else g for i, (b, g) in enumerate(zip(bad, good, strict=True))))


@pytest.fixture(scope="module")
def found(tiny: Any) -> Subspaces:
    return locate(
        tiny, mixed(), corpus("forget", "good").take(24),
        sites=["mlp", "attn.v"], layers=[0, 2], rank=4, sides="both", precision="float32",
    )  # fmt: skip


@pytest.fixture(scope="module")
def real(tiny: Any, found: Subspaces) -> TokenSample:
    return sample_tokens(
        tiny, found, mixed(), corpus("forget", "good").take(24),
        unrelated=corpus("unrelated").take(30), tokens=300, precision="float32",
    )  # fmt: skip


@pytest.fixture(scope="module")
def shrink(tiny: Any, found: Subspaces) -> Delta:
    """Half of every weight with a subspace is taken away."""
    return Delta({s.name: -0.5 * models.weight(tiny, s).detach() for s in found.sites})


@pytest.fixture(scope="module")
def follower(tiny: Any, real: TokenSample, shrink: Delta) -> Follower:
    """An edit, an attacker that gives half of it back, and a never-learned model that goes the other way."""
    eyes = follow(
        tiny, real, mixed(), corpus("forget", "good").take(24),
        unrelated=corpus("unrelated").take(30), precision="float32",
    )  # fmt: skip
    states = [("edited", 0, shrink), ("edited", 4, 0.5 * shrink), ("never", 0, 0 * shrink), ("never", 4, 1.5 * shrink)]
    for setting in ("lr=1", "lr=2"):
        for arm, step, delta in states:
            with editing.edited(tiny, delta):
                eyes("relearn", setting, arm, step, tiny)
    return eyes


# --------------------------------------------------------------------------------------- payload


def test_what_fits_comes_back_exactly(small: Any) -> None:
    """With room for everything, codes, means and texts are those of the sample, in its order."""
    packed = unpack(pack(small))
    entry = packed.header["places"][3]
    own = small.components.index[small.components["place"] == 3]
    block = packed.block(3)
    assert entry["bits"] == 16 and np.array_equal(block["codes"], small.codes[:, own])
    items = packed.array("items")
    assert np.array_equal(block["items"], small.item_codes[items][:, own])
    assert np.array_equal(block["disruption"], small.disruption[3])
    assert np.array_equal(block["means"], small.means[:, own])
    text, at = packed.array("token_text")[7], packed.array("token_position")[7]
    start = packed.array("text_start")[text]
    said = packed.header["strings"][packed.array("text_tokens")[start + at]]
    assert said == small.texts["tokens"][small.tokens["text"][7]][small.tokens["position"][7]]
    moved = next(iter(small.frames))
    assert np.array_equal(packed.block(moved)["frames"], small.frames[moved])


def test_thirty_layers_of_seven_sites_fit(big: Packing) -> None:
    """Below 4 MB on a page; every place can be looked at, the best one with all 20,000 tokens."""
    assert len(big.data) <= LIMIT and len(base64.b64encode(big.data)) < 4_000_000
    packed = unpack(big.data)
    places = packed.header["places"]
    assert len(places) == 210 and min(p["tokens"] for p in places) >= 200 and min(p["count"] for p in places) >= 8
    best = places[packed.header["open"]]
    assert best["tokens"] >= 20_000 and best["count"] == 16
    assert best["auc"] - best["auc_shuffled"] == max(p["auc"] - p["auc_shuffled"] for p in places)
    last = packed.block(209)  # reads to the end of the file
    assert last["codes"].shape == (places[209]["tokens"], 8)


def test_what_was_followed_is_that_of_the_tokens_that_are_kept() -> None:
    """Where long texts leave no room for all of them; a frame of another token would have another corpus."""
    sample = token_samples.sample(tokens=3000, texts=400, length=60, steps=(0, 8))
    packing = Packing(sample, limit=600_000)
    packed = unpack(packing.data)
    assert len(packing.kept) < 3000, "some were dropped"
    place = next(p for p, entry in enumerate(packed.header["places"]) if entry["frames"])
    entry, frames = packed.header["places"][place], packed.block(place)["frames"]
    kept = packing.kept[packing.kept < sample.frames[place].shape[1]]
    assert entry["frames"] == len(kept) <= entry["tokens"]
    assert np.array_equal(np.asarray(frames), sample.frames[place][:, kept])


def test_eight_bits_change_little(big: Packing) -> None:
    """A place without room in full: its coordinates to 1 % of their reach, its AUC as with 16 bits."""
    packed, sample = unpack(big.data), big.sample
    thin = next(i for i, p in enumerate(packed.header["places"]) if p["bits"] == 8 and p["auc"] > 0.9)
    block = packed.block(thin)
    own = np.flatnonzero(sample.components["place"] == thin)[:8]
    exact = sample.codes[np.ix_(big.kept[: len(block["codes"])], own)] * sample.scales[own]
    near = block["codes"] * block["scale"]
    inside = np.abs(block["codes"]) < 127
    assert inside.mean() > 0.99
    assert np.abs(exact - near)[inside].max() <= 0.51 * block["scale"].max()
    whole = _whole(big, thin)
    assert whole.readout(thin, range(8)).auc.value == pytest.approx(packed.readout(thin, range(8)).auc.value, abs=0.01)


def _whole(packing: Packing, place: int) -> Packed:
    """The packed file with one place put in as the kernel sends it."""
    packed, full = unpack(packing.data), unpack(packing.place(place))
    header = {**packed.header, "places": [*packed.header["places"]]}
    body = bytes(packed.body)
    header["places"][place] = {**full.header["entry"], "at": len(body)}
    return Packed(header, memoryview(body + bytes(full.body)))


def test_every_beginning_is_a_fair_sample() -> None:
    """Strata of 60, 30 and 10: after any n they are there in their shares, to one token."""
    strata = np.repeat(["a", "b", "c"], [60, 30, 10])
    order = strata[interleaved(strata)]
    for n in range(1, 101):
        for name, share in (("a", 0.6), ("b", 0.3), ("c", 0.1)):
            assert abs((order[:n] == name).sum() - share * n) <= 1.0


def test_what_is_no_payload_is_said_in_one_line(small: Any) -> None:
    data = pack(small)
    with pytest.raises(InputError, match="no explorer payload"):
        unpack(b"<!doctype html>")
    with pytest.raises(InputError, match="version 2"):
        unpack(data.replace(b'"version":1', b'"version":2'))
    with pytest.raises(InputError, match="do not fit"):
        pack(small, limit=5_000)


@pytest.mark.parametrize("limit", [8_000, 12_000, 20_000, 30_000, 50_000])
def test_a_limit_is_kept_and_used(small: Any, limit: int) -> None:
    assert 0.75 * limit < len(pack(small, limit=limit)) <= limit


def test_not_measured_is_null_and_stays_nan(small: Any) -> None:
    assert plain_json({"a": float("nan"), "b": np.float32("inf"), "c": [0.0]}) == b'{"a":null,"b":null,"c":[0.0]}'
    places = small.places.assign(auc=np.nan)
    header = unpack(pack(_changed(small, places=places))).header
    assert all(p["auc"] is None for p in header["places"])


def _changed(sample: Any, **fields: Any) -> Any:
    from dataclasses import replace

    return replace(sample, **fields)


# --------------------------------------------------------------------------------------- numbers


def test_auc_by_hand() -> None:
    """Scores 1 2 3 against 2 0: pairs won 1, 1.5, 2 of two each; ties count half."""
    found = numbers.auc(np.array([1.0, 2.0, 3.0]), np.array([2.0, 0.0]), np.arange(3), np.arange(2))
    assert found.value == pytest.approx((0.5 + 0.75 + 1.0) / 3)
    # DeLong: variances of the placements over n: [.5 .75 1] and [1/2, 1]
    assert found.stderr == pytest.approx(np.sqrt(0.0625 / 3 + 0.125 / 2))
    assert np.isnan(numbers.auc(np.array([]), np.array([1.0]), np.arange(0), np.arange(1)).value)


def test_tokens_of_one_text_are_not_independent() -> None:
    """The same scores ten times over in the same texts: the error stays that of the texts."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(1, 1, 40), rng.normal(0, 1, 40)
    once = numbers.auc(a, b, np.arange(40), np.arange(40))
    tenfold = numbers.auc(*(np.repeat(v, 10) for v in (a, b, np.arange(40), np.arange(40))))
    naive = numbers.auc(np.repeat(a, 10), np.repeat(b, 10), np.arange(400), np.arange(400))
    assert tenfold.stderr == pytest.approx(once.stderr) and naive.stderr < 0.5 * once.stderr


def test_the_probe_is_scikit_learns() -> None:
    """Same optimum as StandardScaler + LogisticRegression, so the read-out is what locate reports."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(1)
    rows, test = rng.normal(size=(80, 5)) * [1, 10, 0.1, 1, 1], rng.normal(size=(30, 5))
    truth = (rows[:, 0] + 0.05 * rows[:, 1] + rng.normal(size=80) > 0).astype(float)
    theirs = make_pipeline(StandardScaler(), LogisticRegression(tol=1e-10, max_iter=2000)).fit(rows, truth)
    ours = numbers.probe(rows, truth, test) * numbers.GRID
    assert np.allclose(ours, theirs.decision_function(test), atol=1e-5)


JAVASCRIPT = """
const m = await import(process.argv[2]);
const fs = await import("node:fs");
const asked = JSON.parse(fs.readFileSync(process.argv[4]));
const view = m.unpack(fs.readFileSync(process.argv[3]));
const out = asked.map(([place, components]) => ({
  readout: m.readout(view, place, components),
  token: m.tokenAuc(view, m.column(view, place, components[0])),
  signal: m.signal(view, place, components),
}));
for (const file of process.argv.slice(5)) {
  const place = view.replace(fs.readFileSync(file));
  out.push({ place, readout: m.readout(view, place, [0, 9, 15]), tokens: view.places[place].tokens });
}
console.log(JSON.stringify(out, (k, v) => (typeof v === "number" && !Number.isFinite(v) ? null : v)));
"""


def in_javascript(tmp_path: Path, data: bytes, asked: list[Any], *extra: bytes) -> list[Any]:
    """What explorer.js computes from the bytes, by node or, where there is none, by a headless Chromium."""
    files = [tmp_path / f"place-{i}" for i in range(len(extra))]
    for path, content in zip(files, extra, strict=True):
        path.write_bytes(content)
    names = {"module": tmp_path / "explorer.mjs", "data": tmp_path / "data", "asked": tmp_path / "asked.json"}
    names["module"].write_text(static.module(), encoding="utf-8")
    names["data"].write_bytes(data)
    names["asked"].write_text(json.dumps(asked))
    node = shutil.which("node")
    if node is None:
        return in_chromium(data, asked, extra)
    (tmp_path / "run.mjs").write_text(JAVASCRIPT)
    command = [node, str(tmp_path / "run.mjs"), *map(str, (*names.values(), *files))]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def in_chromium(data: bytes, asked: list[Any], extra: tuple[bytes, ...]) -> list[Any]:
    from chromium import launched

    body = JAVASCRIPT.split("const asked", 1)[1].split("\n", 1)[1]
    body = body.replace("fs.readFileSync(process.argv[3])", "bytes(data)").replace("process.argv.slice(5)", "extra")
    body = body.replace("fs.readFileSync(file)", "bytes(file)").replace("console.log(", "return (")
    read = "const bytes = (s) => Uint8Array.from(atob(s), (c) => c.charCodeAt(0));"
    with launched() as browser:
        page = browser.new_page()
        page.add_script_tag(
            type="module", content=f"{static.module()}\nwindow.m = {{unpack, readout, tokenAuc, column, signal}};"
        )
        page.wait_for_function("window.m")
        given = [base64.b64encode(data).decode(), asked, [base64.b64encode(e).decode() for e in extra]]
        return json.loads(page.evaluate(f"([data, asked, extra]) => {{ const m = window.m; {read} {body} }}", given))


def compare(theirs: Any, ours: Any) -> None:
    """Numbers to AGREE, NaN where NaN; counts exactly."""
    for name in ("value", "stderr"):
        assert theirs["auc"][name] == pytest.approx(_null(getattr(ours.auc, name)), abs=AGREE)
    assert (theirs["auc"]["forget"], theirs["auc"]["retain"]) == (ours.auc.forget, ours.auc.retain)
    for name in ("forget", "retain", "unrelated", "random", "disruption"):
        assert theirs[name] == pytest.approx(_null(getattr(ours, name)), abs=AGREE), name


def _null(x: float) -> float | None:
    return None if np.isnan(x) else x


def test_javascript_and_python_agree(tmp_path: Path, small: Any, follower: Follower) -> None:
    """The same bytes, the same numbers to 1e-6: for every kind of choice, of synthetic and of real tokens."""
    for name, sample in (("small", small), ("followed", follower.sample())):
        data = pack(sample)
        packed = unpack(data)
        places = range(len(packed.header["places"]))
        asked = [(p, c) for p in places for c in ([0], [1, 3], [3, 0, 2], [0, 1, 2, 3])]
        folder = tmp_path / name
        folder.mkdir()
        for (place, components), js in zip(asked, in_javascript(folder, data, asked), strict=True):
            compare(js["readout"], packed.readout(place, components))
            token = packed.token_auc(place, components[0])
            assert js["token"]["value"] == pytest.approx(token.value, abs=AGREE)
            assert js["token"]["stderr"] == pytest.approx(token.stderr, abs=AGREE)
            assert js["signal"] == pytest.approx(packed.signal(place, components).tolist(), rel=AGREE)
        aucs = {js["readout"]["auc"]["value"] for js in in_javascript(folder, data, asked)}
        assert len(aucs) > 3, "the choice changes the number (positive control)"


def test_the_kernel_sends_a_place_in_full(tmp_path: Path, big: Packing) -> None:
    """What was thin becomes whole, and JavaScript's numbers are those of the whole."""
    thin = next(i for i, p in enumerate(unpack(big.data).header["places"]) if p["bits"] == 8)
    *_, js = in_javascript(tmp_path, big.data, [], big.place(thin))
    assert js["place"] == thin and js["tokens"] == 20_000
    compare(js["readout"], _whole(big, thin).readout(thin, [0, 9, 15]))


# ------------------------------------------------------------------------------------------ pages


class Tags(HTMLParser):
    """Tags and their attributes; the text inside scripts and styles apart from the rest."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, list[str]] = {"script": [], "style": []}
        self.open = ""
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open = tag if tag in self.inside else self.open
        if tag in self.inside:
            self.inside[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        self.open = "" if tag == self.open else self.open

    def handle_data(self, data: str) -> None:
        if self.open:
            self.inside[self.open][-1] += data
        else:
            self.text += data


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, small: Any) -> str:
    path = save(small, tmp_path_factory.mktemp("page") / "explorer.html", title="<b>Mine & yours</b>")
    return path.read_text(encoding="utf-8")


def test_the_page_asks_nobody_for_anything(page: str) -> None:
    """No address, no way to load or send anything; only the one script whose hash the page allows."""
    tags = Tags(page)
    assert [name for name, _ in tags.tags if name in ("link", "iframe", "object", "embed", "form", "base")] == []
    for name, attributes in tags.tags:
        assert not (attributes.get("src") or "data:").startswith(("http", "//")), name
        assert not [a for a in attributes if a.startswith("on")]
    data, script = tags.inside["script"]
    for word in ("fetch(", "XMLHttpRequest", "WebSocket", "sendBeacon", "import(", "eval(", "new Function", "innerHTML",
                 "insertAdjacent", "document.write", "http:", "https:", "localStorage"):  # fmt: skip
        assert word not in script, word
    assert "url(" not in tags.inside["style"][-1] and "@import" not in "".join(tags.inside["style"])
    policy = next(a["content"] for n, a in tags.tags if a.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy and policy.startswith("default-src 'none'") and f"'sha256-{digest}'" in policy and digest in csp()
    assert base64.b64decode(data) == pack(token_samples.sample(steps=(0, 2, 8)))
    assert "Mine & yours" in page or "&lt;b&gt;Mine &amp; yours" in page
    assert ("b", {}) not in tags.tags


def test_without_a_script_there_is_a_picture_and_a_table(page: str, small: Any) -> None:
    tags = Tags(page)
    image = next(a["src"] or "" for n, a in tags.tags if n == "img")
    assert base64.b64decode(image.split(",")[1]).startswith(b"\x89PNG")
    best = small.places.iloc[unpack(pack(small)).header["open"]]
    assert "null: shuffled" in tags.text and best["site"] in tags.text and f"{best['auc']:.3g}" in tags.text


def test_what_a_corpus_says_stays_text() -> None:
    """Tags, a token of ten thousand characters, terminal escapes: text in the page's data, and short."""
    nasty = token_samples.sample(words=HOSTILE, tokens=300)
    nasty.places.loc[0, "site"] = "<script>alert(1)</script>"
    html = str(fragment(nasty))
    tags = Tags(html)
    assert [n for n, _ in tags.tags].count("script") == 2 and not [n for n, a in tags.tags if "onerror" in a]
    assert "window.hacked" not in html, "the words are inside the base64 block only"
    strings = unpack(pack(nasty)).header["strings"]
    assert any(s.strip() == HOSTILE[0] for s in strings), "and there they are, as they were (positive control)"
    cut = next(s for s in strings if s.strip().startswith("haha"))
    assert len(cut) < 120 and "10,001 characters" in cut and HUGE not in cut
    assert not [s for s in strings if "\x1b" in s or "\u202e" in s or "\n" in s]


def test_redacted_bytes_hold_no_word(small: Any) -> None:
    open_, closed = pack(small), pack(small, redact=True)
    assert b"window" in open_ and b"window" not in closed.split(b'"strings"')[1].split(b"]")[0]
    assert set("".join(unpack(closed).header["strings"])) <= {"▮", " "}


# ----------------------------------------------------------------------------------------- widget


@pytest.fixture
def explorer(real: TokenSample) -> Iterator[Any]:
    pytest.importorskip("anywidget", reason="the notebook extra is not installed")
    from analysis.explorer import explore

    yield explore(real)


def test_the_readout_of_a_place_without_room_is_that_of_the_place_in_full(big: Packing) -> None:
    """The page asks for it as soon as it is opened; all components count, also those past the first eight (without
    them there is another number: the control)."""
    pytest.importorskip("anywidget", reason="the notebook extra is not installed")
    from analysis.explorer import explore

    shown = explore(big.sample)
    shown.place = next(i for i, p in enumerate(shown.packed.header["places"]) if p["bits"] == 8)
    assert shown.packed.header["places"][shown.place]["count"] == 8
    assert shown.readout == _whole(big, shown.place).readout(shown.place, range(16))
    assert shown.readout != shown.packed.readout(shown.place, range(8))


def test_the_selection_goes_both_ways(explorer: Any, found: Subspaces) -> None:
    """What is ticked comes out as Subspaces; what is put in is ticked. Untouched places are whole."""
    key = list(found)[explorer.place]
    assert dict(explorer.selection) == {key: found[key]}
    explorer.chosen = {str(explorer.place): [0, 2]}
    picked = explorer.selection[key]
    assert torch.allclose(picked.basis.abs(), found[key].basis[:, [0, 2]].abs(), atol=1e-5) and picked.rank == 2
    assert explorer.subspace.rank == 2 and explorer.readout == explorer.packed.readout(explorer.place, [0, 2])
    explorer.selection = found.top(3).where(lambda s: s.side == "x")
    assert explorer.pinned == [p for p, (_, side) in enumerate(found) if side == "x"]
    assert explorer.chosen["0"] == [0, 1, 2] and set(explorer.selection) == {k for k in found if k[1] == "x"}
    assert all(torch.equal(s.basis, found[k].top(3).basis) for k, s in explorer.selection.items())
    other = Subspace.of(
        found[key].site, key[1], "random", linalg.random_basis(len(found[key].basis), 2, 0), torch.ones(2)
    )
    with pytest.raises(InputError, match="not a choice of components"):
        explorer.selection = other
    explorer.chosen = {str(explorer.place): []}
    with pytest.raises(InputError, match="no component is ticked"):
        _ = explorer.selection


def test_picked_tokens_are_a_data_frame(explorer: Any, real: TokenSample) -> None:
    explorer.picked = [4, 1]
    assert explorer.tokens["text"].tolist() == real.tokens["text"][[4, 1]].tolist()
    row = explorer.tokens.iloc[0]
    assert row["token"] == real.texts["tokens"][row["text"]][row["position"]]
    explorer.go_to("blocks.2.mlp.out", "g")
    assert list(real.spaces)[explorer.place] == ("blocks.2.mlp.out", "g")
    with pytest.raises(InputError, match=r"no place 'blocks\.9"):
        explorer.go_to("blocks.9.mlp.out")


def test_a_saved_notebook_is_not_blank(explorer: Any) -> None:
    """Beside the live view a PNG and a table, for whoever opens it without a kernel."""
    data, _ = explorer._repr_mimebundle_()
    assert (
        base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
        and "application/vnd.jupyter.widget-view+json" in data
    )
    assert "<table>" in data["text/html"] and "blocks." in data["text/html"] and data["image/png"] in data["text/html"]


def test_a_thin_place_is_answered_in_full(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("anywidget", reason="the notebook extra is not installed")
    from analysis.explorer.widget import Explorer

    shown, sent = Explorer(small, limit=16_000), []
    place = next(i for i, p in enumerate(shown.packed.header["places"]) if p["bits"] == 8)
    monkeypatch.setattr(shown, "send", lambda content, buffers: sent.append((content, buffers)))
    shown._asked(None, {"kind": "place", "place": place}, [])
    ((content, (data,)),) = sent
    assert content == {"kind": "place"} and unpack(data).header["entry"]["tokens"] == len(shown._packing.kept)


def test_the_model_is_asked_from_the_page(tiny: Any, real: TokenSample, monkeypatch: pytest.MonkeyPatch) -> None:
    """For what is ticked, and it is the model's own answer where nothing is scaled; what cannot be asked is said."""
    pytest.importorskip("anywidget", reason="the notebook extra is not installed")
    from analysis.explorer import explore

    shown, sent = explore(real, preview=preview(tiny, new_tokens=6)), []
    assert shown.asks and not explore(real).asks
    monkeypatch.setattr(shown, "send", sent.append)
    prompt = corpus("heldout").rows[0]["prompt"]
    shown._asked(None, {"kind": "preview", "prompt": prompt, "scale": -40.0}, [])
    alone = sample_of(tiny, corpus("heldout").take(1), n=1, new_tokens=6, temperature=0)[0].completion
    assert sent[0]["plain"] == alone and sent[0]["changed"] != alone and sent[0]["scale"] == -40.0
    shown.chosen = {str(shown.place): []}
    shown._asked(None, {"kind": "preview", "prompt": prompt, "scale": 0.0}, [])
    assert "no component is ticked" in sent[1]["error"]


def test_scaled_directions(tiny: Any, found: Subspaces) -> None:
    """At 0 nothing passes along them, at 1 nothing changes, at 2 twice as much passes; on both sides of one weight."""
    for (name, side), space in found.items():
        weight, one = models.weight(tiny, space.site).detach(), Subspaces({(name, side): space})
        none, same, twice = (weight + scaled(tiny, one, s).updates[name] for s in (0.0, 1.0, 2.0))
        passed = [(w if side == "x" else w.T) @ space.basis for w in (none, weight, twice)]
        assert torch.allclose(passed[0], torch.zeros(()), atol=1e-5) and torch.equal(same, weight)
        assert torch.allclose(passed[2], 2 * passed[1], atol=1e-5)
    both = weight + scaled(tiny, found, 0.0).updates[name]
    x, g = found.bases(name)
    assert (both @ x).abs().max() < 1e-5 and (both.T @ g).abs().max() < 1e-5


def test_without_anywidget_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch, small: Any) -> None:
    from analysis.explorer import explore

    monkeypatch.setitem(sys.modules, "anywidget", None)
    monkeypatch.delitem(sys.modules, "analysis.explorer.widget", raising=False)
    with pytest.raises(ImportError, match=r"hooklearn\[notebook\].*explorer\.save"):
        explore(small)


# ------------------------------------------------------------------------------- tokens of a model


def test_the_readout_is_what_locate_reported(real: TokenSample, found: Subspaces) -> None:
    """Same texts held out, same probe: with all components the AUC is Subspace.auc, place by place."""
    packed = unpack(pack(real))
    for p, space in enumerate(found.values()):
        assert packed.readout(p, range(4)).auc.value == pytest.approx(space.auc, abs=1e-9)
    assert min(s.auc for s in found.values()) + 0.05 < max(s.auc for s in found.values()) < 0.99


def test_coordinates_and_energies_are_those_of_the_model(real: TokenSample, found: Subspaces, tiny: Any) -> None:
    """One held-out threat, captured on its own: its tokens have the coordinates of the sample (16 bits)."""
    from hooklearn.locate.capture import tapes

    sequences = encode(mixed(), models.tokenizer_of(tiny))
    ((p, space),) = [(p, s) for p, s in enumerate(found.values()) if (s.site.name, s.side) == ("blocks.2.mlp.out", "x")]
    held = [i for i in range(24) if real.texts["held_out"][i]]
    inside = whole = 0.0
    for i in held:
        ((_, taped),) = tapes(
            tiny,
            batches([sequences[i]]),
            [space.site],
            gradients=False,
            positions="labelled",
            precision="float32",
        )
        on = (taped[space.site.name].x @ space.basis).numpy()
        inside, whole = inside + float((on**2).sum()), whole + float(taped[space.site.name].x.square().sum())
        first = int(sequences[i].labels.nonzero()[0])
        for t in np.flatnonzero(real.tokens["text"] == i):
            shown = real.codes[t, 4 * p : 4 * p + 4] * real.scales[4 * p : 4 * p + 4]
            exact = on[real.tokens["position"][t] - first]
            assert np.abs(shown - exact).max() <= real.scales[4 * p : 4 * p + 4].max()
    assert real.places["forget_energy"][p] == pytest.approx(inside / whole, rel=1e-4)
    assert real.components.query("place == @p")["forget"].sum() == pytest.approx(inside / whole, rel=1e-4)


def test_tokens_are_stratified(real: TokenSample) -> None:
    """As many of each corpus and of held-out and fitted texts as there are; the first fifty of them already."""
    rows = real.texts.iloc[real.tokens["text"]].reset_index(drop=True)
    whole = rows.groupby(["corpus", "held_out"]).size()
    assert len(rows) == 300 and set(whole) == {60}
    assert set(rows[:50].groupby(["corpus", "held_out"]).size()) == {10}
    assert not real.tokens.duplicated().any() and real.facts["n_tokens"]["forget"] > 200


def test_disruption_is_predicted(real: TokenSample, found: Subspaces, tiny: Any) -> None:
    """Projecting a place out is a change of its weight: a tenth of it costs a hundredth of the predicted KL.

    Within a factor of 1.67, and 10 % on average: labels are drawn eight times for some thousand tokens. The places
    differ by more than tenfold.
    """
    stream = batches(encode(corpus("unrelated").take(30), models.tokenizer_of(tiny)))
    with torch.no_grad():
        before = [forward.logits(tiny, b) for b in stream]
    ratios, predictions = [], []
    for p, space in enumerate(found.values()):
        weight, q = models.weight(tiny, space.site).detach(), space.basis
        out = weight @ q @ q.T if space.side == "x" else q @ q.T @ weight
        with editing.edited(tiny, Delta({space.site.name: -0.1 * out})), torch.no_grad():
            after = [forward.logits(tiny, b) for b in stream]
        kl = sum((losses.kl(a, b) for a, b in zip(before, after, strict=True)), losses.LossSum(torch.zeros(()), 0))
        predictions.append(float(real.disruption[p].sum()) / 2)
        ratios.append(100 * float(kl.mean) / predictions[-1])
    assert max(predictions) > 10 * min(predictions)
    assert min(ratios) > 0.6 and max(ratios) < 1.67, np.round(ratios, 2).tolist()
    assert np.exp(np.log(ratios).mean()) == pytest.approx(1.0, abs=0.1)


def test_time_follows_the_directions(real: TokenSample, follower: Follower) -> None:
    """The original first, then the arms in order, of the last attacker; only the edited arm has tokens."""
    after = follower.sample()
    assert after.time.to_dict("list") == {
        "arm": ["original", "edited", "edited", "never", "never"], "step": [0, 0, 4, 0, 4]
    }  # fmt: skip
    assert after.facts["attack"] == "relearn lr=2"
    assert after.means.shape == (5, real.codes.shape[1], 2) and len(after.frames) == 4
    assert {f.shape for f in after.frames.values()} == {(2, 300, 4)}
    packed = unpack(pack(after))
    place = int(real.places["layer"].argmax())
    signal = packed.signal(place, range(4))
    assert signal[3] == signal[0], "never, before it is trained, is the model itself here: what is followed is exact"
    assert len(set(np.round(signal, 6))) == 4


def test_followed_tokens_are_the_sampled_ones(real: TokenSample, follower: Follower, tiny: Any) -> None:
    """Unedited, a frame is the sample itself, token by token; to the rounding of int16."""
    eyes = follow(tiny, real, mixed(), corpus("forget", "good").take(24), unrelated=corpus("unrelated").take(30),
                  precision="float32")  # fmt: skip
    eyes("relearn", "", "edited", 0, tiny)
    seen = eyes.followed()
    for p, frames in seen.frames.items():
        own = slice(4 * p, 4 * p + 4)
        before = real.codes[:, own] * real.scales[own]
        assert np.abs(frames[0] * seen.frame_scales[p] - before).max() <= 2 * real.scales[own].max()
    held = real.places.loc[list(seen.frames)]
    assert (held["auc"] - held["auc_shuffled"]).min() >= (real.places["auc"] - real.places["auc_shuffled"]).nlargest(
        4
    ).min()


def test_energy_along_directions(follower: Follower, found: Subspaces, shrink: Delta) -> None:
    """The attacker gave half of the edit back, so that it has the edit's shares; those are the formula's. Along own
    directions they fall, and never add up to more than all."""
    rows = follower.followed().directions
    key = ["site", "side", "along", "component"]
    mine = rows[rows["arm"] == "edited"].pivot_table("share", key, "of")
    assert np.allclose(mine["edit"], mine["attack"], atol=1e-6)
    shares = mine["edit"].to_dict()
    followed = [place for place in found if (*place, "located", 0) in shares]
    assert len(followed) == 4
    for name, side in followed:
        update, basis = shrink.updates[name].double(), found[name, side].basis.double()
        along = update @ basis if side == "x" else update.T @ basis
        exact = along.square().sum(0) / update.square().sum()
        assert np.allclose([shares[name, side, "located", i] for i in range(4)], exact, atol=1e-6)
    own = rows[rows["along"] == "own"].groupby(["site", "side", "of", "arm", "step"])["share"]
    assert (own.sum() <= 1 + 1e-6).all() and (own.apply(lambda s: s.is_monotonic_decreasing)).all()
    assert set(rows["of"]) == {"forget", "retain", "edit", "attack", "classes"}
    packed, classes = unpack(pack(follower.sample())), rows[rows["of"] == "classes"]
    place = list(found).index(followed[0])
    mine = classes[(classes["site"] == followed[0][0]) & (classes["side"] == followed[0][1])]
    signal = packed.signal(place, range(4))
    drawn = mine.groupby(["arm", "step"], sort=False)["share"].sum()
    assert np.allclose(drawn, signal / signal[0], atol=1e-6), "the figure is the slider's line"


def test_what_diverged_is_left_out(tiny: Any, real: TokenSample) -> None:
    given = (tiny, real, mixed(), corpus("forget", "good").take(24))
    with pytest.raises(InputError, match="corpora that were sampled"):
        follow(*given)
    eyes = follow(*given, unrelated=corpus("unrelated").take(30), precision="float32")
    with pytest.raises(InputError, match="onlooker"):
        eyes.followed()
    eyes("relearn", "", "edited", 0, tiny)
    with editing.restored(tiny), torch.no_grad():
        models.weight(tiny, real.spaces.sites[0]).fill_(torch.nan)
        eyes("relearn", "", "edited", 2, tiny)
    assert eyes.followed().time["step"].tolist() == [0, 0]


def test_a_second_edit_and_another_fold_begin_anew(real: TokenSample, shrink: Delta, tiny: Any) -> None:
    """Under the same attack and setting: what is told is of the last one alone."""
    eyes = follow(tiny, real, mixed(), corpus("forget", "good").take(24), unrelated=corpus("unrelated").take(30),
                  precision="float32")  # fmt: skip

    def attacked(delta: Delta) -> Any:
        for step, now in ((0, delta), (2, 0.5 * delta)):
            with editing.edited(tiny, now):
                eyes("erode", "lr=1", "edited", step, tiny)
        return eyes.followed()

    first, second = attacked(shrink), attacked(0.5 * shrink)
    assert second.time.equals(first.time) and len(second.directions) == len(first.directions)
    assert not np.array_equal(second.means, first.means), "and it is another edit"


def test_a_saved_sample_is_the_sample(real: TokenSample, follower: Follower, tmp_path: Path) -> None:
    """With an attack put into it later, and put into it again, it is the sample that was saved with it."""
    path = real.save(tmp_path / "tokens.safetensors")
    assert pack(load(path)) == pack(real)
    for _ in range(2):
        follower.followed().add_to(path)
        assert pack(load(path)) == pack(follower.sample())
    (tmp_path / "broken").write_bytes(path.read_bytes()[:500])
    with pytest.raises(InputError, match="damaged"):
        load(tmp_path / "broken")
    with pytest.raises(InputError, match="no such file"):
        load(tmp_path / "nothing")


def test_nothing_to_look_at_is_said(tiny: Any) -> None:
    with pytest.raises(InputError, match="no subspaces"):
        sample_tokens(tiny, Subspaces({}), corpus("forget"), corpus("forget", "good"))


def test_a_norm_may_be_held_in_another_type() -> None:
    """What LayerNorm does to directions is taken in its own type: rounding is that of bfloat16."""
    norm = torch.nn.LayerNorm(8)
    torch.nn.init.uniform_(norm.weight)
    single, half = _linear(norm, torch.eye(8)), _linear(norm.bfloat16(), torch.eye(8))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, single, atol=3e-2, rtol=0)


def test_the_lens_reads_planted_directions(tiny: Any) -> None:
    """The unembedding of a word writes that word; what reads its embedding reads it; the opposite is the opposite."""
    lens, tokenizer = Lens(tiny), models.tokenizer_of(tiny)
    word = tokenizer.convert_tokens_to_ids("harbour")
    out = next(s for s in models.sites(tiny, "mlp.out", [3]))
    unembed = tiny.original_model.get_output_embeddings().weight.detach()
    scale = tiny.ln_final(torch.ones(1, 1, 64)).detach()[0, 0]
    only = torch.linalg.pinv(unembed)[:, word] / scale  # the direction whose logits are nearest to that one word
    said = lens.words(out, "g", (only / only.norm())[:, None])[0]
    assert said["writes"][0] == "harbour" and "harbour" not in said["writes_against"] and said["reads"] == []
    gate = next(s for s in models.sites(tiny, "mlp.gate", [0]))
    seen = tiny.original_model.get_input_embeddings().weight.detach()
    normed = (seen - seen.mean(0))[word] / tiny.blocks[0].ln2(torch.ones(1, 1, 64)).detach()[0, 0]
    read = lens.words(gate, "x", (normed / normed.norm())[:, None])[0]
    assert read["reads"][0] == "harbour" and read["writes"] == []
    flipped = lens.words(gate, "x", -(normed / normed.norm())[:, None])[0]
    assert flipped["reads_against"][0] == "harbour" and flipped["reads"] == read["reads_against"]
    assert lens.read(Site(0, "attn.o", 64, 64), "x", torch.eye(64)) is None


def test_pieces_read_like_the_whole(tiny: Any) -> None:
    tokenizer = models.tokenizer_of(tiny)
    ids = tokenizer("write to anna about the ladder :")["input_ids"]
    assert "".join(Spelling(tokenizer).pieces(ids)) == tokenizer.decode(ids)


def test_the_script_cannot_end_its_own_tag() -> None:
    assert not re.search(r"</script|<!--", static.script(), re.I) and "</style" not in static.style()
