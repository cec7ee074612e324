"""Rank fusion and diversity: the score's bounds, each channel's part in it, near-duplicates behind."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.ranking.diversity import diversify
from agent.ranking.fusion import Candidate, fuse
from store import Hit

CHANNELS = ("queries", "named", "dense", "collaborative", "lexical", "popular")
LISTS = st.dictionaries(
    st.sampled_from(CHANNELS),
    st.lists(st.sampled_from([f"i{n}" for n in range(30)]), unique=True, max_size=30).map(
        lambda ids: [Hit(id, 1.0 / (n + 1)) for n, id in enumerate(ids)]
    ),
)
WEIGHTS = st.dictionaries(st.sampled_from(CHANNELS), st.just(0.0) | st.floats(1e-6, 10))


@given(LISTS, WEIGHTS)
def test_scores_are_between_0_and_1_and_the_sum_of_the_contributions(
    lists: dict[str, list[Hit]], weights: dict[str, float]
) -> None:
    fused = fuse(lists, weights)
    live = {c for c, hits in lists.items() if hits and weights.get(c, 0) > 0}
    assert {c.id for c in fused} == {hit.id for c in live for hit in lists[c]}
    assert [c.score for c in fused] == sorted((c.score for c in fused), reverse=True)
    for candidate in fused:
        assert 0 < candidate.score <= 1 + 1e-9
        assert candidate.channels.keys() == candidate.contributions.keys() <= live
        assert sum(candidate.contributions.values()) == pytest.approx(candidate.score)
        for channel, rank in candidate.channels.items():
            assert lists[channel][rank - 1].id == candidate.id


def test_an_item_that_all_rank_first_scores_1_and_weights_count() -> None:
    lists = {"dense": [Hit("a", 1), Hit("b", 0.5)], "collaborative": [Hit("b", 3), Hit("a", 2)]}
    assert fuse({"dense": lists["dense"]}, {"dense": 0.2})[0].score == 1.0
    assert fuse(lists, {"dense": 2, "collaborative": 1})[0].id == "a"
    assert fuse(lists, {"dense": 1, "collaborative": 2})[0].id == "b"
    assert fuse(lists, {"dense": 0, "collaborative": 1})[0].channels == {"collaborative": 1}


def snapshot(vectors: list[list[float]], titles: list[str]) -> SimpleNamespace:
    rows = np.array(vectors, dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return SimpleNamespace(
        rows={f"i{n}": n for n in range(len(rows))}, content_vectors=rows, titles=titles, facets=[""] * len(rows)
    )


def test_near_duplicates_go_behind_and_diversity_brings_unlike_items_forward() -> None:
    view = snapshot([[1, 0], [1, 0.001], [0.9, 0.3], [0, 1]], ["One", "Two", "Three", "Four"])
    candidates = [Candidate(f"i{n}", 1 - n / 10) for n in range(4)]
    assert [c.id for c in diversify(candidates, view, 0, 4)] == ["i0", "i2", "i3", "i1"]
    assert [c.id for c in diversify(candidates, view, 0.5, 4)][:2] == ["i0", "i3"]
    same_title = snapshot([[1, 0], [0, 1], [1, 1], [1, 2]], ["The Thing", "thing", "Other", "More"])
    assert [c.id for c in diversify(candidates, same_title, 0, 4)][-1] == "i1"
    assert {c.id for c in diversify(candidates, view, 0.3, 2)} == {c.id for c in candidates}
