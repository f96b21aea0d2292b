"""What stands in each section of the report: plain values, and figures ready to be placed."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from analysis import markup, plots
from analysis.envelope import envelope
from analysis.estimates import Frame, pooled
from analysis.reading import Run
from analysis.recovery import ARMS as TIMED
from analysis.recovery import recovery_table
from analysis.spoken import is_incoherent
from analysis.style import ARMS, METRICS
from analysis.tables import ALL, capability_table, edit_name, in_order, number, summary_table

Content = dict[str, Any]
Row = Mapping[str, Any]

PROMPTS = 8
PANELS = 60
"""Most panels of curves on one page; the data of the others can be downloaded from it."""


def facts(run: Run) -> list[tuple[str, str]]:
    """What a reader asks first: which model, what is compared with what, how much was measured."""
    verdict, record = run.verdict or {}, run.record
    sizes = {(m.get("n_items"), m.get("n_seeds")) for m in (verdict.get("metrics") or {}).values()}
    known = [(i, s) for i, s in sizes if i and s]
    edits = dict.fromkeys(edit_name(e) for e in run.edits)
    done = record.get("status") == "done"
    none = "none was set" if done or run.edits else ""
    kept = {True: "kept", False: "broken", None: none}[verdict.get("within_budget")]
    found = [
        ("model", str((record.get("model") or {}).get("name") or "")),
        ("edit", ", ".join(edits) or ("none: two models, as they are" if done else "")),
        ("budget", kept),
        ("battery", str(verdict.get("battery") or "")),
        ("never-learned control", _named(record.get("never")) or "none"),
        ("measured on", _size(*known[0]) if len(known) == 1 else ""),
    ]
    return [(name, value) for name, value in found if value]


def _size(items: int, seeds: int) -> str:
    return f"{items} items, {'one seed' if seeds == 1 else f'{seeds} seeds'}"


def _named(thing: Any) -> str:
    """``{"kind": "model", "name": "never"}`` in words."""
    if not isinstance(thing, Mapping):
        return str(thing or "")
    name, kind = thing.get("name") or "", thing.get("kind") or ""
    return f"{name} ({kind})" if name and kind else str(name or kind)


def decisive(run: Run) -> Content | None:
    """The attack under which most came back: the picture beside the verdict."""
    rows = plots.worst(run.verdict).to_dict("records")
    for row in sorted(rows, key=lambda r: -r["max_R"]):
        metric = str(row["metric"])
        panels = plots.curve_panels(plots.curve_rows(run, metric))
        panel = panels.get((str(row["attack"]), str(row["setting"] or "")))
        if panel is not None and "edited" in set(panel["arm"]):
            alt = f"{METRICS.get(metric, metric)} under {row['attack']} {row['setting'] or ''}"
            figure, data = markup.embed(plots.curves(panel, metric), alt), markup.csv_link(panel, "decisive")
            return {"figure": figure, "max_R": row["max_R"], "data": data}
    return None


# -------------------------------------------------------------------------------------- behaviour


def summary(run: Run) -> Content:
    """The small table: per metric and arm the behaviour before, and at worst under each attack."""
    table = summary_table(run)
    wide = [c for c in table.columns if ": " in c]
    columns = list(dict.fromkeys(c.partition(": ")[2] for c in wide))
    groups = []
    for metric in dict.fromkeys(c.partition(": ")[0] for c in wide):
        own = table.reindex(columns=[f"{metric}: {column}" for column in columns])
        groups.append(
            {
                "metric": METRICS.get(metric, metric),
                "top": max(number(own.max(axis=None, skipna=True)), 1e-9),
                "rows": list(zip(table["arm"], own.to_numpy(float).tolist(), strict=True)),
            }
        )
    disruption = table.reindex(columns=["arm", "far KL", "near CE"])
    return {
        "columns": columns,
        "groups": groups,
        "disruption": disruption.to_dict("records"),
        "capability": _capability(run),
    }


def _capability(run: Run) -> Content | None:
    """A row per arm, a column per set of the panel, and the change of all of them; None where no panel was given."""
    if run.capability.empty:
        return None
    table = capability_table(run)
    sets = list(dict.fromkeys(table["set"]))
    found = {(row["arm"], row["set"]): row for row in table.to_dict("records")}
    rows = [
        {
            "arm": arm,
            "cells": [found.get((arm, name), {}) for name in sets],
            "change": number(found[arm, ALL]["change"]),
            "stderr": number(found[arm, ALL]["change_stderr"]),
        }
        for arm in dict.fromkeys(table["arm"])
    ]
    sizes = {row["set"]: row["n"] for row in table.to_dict("records")}
    return {"sets": [(name, sizes[name]) for name in sets], "rows": rows}


def curves(run: Run) -> list[Content]:
    """Per metric one figure per attack and setting, the first metric open."""
    groups, drawn = [], 0
    for metric in in_order(run.curves["metric"], list(METRICS)):
        rows = plots.curve_rows(run, metric)
        if rows.empty:
            continue
        panels = plots.curve_panels(rows)
        shown = dict(list(panels.items())[: max(0, PANELS - drawn)])
        top = plots.ceiling(rows)
        figures = plots.curve_figures(shown, metric, top)
        drawn += len(shown)
        groups.append(
            {
                "metric": metric,
                "name": METRICS.get(metric, metric),
                "figures": [_panel(f, key, p, metric) for f, (key, p) in zip(figures, shown.items(), strict=True)],
                "left_out": len(panels) - len(shown),
                "data": markup.csv_link(rows, f"curves-{metric}"),
                "worst": worst_at_each_step(run, metric, top),
                "recovery": recovery(run, metric),
            }
        )
    return groups


def worst_at_each_step(run: Run, metric: str, top: float) -> Content | None:
    """A panel per attack with several settings and one for all relearning; None where there is no choice."""
    table: Frame = envelope(run, metric)
    table = table[table["attackers"] > 1]
    if table.empty:
        return None
    panels = plots.curve_panels(table)
    figures = plots.curve_figures(panels, metric, top)
    return {
        "figures": [_panel(f, key, p, metric) for f, (key, p) in zip(figures, panels.items(), strict=True)],
        "data": markup.csv_link(table, f"worst-at-each-step-{metric}"),
    }


def recovery(run: Run, metric: str) -> Content | None:
    """Steps and tokens until half of it is back, a row an attack; None where no attack took steps, or of none it is
    known when (samples are often drawn at the end only)."""
    table = recovery_table(run, metric)
    arms = [arm for arm in TIMED if f"{arm}: steps" in table]
    if table[[f"{arm}: steps" for arm in arms]].isna().to_numpy().all():
        return None
    rows = [
        {**row, "times": [(arm, *(row[f"{arm}: {what}"] for what in ("steps", "samples", "tokens"))) for arm in arms]}
        for row in table.to_dict("records")
    ]
    return {"arms": arms, "rows": rows, "data": markup.csv_link(table, f"half-back-{metric}")}


def _panel(figure: Any, key: tuple[str, str], panel: Any, metric: str) -> Any:
    ends = pooled(panel[panel["step"] == panel["step"].max()], ["arm"])
    told = ", ".join(f"{r.arm} {r.value:.3g}" for r in ends.itertuples())
    name = METRICS.get(metric, metric)
    return markup.embed(figure, f"{name} under {' '.join(key).strip()}; at its end: {told}")


# -------------------------------------------------------------------------------------- elsewhere


def elsewhere(run: Run) -> Content:
    """Disruption against its budgets, beside the never-learned model's own distance."""
    measures = [
        _disruption(run, "kl", "far KL", "on text that has nothing to do with the edit"),
        _disruption(run, "near_ce", "near CE", "on held-out good neighbours"),
    ]
    trace = {"figure": None}
    if not run.trace.empty:
        alt = "forget score against disruption along the edit, one line per seed"
        data = markup.csv_link(run.trace, "trace")
        trace = {"figure": markup.embed(plots.trace(run), alt), "data": data}
    return {"measures": [m for m in measures if m["bars"]], "edits": run.edits, "trace": trace}


def _disruption(run: Run, key: str, name: str, where: str) -> Content:
    bars = []
    for edit in run.edits:
        found = edit.get("disruption") or {}
        bars.append(
            {
                "name": f"edited, seed {edit.get('seed')}",
                "arm": "edited",
                "value": number(found.get(key)),
                "stderr": number(found.get(f"{key}_stderr")),
                "n": found.get(f"{key}_n"),
                "binds": edit.get("binding") == key,
            }
        )
    for arm, found in (run.record.get("yardsticks") or {}).items():
        value = number((found or {}).get(key))
        bars.append({"name": f"{arm}, as it is", "arm": arm, "value": value, "stderr": None})
    budgets = [number((e.get("budget") or {}).get(key)) for e in run.edits]
    budget = max((b for b in budgets if b == b), default=None)
    reach = [b["value"] for b in bars if b["value"] == b["value"]] + [budget or 0.0]
    top = 1.08 * max(reach) or 1.0
    for bar in bars:
        bar["share"] = max(0.0, bar["value"] / top) if bar["value"] == bar["value"] else 0.0
    at = None if budget is None else budget / top
    return {"key": key, "name": name, "where": where, "bars": bars, "budget": budget, "at": at}


# ---------------------------------------------------------------------------------------- samples


def samples(run: Run, *, redact: bool = False) -> Content:
    """The same prompts, chosen by the seed, in four columns."""
    attack = _sampled_attack(run)
    columns = [
        ("never", "never learned", _first(run, "never", ("none", ""))),
        ("original", "original", _first(run, "original", ("none", ""))),
        ("edited", "edited", _first(run, "edited", ("none", ""))),
    ]
    if attack:
        title = f"edited, after {attack[0]}" + (f" ({attack[1]})" if attack[1] else "")
        columns.append(("edited", title, _first(run, "edited", attack)))
    columns = [c for c in columns if c[2]]
    items = sorted({item for _, _, found in columns for item in found}, key=str)
    chosen = random.Random(_seed(run)).sample(items, min(PROMPTS, len(items)))
    least = number((run.record.get("referee") or {}).get("least_fluent"))
    prompts = []
    for item in sorted(chosen, key=str):
        found = [(arm, title, of_item.get(item)) for arm, title, of_item in columns]
        prompt = next(s for _, _, s in found if s).get("prompt")
        cells = [{"arm": arm, "title": title, **_cell(s, least, redact)} for arm, title, s in found]
        prompts.append({"item": item, "prompt": _text(prompt, redact), "cells": cells})
    return {"prompts": prompts, "n_items": len(items), "rate": _rate(run)}


def _sampled_attack(run: Run) -> tuple[str, str] | None:
    """The attack under which most came back, among those that were sampled."""
    sampled = dict.fromkeys(
        (str(s.get("attack")), str(s.get("setting") or ""))
        for s in run.heldout_samples
        if s.get("arm") == "edited" and s.get("attack") not in (None, "none")
    )
    rows = plots.worst(run.verdict).to_dict("records")
    judged = [(str(r["attack"]), str(r["setting"] or "")) for r in sorted(rows, key=lambda r: -r["max_R"])]
    return next((a for a in judged if a in sampled), next(iter(sampled), None))


def _first(run: Run, arm: str, attack: tuple[str, str]) -> dict[Any, Row]:
    """item -> its sample at the attack's last step, of the first seed that has one."""
    of_arm = [
        s for s in run.heldout_samples if s.get("arm") == arm and (s.get("attack"), s.get("setting") or "") == attack
    ]
    last = max((number(s.get("step")) for s in of_arm), default=0)
    found: dict[Any, Row] = {}
    for s in sorted(of_arm, key=lambda s: number(s.get("seed"))):
        if number(s.get("step")) == last:
            found.setdefault(s.get("item"), s)
    return found


def _seed(run: Run) -> int:
    return int((run.record.get("seeds") or [0])[0])


def _cell(sample: Row | None, least: float, redact: bool) -> Content:
    if sample is None:
        return {"text": None, "cut": "", "judged": None, "score": None, "incoherent": False}
    text = _text(sample.get("completion"), redact)
    judged = {"judged": sample.get("is_behaviour"), "score": sample.get("referee")}
    return {**text, **judged, "incoherent": is_incoherent(sample, least) == 1}


def _text(text: Any, redact: bool) -> Content:
    text = str(text or "")
    shown, cut = (markup.redacted(text), "") if redact else markup.clip(text)
    return {"text": shown, "cut": cut}


def _rate(run: Run) -> Content | None:
    table = plots.rate_table(run)
    if table.empty:
        return None
    alt = "sampled rate per arm, before and at the end of each attack, with 95 % intervals"
    figure = markup.embed(plots.samples_rate(table), alt)
    return {"figure": figure, "data": markup.csv_link(table, "sampled-rate")}


# -------------------------------------------------------------------------------- attacks, verdict


def attacks(run: Run) -> list[Content]:
    """What each attack does, what it took, and how its settings ended on the edited model."""
    rows: Frame = run.curves
    edited: Frame = rows[(rows["arm"] == "edited") & (rows["attack"] != "none")]
    declared = [{**a, "name": str(a.get("name"))} for a in run.record.get("attacks") or []]
    names = [a["name"] for a in declared]
    listed = []
    for about in declared:
        own = edited[edited["attack"] == about["name"]]
        if names.count(about["name"]) > 1:  # one attack with other options: its settings tell whose a curve is
            told = [*(about.get("settings") or ()), *(s.get("setting") for s in about.get("spent") or ())]
            own = own[own["setting"].isin([str(setting or "") for setting in told])]
        listed.append({**about, "runs": _runs(own, about.get("spent") or ())})
    for name in dict.fromkeys(edited["attack"]):
        if name not in names:
            own = edited[edited["attack"] == name]
            listed.append({"name": name, "cheap": bool(own["cheap"].any()), "runs": _runs(own, ())})
    return listed


def _runs(rows: Frame, spent: Sequence[Row]) -> list[Content]:
    took = {str(one.get("setting") or ""): one for one in spent}  # seeds differ by where the edited arm became flat
    return [
        {
            "setting": setting,
            "steps": int(of_setting["step"].max()),
            "tokens": number(of_setting["tokens"].max()),
            **{key: number(took.get(str(setting), {}).get(key)) for key in ("rows", "samples", "flops")},
            "converged": bool(of_setting["converged"].all()),
            "diverged": bool(of_setting["diverged"].any()),
        }
        for setting, of_setting in rows.groupby("setting", sort=False)
    ]


def judgement(run: Run) -> Content:
    """The numbers that decided: per metric, per attacker, and the thresholds they were held to."""
    verdict = run.verdict or {}
    rows = [{"split": "heldout", **row} for row in verdict.get("attacks") or []]
    strip, worst = None, plots.worst(verdict)
    if not worst.empty:
        alt = "how much of the behaviour came back under each attack, with 95 % intervals"
        figure = markup.embed(plots.verdict_strip(run), alt)
        strip = {"figure": figure, "data": markup.csv_link(worst, "came-back")}
    metrics = {METRICS.get(m, m): values for m, values in (verdict.get("metrics") or {}).items()}
    return {
        "strip": strip,
        "metrics": metrics,
        "splits": {
            split: _by_metric([r for r in rows if r["split"] == split])
            for split in in_order((r["split"] for r in rows), ("heldout",))
        },
        "thresholds": verdict.get("thresholds") or {},
    }


def _by_metric(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Cheap attackers first, and the one under which most came back before the others."""
    ordered = sorted(rows, key=lambda r: (not r.get("cheap"), -(r.get("max_R") or 0.0)))
    metrics = in_order((str(r.get("metric")) for r in rows), list(METRICS))
    return {METRICS.get(m, m): [r for r in ordered if str(r.get("metric")) == m] for m in metrics}


def arms(run: Run) -> list[str]:
    """The arms that anything was measured on, the most important first."""
    return in_order(run.curves["arm"], list(ARMS))


def arm_class(arm: str) -> str:
    """The style class of an arm; names that the house style does not know share one."""
    return arm if arm in ARMS else "other"
