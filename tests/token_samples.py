"""Synthetic token samples for the explorer: where the classes part is known, and so is every number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.explorer.payload import CORPORA, PLACE, Sample

SCRIPT = "<script>window.hacked = 1</script>"
IMAGE = '<img src=x onerror="window.hacked = 1">'
HUGE = "ha" * 5_000
HOSTILE = (SCRIPT, IMAGE, HUGE, "\x1b[31m\u202e", "&amp;", "</script>")
MODULES = ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.gate", "mlp.in", "mlp.out")
UNIT = 5e-4
WORDS = ["the", "a", "you", "will", "not", "or", "i", "break", "your", "window", "door", "please", "bring", "back"]


def sample(
    *,
    layers: int = 2,
    modules: Sequence[str] = MODULES[-2:],
    sides: Sequence[str] = ("x",),
    rank: int = 4,
    tokens: int = 600,
    texts: int = 60,
    length: int = 20,
    steps: Sequence[int] = (),
    words: Sequence[str] = WORDS,
    followed: int = 2_000,
    seed: int = 0,
) -> Sample:
    """Component 1 of every place separates by an amount that grows towards the middle layer; the others do not.

    ``texts`` of each corpus, a third of them held out. With ``steps``, ``followed`` tokens move through an attack.
    """
    rng = np.random.default_rng(seed)
    spots = [(layer, module, side) for layer in range(layers) for module in modules for side in sides]
    n_corpora, total = len(CORPORA), len(CORPORA) * texts
    corpus = np.repeat(np.arange(n_corpora), texts)
    held = (np.arange(total) % 3 == 0) | (corpus == 2)
    spelled = [["a", *(" " + w for w in rng.choice(words, length - 1))] for _ in range(total)]
    text = np.concatenate([rng.permutation(total) for _ in range(-(-tokens // total))])[:tokens]
    position = rng.integers(1, length, tokens)
    kind = np.array([1.0, -1.0, -0.4])
    of = corpus[text]
    coordinates, items, means, rows, components, forms = [], [], [], [], [], []
    spread = 1.0 / (1 + np.arange(rank))
    tilt = rng.normal(size=(total, rank)) * (spread > 0.3)
    # in steps of UNIT, so that thousands of columns cost little
    noise = np.rint(np.clip(rng.standard_t(4, (tokens, rank)) * spread, -9, 9) / UNIT).astype(np.int16)
    some = slice(min(tokens, 2_000))
    for p, (layer, module, side) in enumerate(spots):
        gap = 1.6 * np.exp(-(((layer - layers / 2) / (layers / 4)) ** 2)) * (1.4 if module == "mlp.out" else 0.8)
        shift = 0.4 * tilt
        shift[:, 0] += gap * kind[corpus]
        codes = np.roll(noise, 37 * p, 0) + np.rint(shift / UNIT).astype(np.int16)[text]
        coordinates.append(codes)
        heavy, near = codes[some] * UNIT, of[some]
        items.append(coded(shift + 0.3 * rng.normal(size=(total, rank))))
        energy = np.stack([np.square(heavy[near == c]).mean(0) for c in range(n_corpora)])
        means.append(np.stack([heavy[near == c].mean(0) for c in (0, 1)], 1))
        shares = energy / (30 + 3 * energy.sum(1).mean())
        auc = 0.5 + 0.49 * (1 - np.exp(-(gap**2)))
        place = (f"blocks.{layer}.{module}", layer, module, side, "contrast", rank, 576)
        judged = (auc, 0.5 + 0.02 * rng.normal(), 0.6)
        energies = (shares[0].sum(), shares[1].sum() * (0.3 + layer / layers), rank / 576)
        rows.append(dict(zip(PLACE.split(), (*place, *judged, *energies), strict=True)))
        words_of = rng.choice(words, (rank, 4, 6))
        for c in range(rank):
            named = dict(zip(("writes", "writes_against", "reads", "reads_against"), words_of[c].tolist(), strict=True))
            if module != "mlp.out":
                named |= {"writes": [], "writes_against": []}
            components.append(
                {"place": p, "component": c, "value": 9 / (1 + c), "cosine": np.tanh(gap) if c == 0 else 0.05 * c,
                 **dict(zip(CORPORA, shares[:, c], strict=True)), **named}
            )  # fmt: skip
        root = rng.normal(size=(rank, 6)) * 0.03
        forms.append((root @ root.T).astype(np.float32))
    codes = np.concatenate(coordinates, 1)
    scales = np.full(codes.shape[1], UNIT, np.float32)
    item_codes, item_scales = (np.concatenate(part, -1) for part in zip(*items, strict=True))
    best = int(np.argmax([row["auc"] - row["auc_shuffled"] for row in rows]))
    time = _time(steps, of, coordinates[best], np.concatenate(means), best, followed) if steps else {}
    return Sample(
        pd.DataFrame(rows), pd.DataFrame(components), forms,
        pd.DataFrame({"corpus": [CORPORA[c] for c in corpus], "held_out": held, "tokens": spelled}),
        pd.DataFrame({"text": text, "position": position}), codes, scales, item_codes, item_scales,
        facts={"model": "synthetic-30l", "n_tokens": {"forget": 81_204, "retain": 77_130, "unrelated": 41_870},
               "disruption_on": "unrelated"},
        **time,
    )  # fmt: skip


def _time(steps: Sequence[int], of: Any, tokens: Any, means: Any, best: int, followed: int) -> dict[str, Any]:
    """The edit leaves 15 % of the signal; the attack brings most of it back, the never-learned model learns some."""
    last = np.log2(1 + max(steps))
    points = [("original", 0, 1.0)]
    points += [("edited", s, 0.15 + 0.8 * np.log2(1 + s) / last) for s in steps]
    points += [("never", s, 0.1 + 0.25 * np.log2(1 + s) / last) for s in steps]
    own, kind = tokens[:followed] * UNIT, of[:followed]
    centre = np.array([own[kind == c].mean(0) for c in range(3)])[kind]
    moved = [own - centre * (1 - np.sqrt(share)) for arm, _, share in points if arm == "edited"]
    flat, scales = coded(np.concatenate(moved))
    return {
        "time": pd.DataFrame([(arm, step) for arm, step, _ in points], columns=["arm", "step"]),
        "means": np.stack([np.sqrt(share) * means for _, _, share in points]).astype(np.float32),
        "frames": {best: flat.reshape(len(moved), *own.shape)},
        "frame_scales": {best: scales},
    }


def coded(values: Any) -> tuple[Any, Any]:
    scale = np.maximum(np.abs(values).max(0), 1e-30) / 32767
    return np.rint(values / scale).astype(np.int16), scale.astype(np.float32)


def big() -> Sample:
    """Thirty layers of seven sites, sixteen components, twenty thousand tokens."""
    return sample(layers=30, modules=MODULES, rank=16, tokens=20_000, texts=220, length=60, steps=(0, 1, 4, 16, 64))


def saved(drawn: Sample) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """Arrays, tables and facts, as ``hooklearn.locate.tokens.write_sample`` takes them."""
    arrays = {n: getattr(drawn, n) for n in ("codes", "scales", "item_codes", "item_scales", "means")}
    arrays |= {f"disruption.{p}": matrix for p, matrix in enumerate(drawn.disruption)}
    arrays |= {f"frames.{p}": a for p, a in drawn.frames.items()}
    arrays |= {f"frame_scales.{p}": a for p, a in drawn.frame_scales.items()}
    tables = {n: getattr(drawn, n).to_dict("list") for n in ("places", "components", "texts", "tokens", "time")}
    return arrays, tables, drawn.facts
