"""Prompts as shared prefixes and what follows: nothing is lost, and never more is read than without."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hooklearn.prefixes import shared_prefixes

PROMPTS = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=8), min_size=1, max_size=8)
"""Of three words, so that many begin alike; none is 0, the padding."""


@given(PROMPTS)
def test_prefix_and_rest_are_the_prompt(prompts: list[list[int]]) -> None:
    """Each prompt has one prefix; the mask is 1 at its tokens and nowhere else; one token at least follows."""
    found = shared_prefixes(prompts)
    if found is None:
        return
    assert sorted(i for p in found.prefixes for i in p.members) == list(range(len(prompts)))
    (ids, mask), (more, more_mask) = found.beginnings(0), found.rests(0)
    assert mask.equal((ids > 0).long()) and more_mask.equal((more > 0).long())
    for prompt, owner, rest in zip(prompts, found.owner.tolist(), more, strict=True):
        assert [*ids[owner][mask[owner] > 0].tolist(), *rest[rest > 0].tolist()] == prompt
        assert rest[-1] > 0
    assert found.tokens == ids.numel() + more.numel() < len(prompts) * max(map(len, prompts))


def test_what_all_begin_with_is_read_once() -> None:
    """Two templates, three questions each: two prefixes, however the questions go on."""
    first, second = [7] * 20, [8] * 15
    prompts = [*([*first, 1, n] for n in range(3)), *([*second, 2, n] for n in range(3))]
    found = shared_prefixes(prompts)
    assert found is not None and [(p.length, p.members) for p in found.prefixes] == [(21, (0, 1, 2)), (16, (3, 4, 5))]
    assert found.tokens == 2 * 21 + 6


def test_nothing_is_shared_where_it_saves_nothing() -> None:
    assert shared_prefixes([[1, 2, 3], [4, 5, 6]]) is None
    assert shared_prefixes([[1, 2, 3]]) is None
