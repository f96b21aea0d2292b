"""The explorer in a real browser: state goes in, events come out, and nothing is logged or loaded on the way.

Layer one is the widget with a model that a test holds; layer two the static page, opened from disk and offline.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import token_samples
from chromium import launched, strict_page
from token_samples import HOSTILE

from analysis.explorer import pack, save, static, unpack
from analysis.explorer.packing import Packing

MODEL = """
window.start = async (payload, state) => {
  const bytes = Uint8Array.from(atob(payload), (c) => c.charCodeAt(0));
  const handlers = {};
  const model = {
    state: {
      payload: new DataView(bytes.buffer), place: -1, axes: [0, 1], chosen: {}, pinned: [], step: 0, picked: [],
      ...state,
    },
    saves: 0, sent: [],
    get: (key) => model.state[key],
    set: (key, value) => { model.state[key] = value; },
    save_changes: () => { model.saves += 1; },
    on: (event, handler) => { (handlers[event] ??= []).push(handler); },
    off: (event, handler) => { handlers[event] = (handlers[event] ?? []).filter((h) => h !== handler); },
    send: (message) => { model.sent.push(message); },
    fire: (event, ...given) => { for (const h of [...(handlers[event] ?? [])]) h(...given); },
    put: (key, value) => { model.state[key] = value; model.fire(`change:${key}`); },
    listening: () => Object.values(handlers).flat().length,
  };
  window.model = model;
  const el = document.createElement("div"); // JupyterLab attaches it later
  window.stop = await window.explorer.render({ model, el });
  document.querySelector("main").append(el);
};
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as found:
        yield found


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    with strict_page(browser) as found:
        ready(found)
        yield found


@pytest.fixture(scope="module")
def sample() -> Any:
    return token_samples.sample(layers=4, modules=("attn.v", "mlp.in", "mlp.out"), sides=("x", "g"), steps=(0, 2, 8))


def ready(page: Any) -> None:
    """An empty page with the module and the fake model."""
    page.set_content(f"<meta charset=utf-8><style>{static.style()}</style><main></main>")
    page.add_script_tag(type="module", content=f"{static.module()}\nwindow.explorer = {{ render, hydrate }};")
    page.wait_for_function("window.explorer")
    page.add_script_tag(content=MODEL)


def start(page: Any, data: bytes, **state: Any) -> None:
    page.evaluate("([data, state]) => window.start(data, state)", [base64.b64encode(data).decode(), state])
    page.wait_for_selector(".hlx-card")


def state(page: Any, key: str) -> Any:
    return page.evaluate("(key) => window.model.state[key]", key)


def drag(page: Any, selector: str, path: list[tuple[float, float]], *held: str) -> None:
    """Along a path in shares of the element's box."""
    box = page.locator(selector).bounding_box()
    at = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in path]
    for key in held:
        page.keyboard.down(key)
    page.mouse.move(*at[0])
    page.mouse.down()
    for x, y in at[1:]:
        page.mouse.move(x, y, steps=5)
    page.mouse.up()
    for key in held:
        page.keyboard.up(key)


def circle(x: float, y: float, r: float) -> list[tuple[float, float]]:
    return [(x + r * math.cos(a / 8), y + r * math.sin(a / 8)) for a in range(51)]


def tile(page: Any, key: str) -> str:
    return page.locator(f"[data-key={key}] b").inner_text()


# ------------------------------------------------------------------------------------------- state


def test_state_goes_in(page: Any, sample: Any) -> None:
    """What Python sets before and after is on screen; nothing is sent back for it."""
    start(page, pack(sample), place=4, chosen={"4": [0, 2]}, axes=[2, 1])
    assert page.locator(".hlx-head code").inner_text() == "blocks.0.mlp.out"
    assert page.locator(".hlx-ranklabel").inner_text() == "2 of 4, chosen one by one"
    assert page.locator(".hlx-card input").evaluate_all("(b) => b.map((x) => x.checked)") == [True, False, True, False]
    assert page.locator(".hlx-pair select").first.input_value() == "2"
    page.evaluate("() => { model.put('place', 11); model.put('chosen', {11: [0]}); model.put('picked', [1, 2, 3]); }")
    assert page.locator(".hlx-head h3").inner_text().startswith("blocks.1.mlp.out")
    assert page.locator('.hlx-seg input[value="g"]').is_checked()
    assert page.locator(".hlx-ranklabel").inner_text() == "first 1 of 4"
    assert page.locator(".hlx-picked li").count() == 3
    assert page.evaluate("model.saves") == 0


def test_numbers_on_screen_are_pythons(page: Any, sample: Any) -> None:
    data = pack(sample)
    packed = unpack(data)
    start(page, data, place=8, chosen={"8": [0, 3]})
    ours = packed.readout(8, [0, 3])
    assert tile(page, "auc").startswith(f"{ours.auc.value:.2f}") and f"{ours.auc.stderr:.2f}" in tile(page, "auc")
    assert tile(page, "retain") == f"{100 * ours.retain:.2g} %" and tile(page, "disruption") == f"{ours.disruption:.2g}"
    token = packed.token_auc(8, 0)
    assert f"AUC {token.value:.2f} ± {token.stderr:.2f}" in page.locator(".hlx-along").inner_text()


def test_a_closed_view_listens_no_more(page: Any, sample: Any) -> None:
    start(page, pack(sample))
    assert page.evaluate("model.listening()") > 5
    page.evaluate("window.stop()")
    assert page.evaluate("model.listening()") == 0


def test_a_new_payload_replaces_the_old(page: Any, sample: Any) -> None:
    start(page, pack(sample))
    other = base64.b64encode(pack(token_samples.sample(rank=3))).decode()
    page.evaluate(
        "(d) => model.put('payload', new DataView(Uint8Array.from(atob(d), (c) => c.charCodeAt(0)).buffer))", other
    )
    assert page.locator(".hlx-card").count() == 3 and page.locator(".hlx").count() == 1


# ------------------------------------------------------------------------------------------ events


def test_a_click_on_the_map_opens_a_place(page: Any, sample: Any) -> None:
    start(page, pack(sample), place=0)
    page.locator('.hlx-map button[title^="blocks.3.attn.v"]').click()
    assert state(page, "place") == [p["site"] for p in unpack(pack(sample)).header["places"]].index("blocks.3.attn.v")
    page.locator('.hlx-seg input[value="g"]').check()
    chosen = unpack(pack(sample)).header["places"][state(page, "place")]
    assert (chosen["site"], chosen["side"]) == ("blocks.3.attn.v", "g")
    for side in ("x", "g"):  # the map is the side's, and the place that is open is marked on it
        page.locator(f'.hlx-seg input[value="{side}"]').check()
        cells = page.locator(".hlx-map button").evaluate_all("all => all.map((c) => c.title)")
        assert cells and all(f"· {side}" in title for title in cells)
        assert page.locator('.hlx-map button[aria-selected="true"]').count() == 1
    for metric in ("retain", "ratio"):
        page.locator(f'.hlx-seg input[value="{metric}"]').check()
        assert "×" in page.locator(".hlx-ends").inner_text()
    page.locator(".hlx-pin").click()
    assert state(page, "pinned") == [state(page, "place")] and page.locator(".hlx-pinned").count() == 1


def test_a_lasso_picks_what_it_holds(page: Any, sample: Any) -> None:
    """Tokens inside the circle and no others; shift adds, alt takes away, a click on nothing picks none."""
    start(page, pack(sample))
    assert page.locator(".hlx-hint").count() == 1
    drag(page, ".hlx-over", circle(0.5, 0.5, 0.2))
    first = state(page, "picked")
    assert 10 < len(first) < 600 and page.locator(".hlx-picked li").count() == min(30, len(first))
    assert f"{len(first)} token" in page.locator(".hlx-picked p").first.inner_text()
    drag(page, ".hlx-over", circle(0.75, 0.5, 0.12), "Shift")
    both = state(page, "picked")
    assert set(first) < set(both)
    drag(page, ".hlx-over", circle(0.5, 0.5, 0.2), "Alt")
    assert set(state(page, "picked")) == set(both) - set(first)
    page.locator('.hlx-seg input[value="box"]').check()
    drag(page, ".hlx-over", [(0.004, 0.004), (0.996, 0.996)])
    assert len(state(page, "picked")) == 600
    page.locator(".hlx-over").click(position={"x": 60, "y": 14})
    assert len(state(page, "picked")) <= 1


def test_a_brush_on_the_histogram_picks_a_range(page: Any, sample: Any) -> None:
    """The right half: tokens of high coordinates on the horizontal axis only, and most of them forget."""
    data = pack(sample)
    start(page, data)
    drag(page, ".hlx-hist", [(0.62, 0.5), (0.99, 0.5)])
    picked = state(page, "picked")
    packed = unpack(data)
    on = packed.block(packed.header["open"])["codes"][:, 0]
    others = [i for i in range(600) if i not in set(picked)]
    assert len(picked) > 50 and min(on[picked]) >= max(on[others]) - 200
    kinds = [packed.array("text_corpus")[packed.array("token_text")[i]] for i in picked]
    assert kinds.count(0) > 0.8 * len(kinds)


def test_the_rank_slider_and_the_boxes_choose(page: Any, sample: Any) -> None:
    start(page, pack(sample))
    key = str(unpack(pack(sample)).header["open"])
    before = tile(page, "disruption")
    drag(page, ".hlx-rank", [(0.98, 0.5), (0.02, 0.5)])
    assert state(page, "chosen") == {key: [0]} and tile(page, "disruption") != before
    page.locator(".hlx-card input").nth(2).check()
    assert state(page, "chosen") == {key: [0, 2]}
    page.locator(".hlx-card input").nth(0).uncheck()
    page.locator(".hlx-card input").nth(2).uncheck()
    assert state(page, "chosen") == {key: []} and tile(page, "auc") == "–"
    page.locator(".hlx-card").nth(3).locator(".hlx-axis").first.click()
    assert state(page, "axes") == [3, 1] and "component 4" in page.locator(".hlx-along").inner_text()


def test_everything_can_be_done_by_keyboard(page: Any, sample: Any) -> None:
    """Another place, another rank, components, axes, tokens, keeping and letting go: without a pointer."""
    start(page, pack(sample), place=0)
    page.locator(".hlx-map button[tabindex='0']").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    assert unpack(pack(sample)).header["places"][state(page, "place")]["site"] == "blocks.1.mlp.in"
    assert page.evaluate("document.activeElement.getAttribute('aria-selected')") == "true"
    page.keyboard.press("p")
    assert state(page, "pinned") == [state(page, "place")]
    here = str(state(page, "place"))
    page.keyboard.press("[")
    assert state(page, "chosen")[here] == [0, 1, 2]
    page.keyboard.press("2")
    assert state(page, "chosen")[here] == [0, 2]
    page.keyboard.press("y")
    assert state(page, "axes") == [0, 2]
    page.locator(".hlx-over").focus()
    for key in ("ArrowLeft", "ArrowUp", "ArrowRight", "ArrowDown", "+", "+", "+", "Enter"):
        page.keyboard.press(key)
    assert len(state(page, "picked")) > 5
    page.keyboard.press("Escape")
    assert state(page, "picked") == []
    page.locator(".hlx-rank").focus()
    page.keyboard.press("End")
    assert state(page, "chosen")[here] == [0, 1, 2, 3]
    page.wait_for_function("document.querySelector('.hlx-live').textContent.includes('held-out AUC')")


def test_time_moves_the_tokens(page: Any, sample: Any) -> None:
    """After the edit little of the signal is left, at the end of the attack most: the numbers of the sample."""
    data = pack(sample)
    packed = unpack(data)
    place = next(iter(sample.frames))
    start(page, data, place=place)
    along = page.locator(".hlx-along").inner_text()
    page.locator(".hlx-time input").focus()
    page.keyboard.press("ArrowRight")
    assert state(page, "step") == 1 and page.locator(".hlx-along").inner_text() != along
    share = packed.signal(place, range(4)) / packed.signal(place, range(4))[0]
    said = page.locator(".hlx-timelabel").inner_text()
    assert "before any attack" in said and f"{100 * share[1]:.0f} %" in said and f"{100 * share[4]:.0f} %" in said
    assert page.locator(".hlx-stops").inner_text().split() == ["original", "edited", "2", "8"]
    page.locator(".hlx-map button").first.focus()
    page.keyboard.press(".")
    assert state(page, "step") == 2, "from anywhere in the explorer"
    page.keyboard.press(",")
    assert state(page, "step") == 1
    page.locator(".hlx-time input").focus()
    page.keyboard.press("End")
    assert f"After 8 attack steps, {100 * share[3]:.0f} %" in page.locator(".hlx-timelabel").inner_text()


def test_the_model_can_be_asked(page: Any, sample: Any) -> None:
    """What is typed stays in its field, a key's usual meaning sleeps there, and the answers are text. Without a model
    that can be asked there is no field."""
    start(page, pack(sample), asks=True)
    page.locator(".hlx-ask input[type=text]").focus()
    page.keyboard.type("1x. tell anna")
    page.locator(".hlx-ask input[type=range]").fill("2")
    assert page.locator(".hlx-ask output").inner_text() == "scaled by 2.0"
    page.locator(".hlx-ask button").click()
    assert page.evaluate("model.sent") == [{"kind": "preview", "prompt": "1x. tell anna", "scale": 2}]
    assert state(page, "chosen") == {} and state(page, "axes") == [0, 1] and state(page, "step") == 0
    page.evaluate(
        "(text) => model.fire('msg:custom', { kind: 'preview', plain: text, changed: '', scale: 2 }, [])", HOSTILE[0]
    )
    assert page.locator(".hlx-ask dd").all_inner_texts() == [HOSTILE[0], "(nothing)"]
    page.evaluate("() => model.fire('msg:custom', { kind: 'preview', error: 'no component is ticked' }, [])")
    assert page.locator(".hlx-ask dd").inner_text() == "no component is ticked"
    start(page, pack(sample))
    assert page.locator(".hlx-ask").count() == 1, "the second view has none"


def test_a_thin_place_is_asked_for_and_grows(page: Any) -> None:
    """The page asks once; when the bytes come it shows all tokens and all components."""
    packing = Packing(token_samples.sample(layers=4, rank=10), limit=60_000)
    packed = unpack(packing.data)
    thin = next(i for i, p in enumerate(packed.header["places"]) if p["bits"] == 8)
    start(page, packing.data, place=thin)
    assert page.locator(".hlx-card").count() == 8 and "8 bits" in page.locator(".hlx-note").inner_text()
    assert page.evaluate("model.sent") == [{"kind": "place", "place": thin}]
    page.evaluate(
        "(d) => model.fire('msg:custom', { kind: 'place' },"
        " [new DataView(Uint8Array.from(atob(d), (c) => c.charCodeAt(0)).buffer)])",
        base64.b64encode(packing.place(thin)).decode(),
    )
    assert page.locator(".hlx-card").count() == 10 and "8 bits," not in page.locator(".hlx-note").inner_text()
    assert page.evaluate("model.sent.length") == 1


# ------------------------------------------------------------------------------------------- pages


def test_hostile_text_stays_text(page: Any) -> None:
    """Shown as it is, run by nobody; a token of ten thousand characters breaks nothing."""
    nasty = token_samples.sample(words=HOSTILE, tokens=300)
    start(page, pack(nasty), picked=list(range(40)))
    page.locator(".hlx-over").hover(position={"x": 300, "y": 200})
    assert HOSTILE[0] in page.locator(".hlx-picked").inner_text()
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("document.querySelectorAll('main script, main img').length") == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 1440


def test_bytes_that_are_no_payload_are_said(browser: Any) -> None:
    """The one case in which something is logged."""
    page = browser.new_page()
    ready(page)
    page.evaluate("window.explorer.hydrate(document.querySelector('main'), btoa('nonsense'))")
    assert "no explorer payload" in page.locator(".hlx-error").inner_text()
    page.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, sample: Any) -> Path:
    return save(sample, tmp_path_factory.mktemp("static") / "explorer.html")


def test_the_static_page_works_without_a_kernel(browser: Any, report: Path) -> None:
    """From disk, offline, under its own content policy: slider, brush, lasso and read-outs."""
    with strict_page(browser) as page:
        page.goto(report.as_uri())
        page.wait_for_selector(".hlx-card")
        before = tile(page, "retain")
        page.locator(".hlx-rank").focus()
        page.keyboard.press("Home")
        assert tile(page, "retain") != before and page.locator(".hlx-ranklabel").inner_text() == "first 1 of 4"
        drag(page, ".hlx-over", circle(0.5, 0.5, 0.2))
        assert page.locator(".hlx-picked li").count() > 5
        page.locator(".hlx-map button").nth(3).click()
        assert page.locator(".hlx-picked li").count() > 5, "the same tokens, at another place"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_the_page_fits_and_follows_the_scheme(browser: Any, report: Path, width: int, scheme: str) -> None:
    with strict_page(browser, width=width, scheme=scheme) as page:
        page.goto(report.as_uri())
        page.wait_for_selector(".hlx-card")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator(".hlx").get_attribute("data-theme") == scheme
        paper = page.locator(".hlx").evaluate("(e) => getComputedStyle(e).backgroundColor")
        assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(27, 30, 35)"}[scheme]
        page.emulate_media(color_scheme="dark" if scheme == "light" else "light")
        page.wait_for_function("(s) => document.querySelector('.hlx').dataset.theme !== s", arg=scheme)


def test_without_scripts_the_picture_stays(browser: Any, report: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    assert page.locator("[data-hlx] img").bounding_box()["width"] > 300
    assert "null: shuffled" in page.locator("[data-hlx] table").inner_text()
    context.close()


COLOURS = """() => {
  const canvas = document.querySelector(".hlx-dots"), seen = { forget: 0, retain: 0, other: 0 };
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  for (let i = 0; i < data.length; i += 4) {
    if (data[i + 3] < 90) continue;
    const [r, g, b] = data.subarray(i, i + 3);
    seen[r > b + 60 ? "forget" : b > r + 60 ? "retain" : "other"] += 1;
  }
  return seen;
}"""


def test_twenty_thousand_points_are_drawn(page: Any) -> None:
    """In the colours of their corpora, also where the element is attached after rendering; all can be picked."""
    start(page, pack(token_samples.sample(tokens=20_000, texts=200)))
    assert "20,000 tokens" in page.locator(".hlx-note").inner_text()
    page.wait_for_timeout(100)
    seen = page.evaluate(COLOURS)
    assert seen["forget"] > 3_000 and seen["retain"] > 3_000
    drag(page, ".hlx-over", [(0.01, 0.01), (0.99, 0.01), (0.99, 0.99), (0.01, 0.99), (0.01, 0.02)])
    assert len(state(page, "picked")) > 19_000


OPEN = """async (payload) => {
  const took = [];
  for (let i = 0; i < 3; i++) {
    const start = performance.now();
    window.explorer.hydrate(document.querySelector("main"), payload);
    await new Promise((painted) => requestAnimationFrame(() => setTimeout(painted, 0)));
    took.push(performance.now() - start);
  }
  return Math.min(...took);
}"""
DRAG = """async ([kind, steps]) => {
  const plot = document.querySelector(".hlx-over"), slider = document.querySelector(".hlx-time input");
  const box = plot.getBoundingClientRect();
  plot.setPointerCapture = () => {}; // there is no such pointer
  const at = (k) => ({
    bubbles: true, pointerId: 1, clientX: box.left + box.width * (0.5 + 0.4 * Math.cos(k / 9.4)),
    clientY: box.top + box.height * (0.5 + 0.4 * Math.sin(k / 9.4)),
  });
  const step = (k) => {
    if (kind === "lasso") return plot.dispatchEvent(new PointerEvent("pointermove", at(k)));
    slider.value = String(k % (+slider.max + 1));
    slider.dispatchEvent(new Event("input"));
  };
  if (kind === "lasso") plot.dispatchEvent(new PointerEvent("pointerdown", at(0)));
  for (let k = 1; k <= steps; k++) {
    step(k);
    await new Promise((painted) => requestAnimationFrame(() => setTimeout(painted, 0)));
  }
  if (kind === "lasso") plot.dispatchEvent(new PointerEvent("pointerup", at(steps)));
}"""


def busy(page: Any, kind: str, steps: int = 59) -> float:
    """Milliseconds of processor time that the page's own thread takes for one step of a drag, drawing included."""
    devtools = page.context.new_cdp_session(page)
    devtools.send("Performance.enable", {"timeDomain": "threadTicks"})

    def so_far() -> float:
        return next(
            m["value"] for m in devtools.send("Performance.getMetrics")["metrics"] if m["name"] == "TaskDuration"
        )

    before = so_far()
    page.evaluate(DRAG, [kind, steps])
    return 1000 * (so_far() - before) / steps


def test_thirty_layers_of_seven_sites_open_and_answer_at_once(page: Any) -> None:
    """Two seconds to the first picture, best of three; 50 ms a step of a drag over 20,000 tokens, lasso and time slider
    (measured: .72 s, 14 and 17 ms). Of processor time, as other work on the machine is not the page's."""
    assert page.evaluate(OPEN, base64.b64encode(pack(token_samples.big())).decode()) < 2_000
    assert 0.5 < busy(page, "lasso") < 50, "something was measured"
    picked = page.locator(".hlx-picked strong").inner_text()
    assert int(picked.split()[0].replace(",", "")) > 15_000, "the lasso held most of them"
    assert busy(page, "time") < 50


@pytest.mark.parametrize("width", [390, 1440])
def test_the_time_slider_moves_twenty_thousand_tokens(browser: Any, width: int) -> None:
    """Every one of them followed through eight attack steps: 50 ms of processor time a step (measured: 20)."""
    sample = token_samples.sample(tokens=20_000, texts=200, steps=(0, 1, 2, 4, 8, 16, 32, 64), followed=20_000)
    with strict_page(browser, width=width) as page:
        ready(page)
        start(page, Packing(sample, limit=8_000_000).data)
        assert busy(page, "time") < 50
        assert state(page, "step") == 59 % 9
        for _ in range(3):
            page.keyboard.press(",")
        page.wait_for_timeout(100)
        assert page.evaluate(COLOURS)["forget"] > 1_000


def test_a_lasso_that_crosses_itself_follows_the_even_odd_rule(page: Any) -> None:
    """Point by point, as a pointer moves, and against a rule written here: a star, whose middle is outside."""
    path = [(50 + 45 * math.sin(4 * math.pi * k / 5), 50 - 45 * math.cos(4 * math.pi * k / 5)) for k in range(5)]
    at = [(x + 0.25, y + 0.25) for x in range(0, 100, 3) for y in range(0, 100, 3)]
    page.add_script_tag(type="module", content=f"{static.module()}\nwindow.Lasso = Lasso;")
    page.wait_for_function("window.Lasso !== undefined")
    inside = page.evaluate(
        "([path, xs, ys]) => { const l = new window.Lasso(xs.length); for (const p of path) l.add(p, xs, ys);"
        " return [...l.inside]; }",
        [path, [x for x, _ in at], [y for _, y in at]],
    )

    def crossings(x: float, y: float) -> int:
        edges = zip(path, path[1:] + path[:1], strict=True)
        return sum((ay > y) != (by > y) and x < ax + (y - ay) / (by - ay) * (bx - ax) for (ax, ay), (bx, by) in edges)

    assert inside == [crossings(x, y) % 2 for x, y in at]
    assert 50 < sum(inside) < 500
    assert inside[at.index((51.25, 51.25))] == 0, "the middle is covered twice"


def test_without_scripts_a_narrow_page_does_not_scroll_sideways(browser: Any, sample: Any, tmp_path: Path) -> None:
    """Picture and table of the page that nobody's script has touched fit a phone; the table scrolls in itself."""
    path = save(sample, tmp_path / "explorer.html")
    context = browser.new_context(viewport={"width": 390, "height": 844}, java_script_enabled=False)
    page = context.new_page()
    page.goto(path.as_uri())
    box = page.locator("table").bounding_box()
    assert box["width"] > 390, "the table itself is wider: there is something to hold"
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    context.close()
