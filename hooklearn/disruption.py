"""What an edit cost: far KL on unrelated text, near CE on good neighbours, against the model as it was."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooklearn import forward, losses, models, parallel
from hooklearn.data import Corpus, TokenBatch, batches, encode
from hooklearn.traits import row_of
from hooklearn.types import Disruption, InputError, Score


class DisruptionMeter:
    """Far KL and near CE against the state that the model was in when the meter was made.

    Only final hidden states of the original are kept (edits never touch the unembedding), so no second model
    and no cache of logits is needed; the original's side is computed once. float32 throughout: a budget of .01
    nats is not to be filled with rounding.
    """

    def __init__(
        self,
        model: Any,
        far: Corpus,
        near: Corpus | None = None,
        *,
        max_tokens: int = 2048,
        max_length: int = 128,
        rough: int = 4,
    ) -> None:
        """
        Args:
            rough: texts of a smaller meter beside this one, from which a search for a budget begins.
        """
        tokenizer = models.tokenizer_of(model)
        self.model = model
        self._read = 0
        self.corpora = {"far": far} | ({"near": near} if near is not None else {})
        self._far = batches(encode(far, tokenizer, max_length=max_length), max_tokens=max_tokens)
        self._near = (
            batches(encode(near, tokenizer), max_tokens=max_tokens, share=row_of(model)) if near is not None else []
        )
        with torch.no_grad():
            with forward.reader(model) as read:
                self._hidden = [(b, read(b)) for b in parallel.share(self._far)]
            self._far_ce = self._gathered([self._ce(b, model, h) for b, h in self._hidden], self._far)
            self._near_ce = self._near_now(model) if self._near else None
        self.rough: DisruptionMeter | None = None
        """The same on its first few texts; None where there are no more than twice as many."""
        if 0 < 2 * rough < len(far):
            some = near.take(min(rough, len(near))) if near is not None else None
            self.rough = DisruptionMeter(
                model, far.take(rough), some, max_tokens=max_tokens, max_length=max_length, rough=0
            )
        else:
            self._check_zero()  # of two meters the small one checks itself: nothing differs but the number of texts

    @torch.no_grad()
    def _check_zero(self) -> None:
        """One batch, read again: anything but exactly 0 is a meter that cannot be trusted."""
        if not self._hidden:
            return  # more processes than batches
        batch, before = self._hidden[0]
        with forward.reader(self.model) as read:
            kl = float(self._kl(batch, self.model, before, read(batch))[:, 0].sum())
        if kl != 0:
            raise InputError(
                f"the meter does not read 0 on the unedited model (KL {kl:.2e}); is the model in "
                "training mode, or its forward pass not deterministic?"
            )

    @property
    def tokens(self) -> int:
        """Tokens of one reading."""
        return forward.count_tokens([*self._far, *self._near])

    @property
    def tokens_read(self) -> int:
        """Of all readings so far, with those of :attr:`rough`; that of the unedited model is no part of any edit."""
        return self._read + (self.rough.tokens_read if self.rough is not None else 0)

    @property
    def has_near(self) -> bool:
        return bool(self._near)

    @torch.no_grad()
    def measure(self, *, near: bool = True, model: Any = None) -> Disruption:
        """Disruption of the state the model is in now (or of another ``model``); errors are over texts."""
        subject = self.model if model is None else model
        near_before = self._near_ce if near else None
        self._read += forward.count_tokens(self._far) if near_before is None else self.tokens
        kl, ce = [], []
        with forward.reader(subject) as read:
            for batch, before in self._hidden:
                now = read(batch)
                kl.append(self._kl(batch, subject, before, now))
                ce.append(self._ce(batch, subject, now))
        rise = self._gathered(ce, self._far)
        rise[:, 0] -= self._far_ce[:, 0]
        near_rise = None
        if near_before is not None:
            now_near = self._near_now(subject)
            now_near[:, 0] -= near_before[:, 0]
            near_rise = _per_token(now_near)
        return Disruption(_per_token(self._gathered(kl, self._far)), _per_token(rise), near_rise)

    def _near_now(self, model: Any) -> Float[Tensor, "text 2"]:
        with forward.reader(model) as read:
            return self._gathered([self._ce(b, model, read(b)) for b in parallel.share(self._near)], self._near)

    @staticmethod
    def _gathered(parts: list[Tensor], stream: list[TokenBatch]) -> Float[Tensor, "text 2"]:
        return torch.cat(parallel.gather(parts, len(stream)))

    def _kl(self, batch: TokenBatch, model: Any, before: Tensor, now: Tensor) -> Float[Tensor, "text 2"]:
        was = forward.unembedded(self.model, before, batch.targets)
        is_now = forward.unembedded(model, now, batch.targets)
        pairs = zip(was, is_now, strict=True)
        return self._by_text(batch, torch.cat([losses.kl_per_token(p, q) for (p, _), (q, _) in pairs]))

    def _ce(self, batch: TokenBatch, model: Any, hidden: Tensor) -> Float[Tensor, "text 2"]:
        parts = forward.unembedded(model, hidden, batch.targets)
        return self._by_text(batch, torch.cat([-losses.token_logprobs(p, targets) for p, targets in parts]))

    @staticmethod
    def _by_text(batch: TokenBatch, per_token: Tensor) -> Float[Tensor, "text 2"]:
        """(sum, count) per text."""
        values = per_token.double().cpu()
        n = len(batch.sequences)
        sums = losses.sequence_sums(values, batch.owner, n)
        counts = losses.sequence_sums(torch.ones_like(values), batch.owner, n)
        return torch.stack([sums, counts], 1)


def _per_token(by_text: Float[Tensor, "text 2"]) -> Score:
    """Nats per token with the standard error of a ratio estimate over texts."""
    total, count = by_text.sum(0)
    value = float(total / count)
    n = by_text.shape[0]
    if n < 2:
        return Score(value, n=n)
    residual = by_text[:, 0] - value * by_text[:, 1]
    stderr = float((residual.square().sum() / (n * (n - 1))).sqrt() / (count / n))
    return Score(value, stderr, n)
