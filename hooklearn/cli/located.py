"""``hooklearn locate``: the locate stage on its own, ranked and written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hooklearn import disk
from hooklearn.config import ControlsConfig, RunConfig
from hooklearn.locate import Subspaces
from hooklearn.locate import locate as find
from hooklearn.running.setting import Progress, Setup
from hooklearn.types import InputError

if TYPE_CHECKING:
    import pandas as pd


def spaces(config: RunConfig, base: Path, progress: Progress) -> Subspaces:
    """The subspaces that a run of this config would locate.

    Raises:
        InputError: no retain corpus, an unknown fitter or site, a rank above the dimension.
    """
    if "retain" not in config.corpora:
        raise InputError("locate needs corpora.retain: what forget is to be told apart from")
    budget = config.budget.model_copy(update={"forget": None})  # nothing is edited, and its level may be a control's
    alone = config.model_copy(update={"controls": ControlsConfig(), "budget": budget})
    setup = Setup.load(alone, base, progress)
    progress("locate: where forget and retain can be told apart")
    return find(
        setup.original, setup.corpora["forget"], setup.corpora["retain"],
        sites=config.edit.sites, layers=config.edit.layers, fitter=config.locate.fitter,
        rank=config.locate.rank, sides=config.locate.sides, seed=config.seeds[0],  # type: ignore[arg-type]
        precision=config.model.precision,  # type: ignore[arg-type]
    )  # fmt: skip


def ranked(found: Subspaces) -> pd.DataFrame:
    """Best separation first; among equals, most forget energy per retain energy."""
    table = found.to_dataframe()
    table.insert(0, "above null", table["auc"] - table["auc_shuffled"])
    table["energy ratio"] = table["forget_energy"] / table["retain_energy"]
    order = table.sort_values(["auc", "energy ratio"], ascending=False, kind="stable")
    shown = ["site", "side", "fitter", "rank", "auc", "above null", "auc_random"]
    return order.filter([*shown, "energy ratio", "retain_energy"]).reset_index(drop=True)


def write(found: Subspaces, out: Path) -> None:
    """The table and the subspaces, named as in a run folder."""
    out.mkdir(parents=True, exist_ok=True)
    found.save(out / "subspaces.safetensors")
    disk.save_frame(out / "locate.parquet", found.to_dataframe())
