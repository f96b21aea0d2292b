"""Figures: every one of them from any run, in one style, and without touching matplotlib's state."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from drawn_runs import Drawn, flat, rising, write_run
from matplotlib.figure import Figure

from analysis import energy_by_component, envelope, plots, reemergence, spectra, style
from analysis.estimates import pooled, same_seeds, wilson
from analysis.layers import by_layer
from analysis.outcome import behaviour
from analysis.reading import Run, read_run
from analysis.tables import _worst
from analysis.verdict import judge
from analysis.view import _facts

FIGURES = {
    "curves": plots.curves,
    "samples_rate": plots.samples_rate,
    "separation_map": lambda run: plots.separation_map(run.locate),
    "trace": plots.trace,
    "verdict_strip": plots.verdict_strip,
    "by_layer": by_layer,
    "spectra": spectra,
    "energy_by_component": energy_by_component,
    "reemergence": reemergence,
    "envelope": lambda run: plots.curves(envelope(run)),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """All arms; attacks with steps, without, and with several settings; three seeds."""
    run = read_run(write_run(tmp_path_factory.mktemp("runs") / "whole", items=12))
    return replace(run, verdict=judge(run, write=False).to_dict())


def texts(figure: Figure) -> set[str]:
    figure.canvas.draw()
    return {t.get_text() for t in figure.findobj(matplotlib.text.Text)}  # type: ignore[attr-defined]


def test_what_the_verdict_dropped_is_not_its_worst_attack() -> None:
    """Another setting of that attack came to rest; one that diverged with nothing in its place stays (control)."""
    found = [
        {"attack": "erode", "setting": s, "split": "heldout", "cheap": True, "max_R": r, "dropped": d, "diverged": True}
        for s, r, d in (("lr=0.01", 0.86, True), ("lr=0.001", 0.3, False))
    ]
    assert plots.worst({"attacks": found})["setting"].tolist() == ["lr=0.001"]


def test_an_attack_that_diverged_hides_no_other_on_the_page_of_runs(tmp_path: Path) -> None:
    """It is first by its name; the worst is that of the attack that has one."""
    nothing = [float("nan")] * 8
    arms = {"original": flat(0.8), "never": flat(0.1)}
    attacks = [
        Drawn("erode", {"edited": nothing, "original": nothing, "never": nothing}, diverged=True),
        Drawn("relearn", arms | {"edited": rising(0.1, 0.7)}),
    ]
    before = {"edited": [0.1], "original": [0.8], "never": [0.1]}
    run = read_run(write_run(tmp_path / "run", attacks=attacks, before=before))
    assert _facts(run)["worst"] == pytest.approx(0.2 * 0.7, abs=0.01), "completion is drawn at a fifth"


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_returned_and_no_global_state_is_touched(run: Run, name: str) -> None:
    before = dict(matplotlib.rcParams)
    figure = FIGURES[name](run)
    figure.canvas.draw()
    assert isinstance(figure, Figure)
    assert dict(matplotlib.rcParams) == before
    from matplotlib import pyplot

    assert pyplot.get_fignums() == [], "pyplot knows the figure: it would be kept and shown"


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_measured_is_said_not_raised(run: Run, name: str) -> None:
    frames = ("curves", "items", "trace", "locate", "evidence", "directions")
    nothing = replace(run, verdict=None, **{f: getattr(run, f)[:0] for f in frames})
    assert any("no" in text for text in texts(FIGURES[name](nothing)))


@pytest.mark.parametrize("name", FIGURES)
def test_nan_everywhere_does_not_break_a_figure(run: Run, name: str) -> None:
    def blank(frame: pd.DataFrame) -> pd.DataFrame:
        return frame.assign(**{c: np.nan for c in frame.select_dtypes("float")})

    frames = {f: blank(getattr(run, f)) for f in ("curves", "trace", "locate", "evidence", "directions")}
    FIGURES[name](replace(run, **frames)).canvas.draw()


def test_the_dot_of_a_way_is_the_edit_as_reported(run: Run) -> None:
    """A near budget makes the walk look at half of where it lands, too, after it has landed."""
    looked = run.trace[run.trace["seed"] == 0].iloc[-1:].assign(step=99, kl=0.002, near_ce=0.001, forget=0.12)
    for trace in (run.trace, pd.concat([run.trace, looked])):
        axes = plots.trace(replace(run, trace=trace)).axes[0]
        dots = [float(x) for line in axes.lines if line.get_marker() == "o" for x in np.atleast_1d(line.get_xdata())]
        assert dots == [e["disruption"]["kl"] for e in run.record["edits"]]


def test_one_panel_per_attack_and_setting(run: Run) -> None:
    figure = plots.curves(run, "preference")
    attacks = run.curves[run.curves["attack"] != "none"]
    assert len(figure.axes) == len(attacks.groupby(["attack", "setting"]))
    assert all(ax.get_xlabel() and ax.get_ylabel() for ax in figure.axes)
    assert {"edited", "original", "never", "matched"} <= texts(figure), "lines carry their names"


def test_an_attack_without_steps_is_drawn_from_before_to_after(run: Run) -> None:
    panels = plots.curve_panels(plots.curve_rows(run, "preference"))
    few_shot = panels["few-shot", ""]
    edited = pooled(few_shot[few_shot["arm"] == "edited"])
    assert edited["step"].tolist() == [-1, 0]
    assert edited["value"].tolist() == pytest.approx([0.1, 0.15])
    assert {"before", "after"} <= texts(plots.curves(run, "preference"))


def test_axis_marks_steps_at_log2_of_one_plus_step(run: Run) -> None:
    axes = plots.curves(run).axes[0]
    labels = {t.get_text(): t.get_position()[0] for t in axes.get_xticklabels()}
    assert labels["0"] == 0
    assert labels["64"] == pytest.approx(np.log2(65))


def test_no_never_arm_one_seed_and_many_attacks(tmp_path) -> None:
    arms = {"edited": rising(0.1, 0.6, 4), "original": flat(0.8, 4)}
    attacks = [Drawn(f"attack-{i}", arms, f"lr={i}") for i in range(9)]
    run = read_run(write_run(tmp_path / "many", attacks=attacks, seeds=[3], items=6))
    figure = plots.curves(run)
    assert len(figure.axes) == 9
    assert "never" not in texts(figure)


def test_dollar_signs_in_names_are_not_mathematics(tmp_path) -> None:
    arms = {"edited": flat(0.1, 3), "original": flat(0.8, 3), "never": flat(0.1, 3)}
    run = read_run(write_run(tmp_path / "dollar", attacks=[Drawn("a$_", arms, r"$\frac$")]))
    for figure in (plots.curves(run), plots.samples_rate(run)):
        figure.canvas.draw()


def test_pooled_adds_the_spread_of_seeds_to_the_error_of_items() -> None:
    rows = pd.DataFrame({"arm": "edited", "step": 0, "value": [0.2, 0.4], "stderr": [0.03, 0.03], "n": 50})
    (one,) = pooled(rows).itertuples()
    assert one.value == pytest.approx(0.3)
    assert one.stderr == pytest.approx(np.sqrt(0.03**2 + 0.02 / 2))
    assert (one.n, one.seeds) == (50, 2)
    lone = pooled(rows.assign(stderr=np.nan)[:1])
    assert np.isnan(lone["stderr"].item()), "one seed and no item error: unknown, not 0"


def test_sampled_rate_counts_all_seeds_and_has_an_interval_at_zero(run: Run) -> None:
    table = plots.rate_table(run)
    start = table[(table["attack"] == "none") & (table["arm"] == "original")].iloc[0]
    rows = run.curves.query("attack == 'none' and arm == 'original' and metric == 'sampled' and split == 'heldout'")
    assert start["n"] == rows["n"].sum()
    assert start["rate"] == pytest.approx(rows["value"].mean())
    low, high = wilson(0, 20)
    assert low == 0
    assert 0.1 < high < 0.2


def test_prompts_of_a_group_count_once(run: Run) -> None:
    """Prompts in groups of three have the interval of a third as many; the share is that of all."""
    n = int(run.curves.query("attack == 'none' and metric == 'sampled' and split == 'heldout'")["n"].iloc[0])
    together = replace(run, record={"corpora": {"heldout": {"item_groups": [i // 3 for i in range(n)]}}})
    apart, grouped = (plots.rate_table(r).iloc[0] for r in (run, together))
    assert n % 3 == 0 and grouped["rate"] == apart["rate"] and grouped["n"] == apart["n"]
    assert (grouped["low"], grouped["high"]) == pytest.approx(wilson(n / 3 * grouped["rate"], n / 3))
    assert grouped["high"] - grouped["low"] > 1.3 * (apart["high"] - apart["low"])


def test_labels_are_spread_no_more_than_needed() -> None:
    assert style.spread([0.1, 0.9], 0.1) == pytest.approx([0.1, 0.9])
    moved = style.spread([0.5, 0.5, 0.52], 0.1)
    assert sorted(np.diff(sorted(moved))) == pytest.approx([0.1, 0.1])
    assert np.mean(moved) == pytest.approx(np.mean([0.5, 0.5, 0.52]))


def test_separation_is_above_its_null_and_not_the_best_of_fitters(run: Run) -> None:
    table = plots.separation(run.locate)
    assert table["above_null"].tolist() == pytest.approx((table["auc"] - 0.5).tolist())
    assert table["energy_ratio"].tolist() == pytest.approx([3.0] * len(table))
    worse = run.locate.assign(fitter="other", auc=0.5)
    both = plots.separation(pd.concat([run.locate, worse]))
    assert (both["above_null"] < table["above_null"]).all()


def test_energy_is_drawn_at_the_end_of_the_attack_beside_a_random_direction(run: Run) -> None:
    """Every line is named, one axis a place, and the attacker's line is that of its last step."""
    figure = energy_by_component(run)
    assert {"edit", "attacker", "on never", "forget", "retain", "random"} <= texts(figure)
    assert len(figure.axes) == run.directions["site"].nunique()
    last = run.directions.query("of == 'attack' and arm == 'edited' and along == 'located'").nlargest(1, "step")
    lines = {round(float(line.get_ydata()[0]), 6) for line in figure.axes[0].get_lines() if len(line.get_ydata()) == 4}
    assert round(float(last["share"].iloc[0]), 6) in lines


def test_reemergence_adds_up_the_components(run: Run) -> None:
    """The original starts at 1 by construction; here four components with a quarter each."""
    starts = [float(line.get_ydata()[0]) for line in reemergence(run).axes[0].lines]
    assert starts == pytest.approx([0.1, 1.0, 0.15]), "never, original, edited: the edited one on top"


def test_an_envelope_is_the_worst_attacker_at_each_step(tmp_path) -> None:
    """By hand: another attacker leads at every stage; one that has ended keeps what it had, one that was not looked at
    stands at its last look. What diverged, takes no steps or does not relearn is not in it; each arm has its own."""

    def drawn(name: str, setting: str, steps: tuple[int, ...], edited: list[float], **how) -> Drawn:
        n = len(steps)
        arms = {"edited": edited, "original": flat(0.8, n), "never": [0.1, *rising(0.1, 0.3, n)[1:]]}
        return Drawn(name, arms, setting, steps=steps, **how)

    attacks = [
        drawn("relearn", "lr=1", (0, 1, 2, 4), [0.1, 0.5, 0.6, 0.6]),
        drawn("relearn", "lr=2", (0, 1, 2, 4, 8), [0.1, 0.2, 0.4, 0.7, 0.5]),
        drawn("relearn", "lr=9", (0, 1, 2), [0.1, 0.99, 0.99], diverged=True),
        drawn("low_mi", "lr=1", (0, 8), [0.3, 0.9]),
        drawn("erode", "lr=1", (0, 8), [0.1, 0.95]),
        drawn("few_shot", "", (0,), [0.97]),
    ]
    run = write_run(tmp_path / "run", attacks=attacks, metrics=["preference"], items=12)
    table = envelope(run, "preference").set_index(["attack", "arm", "step"]).sort_index()

    def along(attack: str, arm: str = "edited") -> list[tuple[int, float, str]]:
        of = table.loc[attack, arm]
        return [(s, round(v, 9), by) for s, v, by in zip(of.index, of["value"], of["by"], strict=True)]

    one, two = "relearn (lr=1)", "relearn (lr=2)"
    assert along("relearn") == [(0, 0.1, one), (1, 0.5, one), (2, 0.6, one), (4, 0.7, two), (8, 0.6, one)]
    both = along("any relearning")
    assert [v for _, v, _ in both] == [0.3, 0.5, 0.6, 0.7, 0.9] and both[-1][2] == "low_mi (lr=1)"
    assert along("any relearning", "never")[-1][1] == 0.3 and set(table.loc["any relearning", "attackers"]) == {3}
    assert set(table.index.get_level_values("attack")) == {"relearn", "low_mi", "erode", "any relearning"}
    assert envelope(run, "completion").empty
    drawn_at = texts(plots.curves(envelope(run, "preference"), "preference"))
    assert "any relearning" in drawn_at and any("worst of 3 attackers" in t for t in drawn_at)


def test_labels_keep_their_heights_on_a_logarithmic_axis() -> None:
    _, (ax,) = style.grid(1, 1, 3, 3)
    ax.set_yscale("log")
    ax.set_ylim(1e-4, 1)
    style.label_ends(ax, {"edit": 1e-2, "forget": 1e-4})
    assert [t.get_position()[1] for t in ax.texts] == pytest.approx([0.5, 0.0])


def test_seeds_that_end_where_they_are_flat_are_still_counted() -> None:
    """One seed ends at step 8 with half of its samples bad, the other at 16 with none: 16 of 64 in the end and not 0 of
    32, and the mean does not fall because a seed is no longer there."""
    row = {"attack": "relearn", "setting": "", "arm": "edited", "split": "heldout", "n": 32, "stderr": 0.0, "tokens": 1}
    row |= {"cheap": False, "converged": True, "diverged": False}
    ends = [(0, 8, 0.5), (1, 8, 0.5), (1, 16, 0.0)]
    looks = [{"seed": seed, "step": step, "value": value} for seed, step, value in ends]
    curves = pd.DataFrame([row | {"metric": m} | look for m in ("sampled", "completion") for look in looks])
    (shown,) = plots.rate_table(curves).to_dict("records")
    assert (shown["k"], shown["n"]) == (16, 64)
    one_seed = pytest.approx(wilson(8, 32))  # both were asked the same 32 prompts
    assert (shown["low"], shown["high"]) == one_seed != pytest.approx(wilson(16, 64))
    assert behaviour(curves)["relearn"]["edited"]["sampled"]["after"] == pytest.approx(0.25)
    rows = plots.curve_rows(curves, "completion")
    assert sorted(zip(rows["seed"], rows["step"], rows["value"], strict=True)) == sorted([*ends, (0, 16, 0.5)])


@pytest.mark.parametrize("flat", [True, False])
def test_a_mean_over_seeds_is_one_over_all_of_them_wherever_each_ended(flat: bool) -> None:
    """Three seeds end at 16, 32 and 64 with .6, .1 and .1 of the samples bad: .267 in the end, and nowhere the .6 of
    one of them. By then the step 2, which all have, is .3. A seed that was still rising stands for no later step."""
    row = {"attack": "relearn", "setting": "", "cheap": False, "split": "heldout", "n": 32, "diverged": False}
    ends = {0: (16, 0.6), 1: (32, 0.1), 2: (64, 0.1)}
    looks = [(s, step, value, "sampled") for s, (step, value) in ends.items()]
    looks += [(2, 32, 0.2, "completion")]
    looks += [(s, 2, 0.3, "completion") for s in ends] + [(s, end, 0.2, "completion") for s, (end, _) in ends.items()]
    rows = pd.DataFrame(
        [
            row | {"arm": arm, "seed": s, "step": step, "value": value, "metric": m, "stderr": 0.03, "tokens": step,
                   "converged": flat and arm == "edited"}
            for s, step, value, m in looks for arm in ("edited", "never")
        ]
    )  # fmt: skip
    found = behaviour(rows)["relearn"]
    for arm in ("edited", "never"):
        assert found[arm]["sampled"]["worst"] == found[arm]["sampled"]["after"] == pytest.approx(0.8 / 3)
        assert found[arm]["worst"] == pytest.approx(0.3), "completion"
        of_seeds = np.var([0.6, 0.1, 0.1], ddof=1) / 3
        assert found[arm]["sampled"]["stderr"] == pytest.approx(np.sqrt(0.03**2 + of_seeds)), "items are shared"
    summary = {arm: _worst(rows.assign(n=32))["completion", "relearn", arm] for arm in ("edited", "never")}
    assert summary == {arm: pytest.approx(found[arm]["worst"]) for arm in summary}, "the table says the same"
    steps = set(same_seeds(rows[rows["metric"] == "completion"])["step"])
    assert steps == {2, 64} | ({32} if flat else set())


def test_controls_of_a_seed_that_came_to_rest_count_at_later_steps_too() -> None:
    """Seed 0 ends flat at 8, seed 1 at 32: at 16 *never* is .65, of both, and not left out, nor .7 of one."""
    row = {"attack": "relearn", "setting": "", "cheap": False, "split": "heldout", "n": 32, "diverged": False}
    row |= {"metric": "completion", "stderr": 0.03, "tokens": 1}
    looks = [(0, 8, 0.6, True), (1, 8, 0.6, False), (1, 16, 0.7, False), (1, 32, 0.2, False)]
    rows = pd.DataFrame(
        [row | {"arm": arm, "seed": s, "step": step, "value": value, "converged": flat and arm == "edited"}
         for s, step, value, flat in looks for arm in ("edited", "never")]
    )  # fmt: skip
    assert behaviour(rows)["relearn"]["never"]["worst"] == pytest.approx(0.65)
    assert _worst(rows)["completion", "relearn", "never"] == pytest.approx(0.65)


def test_a_seed_that_diverged_is_drawn_as_far_as_it_came() -> None:
    """Its last look is no end: the other seed's curve keeps its steps, and its own stay where they were."""
    row = {"attack": "relearn", "setting": "", "cheap": False, "split": "heldout", "n": 32, "converged": False}
    row |= {"metric": "completion", "stderr": 0.03, "tokens": 1, "arm": "edited"}
    looks = [(0, 0, 0.0), (0, 2, 0.2), (0, 8, 0.9), (1, 0, 0.0), (1, 2, 0.1), (1, 8, np.nan)]
    rows = pd.DataFrame([row | {"seed": s, "step": t, "value": v, "diverged": s == 1} for s, t, v in looks])
    drawn = plots.curve_rows(rows, "completion")
    found = sorted(zip(drawn["seed"], drawn["step"], drawn["value"], strict=True))
    assert found == [look for look in looks if look[2] == look[2]]
