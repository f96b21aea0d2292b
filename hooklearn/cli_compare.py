"""The commands for many runs at once: ``compare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hooklearn.console import Json, print_json, print_line, work

if TYPE_CHECKING:
    from analysis.comparison import Comparison

comparing = typer.Typer(rich_markup_mode=None)

Runs = Annotated[list[Path], typer.Argument(help="Run folders.")]
Table = Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the table here.")]
Metric = Annotated[str, typer.Option(help="Of the figure: completion, preference or sampled.")]


@comparing.command()
def compare(
    runs: Runs,
    json_: Json = False,
    csv: Table = None,
    latex: Table = None,
    markdown: Table = None,
    figure: Annotated[Path | None, typer.Option(metavar="FILE", help="A picture: .png, .svg or .pdf.")] = None,
    metric: Metric = "completion",
) -> None:
    """Runs side by side: at equal disruption, at equal unlearning, at equal compute.

    Markdown on stdout: behaviour before and after the attacks that all runs share, the controls under them,
    what the same forget score cost, and differences, paired by item and seed.

    \b
    hooklearn compare runs/natural runs/repselect
    hooklearn compare runs/* --csv table.csv --latex table.tex --figure tradeoff.png
    hooklearn compare runs/* --json | jq .unlearning
    """
    with work(quiet=True):
        import analysis

        found = analysis.compare(runs)
        write(found, csv=csv, latex=latex, markdown=markdown, figure=figure, metric=metric)
    if json_:
        print_json(as_json(found))
    else:
        print_line(found.to_markdown())


def write(
    found: Comparison,
    *,
    csv: Path | None = None,
    latex: Path | None = None,
    markdown: Path | None = None,
    figure: Path | None = None,
    metric: str = "completion",
) -> None:
    """The forms of a comparison that were asked for.

    Raises:
        InputError: an unknown metric, or a kind of picture that cannot be drawn; before anything is written.
    """
    from analysis.tradeoff import picture
    from analysis.writing import write_bytes, write_text

    drawn = picture(found, metric, figure.suffix) if figure is not None else b""
    for path, text in ((csv, found.to_csv), (latex, found.to_latex), (markdown, found.to_markdown)):
        if path is not None:
            write_text(path, text())
    if figure is not None:
        write_bytes(figure, drawn)


def as_json(found: Comparison) -> dict[str, object]:
    frames = ("table", "controls", "unlearning", "compute", "differences")
    records = {name: getattr(found, name).to_dict("records") for name in frames}
    return {"runs": records.pop("table"), **records, "notes": found.notes}
