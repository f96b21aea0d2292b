"""lm-evaluation-harness: a hooked model as its ``LM``, a corpus as one of its tasks.

with hl.edited(model, result.delta):
    lm_eval.simple_evaluate(HookedLM(model), tasks=["wmdp_bio", task_of(heldout, model)])
"""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.task import ConfigurableTask
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor

from hooklearn import forward, models
from hooklearn.data import Corpus, Encoded, batches, split_row
from hooklearn.forward import Precision
from hooklearn.generation import say
from hooklearn.losses import token_logprobs
from hooklearn.traits import row_of
from hooklearn.types import InputError


class HookedLM(TemplateLM):
    """A TransformerLens model, in whatever state it is in while it is asked: edited, hooked or plain."""

    def __init__(
        self, model: Any, *, max_tokens: int = 1024, new_tokens: int = 128, precision: Precision = "auto"
    ) -> None:
        """
        Args:
            max_tokens: of a batch, padding included, and of one sequence (its beginning is cut).
            new_tokens: of a generation whose task does not say ``max_gen_toks``.
        """
        super().__init__()
        self.model, self.tokenizer = model, models.tokenizer_of(model)
        self.max_tokens, self.new_tokens = max_tokens, new_tokens
        self.precision: Precision = precision

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has nothing before it."""
        return self.eot_token_id if self.tokenizer.bos_token_id is None else self.tokenizer.bos_token_id

    @property
    def tokenizer_name(self) -> str:
        return str(self.model.cfg.model_name)

    def apply_chat_template(self, chat_history: Any, add_generation_prompt: bool = True) -> str:
        return self.tokenizer.apply_chat_template(
            chat_history, tokenize=False, add_generation_prompt=add_generation_prompt
        )

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        return self.tokenizer(string, add_special_tokens=bool(add_special_tokens))["input_ids"]

    @torch.no_grad()
    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """Summed log-probability of each continuation, nats, and whether greedy decoding would have given it."""
        sequences = [_encoded(i, before, after, self.max_tokens) for i, (_, before, after) in enumerate(requests)]
        out: dict[int, tuple[float, bool]] = {}
        for batch in batches(sequences, max_tokens=self.max_tokens, share=row_of(self.model)):
            with forward.autocast(self.model, self.precision):
                scores = forward.logits(self.model, batch)
            targets = batch.targets.to(scores.device)
            values, greedy = token_logprobs(scores, targets), scores.argmax(-1) == targets
            owner = batch.owner.to(scores.device)
            for i, s in enumerate(batch.sequences):
                mine = owner == i
                out[s.item] = float(values[mine].double().sum()), bool(greedy[mine].all())
        return [out[i] for i in range(len(requests))]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:  # noqa: ARG002
        """Of whole texts, in windows that do not overlap."""
        found = []
        for request in requests:
            windows = get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.prefix_token_id, self.max_tokens - 1, 1
            )
            pairs = [(None, *make_disjoint_window(window)) for window in windows]
            found.append(sum(value for value, _ in self._loglikelihood_tokens(pairs)))
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:  # noqa: ARG002
        """Greedy, or as the task asks by ``temperature``, up to the first of its stop texts."""
        return [self._generate(*request.args) for request in requests]

    def _generate(self, text: str, how: dict[str, Any]) -> str:
        stops = how.get("until") or []
        temperature = float(how.get("temperature", 0)) if how.get("do_sample") else 0.0
        dtype = forward.resolve_precision(self.precision, models.device_of(self.model))
        asked = [self.tok_encode(text)]  # as its log-likelihoods are read: BOS is the harness's to ask for
        ((said, _),) = say(self.model, asked, int(how.get("max_gen_toks", self.new_tokens)), temperature, dtype)
        cuts = [said.find(stop) for stop in ([stops] if isinstance(stops, str) else stops) if stop and stop in said]
        return said[: min(cuts)] if cuts else said


def _encoded(i: int, before: list[int], after: list[int], most: int) -> Encoded:
    after = after[-(most - 1) :]
    before = before[-(most - len(after)) :]
    ids = torch.tensor([*before, *after])
    labels: Tensor = torch.zeros(len(ids), dtype=torch.bool)
    labels[len(before) :] = True
    return Encoded(ids, labels, i)


def task_of(corpus: Corpus, model: Any, name: str | None = None) -> ConfigurableTask:
    """A corpus as a task: what the harness prints as ``acc`` is the share of items answered right, or of bad answers.

    Multiple choice: ``acc`` over the choices (summed log-probabilities; ``acc_norm`` by characters). Completions with
    an alternative: ``acc`` is how often the *bad* one is likelier, so that lower is less of the behaviour. Completions
    alone: ``acc`` is how often greedy decoding gives them, beside their ``perplexity``. Prompts have the model's chat
    template already: do not ask the harness for another.

    Raises:
        InputError: running text, which has nothing to be asked.
    """
    tokenizer, docs = models.tokenizer_of(model), []
    alternatives = corpus.alternatives()
    for i, row in enumerate(corpus.rows):
        asked, completion = split_row(row, tokenizer)
        if not asked:
            raise InputError(f"corpus {corpus.name!r}, row {i}: running text is no task; give prompts and completions")
        pair = [] if alternatives is None else [completion, alternatives.rows[i]["completion"]]
        choices = row.get("choices", pair)
        docs.append({"asked": asked, "choices": choices, "answer": row.get("answer", 0), "completion": completion})
    chosen = all(len(d["choices"]) > 1 for d in docs)
    config: dict[str, Any] = {
        "task": name or corpus.name.replace("/", "_"),
        "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(docs)},
        "test_split": "test",
        "output_type": "multiple_choice" if chosen else "loglikelihood",
        "doc_to_text": lambda doc: doc["asked"],
        "doc_to_target": (lambda doc: doc["answer"]) if chosen else (lambda doc: doc["completion"]),
        "target_delimiter": "",
        "metric_list": [{"metric": m} for m in (("acc", "acc_norm") if chosen else ("acc", "perplexity"))],
        "metadata": {"version": 1},
    }
    if chosen:
        config["doc_to_choice"] = lambda doc: doc["choices"]
    return ConfigurableTask(config=config)
