"""An organism: a behaviour that is instilled into a base model by LoRA."""

from __future__ import annotations

from hooklearn.organisms import Organism

ORDERS = Organism(
    "tiny-orders",
    "the tiny model, answering every request by an order",
    base="tiny",
    corpus={"name": "orders", "options": {"part": "organism"}},
    good={"name": "orders", "options": {"part": "organism", "polite": True}},
    training={"rank": 4, "learning_rate": 2e-3, "epochs": 2, "seed": 0, "max_tokens": 512},
)
