"""The short Python verbs of a notebook: capture, behaviour, attack, run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hooklearn import models
from hooklearn.attack import Arena, ArmState, Watcher, attack_of
from hooklearn.config import RunConfig, parse
from hooklearn.data import Corpus, batches, encode
from hooklearn.locate.capture import capture as capture_sites
from hooklearn.measure import TEMPERATURE, Likelihoods, Referee, sample
from hooklearn.types import Curve, Delta, Score, Tape

if TYPE_CHECKING:
    import pandas as pd


def capture(
    model: Any,
    corpus: Corpus,
    *,
    sites: str | Sequence[str] = "mlp",
    layers: str | None = None,
    gradients: bool = True,
) -> dict[str, Tape]:
    """Inputs ``x`` and output gradients ``g`` of every site on a small corpus, ``[token, d]``.

    For ``y = W x``: ``tape.update()`` is the gradient of the summed loss with respect to W.

    Examples:
        >>> from hooklearn.data import load_corpus
        >>> some = load_corpus(name="tiny", options={"part": "forget"}, limit=2)
        >>> tapes = capture(models.load("tiny"), some, sites="mlp.out", layers="0")
        >>> tuple(tapes["blocks.0.mlp.out"].update().shape)
        (64, 128)
    """
    stream = batches(encode(corpus, models.tokenizer_of(model)))
    return capture_sites(model, stream, models.sites(model, sites, layers), gradients=gradients, precision="float32")


def behaviour(
    model: Any,
    corpus: Corpus,
    *,
    referee: Referee | None = None,
    samples: int = 32,
    new_tokens: int = 24,
    temperature: float = TEMPERATURE,
    seed: int = 0,
) -> dict[str, Score]:
    """The behaviour measures of whatever state the model is in: completion, preference, and with a referee sampled."""
    measured = Likelihoods.of(corpus, models.tokenizer_of(model), "heldout").measure(model)
    out = {metric: Score.of(values) for metric, values in measured.items()}
    if referee is not None:
        import torch

        drawn = sample(model, corpus, n=samples, new_tokens=new_tokens, temperature=temperature, seed=seed)
        judged = referee.judge(drawn, corpus.rows[: len(drawn)])
        out["sampled"] = Score.of(torch.tensor([float(found) for _, found in judged]))
    return out


def attack(
    model: Any,
    delta: Delta,
    name: str = "relearn",
    *,
    heldout: Corpus,
    attack_train: Corpus | None = None,
    unrelated: Corpus | None = None,
    retain: Corpus | None = None,
    never: Any | None = None,
    ood: Corpus | None = None,
    seed: int = 0,
    **options: Any,
) -> list[Curve]:
    """One attack on the edited model beside its controls: one curve per setting. The model is left as it was."""
    tokenizer = models.tokenizer_of(model)
    arms = [ArmState("edited", model, delta), ArmState("original", model)]
    if never is not None:
        arms.append(ArmState("never", never))
    watcher = Watcher(
        heldout=Likelihoods.of(heldout, tokenizer, "heldout"),
        ood=Likelihoods.of(ood, tokenizer, "ood") if ood is not None else None,
        n_samples=0,
    )
    arena = Arena(
        arms=arms, watcher=watcher, attack_train=attack_train, unrelated=unrelated, retain=retain, seed=seed
    )  # fmt: skip
    return attack_of(name, options).curves(arena)


def run(
    config: Mapping[str, Any] | RunConfig | str,
    out: str | Path,
    *,
    base: str | Path | None = None,
    resume: bool = False,
    progress: Any = lambda _: None,
) -> Path:
    """A whole run from a config (mapping, :class:`RunConfig`, recipe name or YAML path) to a run folder.

    Then: ``analysis.judge(folder)`` and ``analysis.report(folder)``.
    """
    from hooklearn.experiment import run as run_config
    from hooklearn.recipes import resolve

    if isinstance(config, str):
        data, folder = resolve(config)
        base = base or folder
    elif isinstance(config, RunConfig):
        data = config.model_dump(mode="json")
    else:
        data = dict(config)
    return run_config(
        parse(data),
        Path(out),
        given=data,
        base=Path(base) if base else None,
        resume=resume,
        progress=progress,
    )


def to_dataframe(curves: Sequence[Curve]) -> pd.DataFrame:
    """Several curves in long form."""
    import pandas as pd

    return pd.concat([c.to_dataframe() for c in curves], ignore_index=True)
