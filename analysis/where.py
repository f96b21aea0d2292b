"""What the report says of the inside: where the behaviour is, along which directions, and what is still there."""

from __future__ import annotations

from typing import Any

from analysis import directions, explorer, layers, markup, plots
from analysis.estimates import Frame
from analysis.evidence.judge import findings
from analysis.reading import Run
from analysis.tables import in_order

Content = dict[str, Any]

TOP_SITES = 10
EVIDENCE_SITES = 40


def where(run: Run, *, redact: bool = False) -> Content:
    """Where the behaviour separates, beside the nulls; what was measured inside the model."""
    content: Content = {"figure": None, "sites": [], "n_sites": len(run.locate)}
    if not run.locate.empty:
        table = plots.separation(run.locate)
        alt = "heat maps over layers and modules: held-out AUC above the null, and energy ratio"
        content["figure"] = markup.embed(plots.separation_map(run.locate), alt)
        content["data"] = markup.csv_link(table, "separation")
        sites = run.locate.assign(above=run.locate["auc"] - run.locate["auc_shuffled"])
        content["sites"] = sites.nlargest(TOP_SITES, "above").to_dict("records")
    sample = run.folder / explorer.SAMPLE_FILE
    content["explorer"] = explorer.fragment(explorer.load(sample), redact=redact) if sample.is_file() else None
    content["directions"] = _directions(run)
    content["findings"] = findings(run.evidence_records)
    content["several_seeds"] = len({f.seed for f in content["findings"]}) > 1
    content["layers"] = _layers(run)
    content["evidence"] = _evidence(run.evidence)
    return content


def _directions(run: Run) -> list[Content]:
    """What the attack that was followed brought back, and who has energy along which directions."""
    rows: Frame = run.directions
    if rows.empty:
        return []
    classes = rows["of"] == "classes"
    shown = (
        (
            "What comes back along the located directions", directions.reemergence, rows[classes], "reemergence",
            "Squared distance between the class means inside the located components at each look of the attack, on "
            "held-out texts; 1: as in the unedited model. What a never-learned model reaches as well is learnt anew.",
        ),
        (
            "Energy by component", directions.energy_by_component, rows[(rows["along"] == "located") & ~classes],
            "energy-by-component",
            "Share of each one's own energy along every located component; dashed: a random direction. Attacker: what "
            "it had added to the weight by its last step.",
        ),
        (
            "Spectra", directions.spectra, rows[rows["along"] == "own"], "spectra",
            "Along each one's own directions: eigenvectors of a text's second moment, singular directions of an "
            "update.",
        ),
    )  # fmt: skip
    return [
        {"name": name, "figure": markup.embed(draw(run), f"{name}, at the places that separate best"), "says": says,
         "data": markup.csv_link(mine, file)}
        for name, draw, mine, file, says in shown
    ]  # fmt: skip


def _layers(run: Run) -> Content | None:
    rows: Frame = run.evidence[run.evidence["kind"].isin(list(layers.PANELS))]
    if rows.empty:
        return None
    alt = "what each layer still holds of the behaviour, every arm: " + ", ".join(dict.fromkeys(rows["kind"]))
    return {"figure": markup.embed(layers.by_layer(run), alt), "data": markup.csv_link(rows, "by-layer")}


def _evidence(frame: Frame) -> list[Content]:
    """Per kind a table of sites by arms, means over seeds; the null stands in its own column where arms share it."""
    kinds = []
    for kind in dict.fromkeys(frame["kind"]):
        rows: Frame = frame[frame["kind"] == kind]
        by_site: dict[Any, list[Any]] = {}
        how = {c: "mean" if c in ("value", "stderr", "null") else "first" for c in rows if c not in ("site", "arm")}
        for row in rows.groupby(["site", "arm"], sort=False, as_index=False, dropna=False).agg(how).to_dict("records"):
            by_site.setdefault(row["site"], []).append(row)
        sites = []
        for site, of_site in list(by_site.items())[:EVIDENCE_SITES]:
            nulls = {repr(r["null"]) for r in of_site}
            null = of_site[0]["null"] if len(nulls) == 1 else None
            sites.append({"site": site, "arms": {r["arm"]: r for r in of_site}, "null": null})
        meanings = list(dict.fromkeys(str(m) for m in rows["meaning"] if m))
        arms = in_order(rows["arm"], ("original", "edited", "matched", "never"))
        more = len(by_site) - len(sites)
        kinds.append({"kind": kind, "meanings": meanings, "arms": arms, "sites": sites, "more": more})
    return kinds
