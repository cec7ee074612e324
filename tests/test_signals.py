"""Signals, their features and learned fusion, on a made-up shop where what comes next is known."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from agent.errors import EvokeError
from agent.ranking.features import candidates, channel_of
from agent.ranking.learned_fusion import Learned
from agent.retrieval.signals import CHANNEL_OF, Signals
from store.cache import load_or_build
from store.content import Content, _fields, _near, _titles
from store.cooccurrence import Cooccurrence
from store.history import Interactions
from store.linear import Linear
from store.snapshot import Snapshot
from store.sparse import highest

N, PEOPLE, LENGTH = 60, 80, 8
KINDS = 6  # items of one kind stand side by side, look alike, and are chosen one after the other


@pytest.fixture(scope="module")
def signals() -> Signals:
    return Signals.fit(interactions(), snapshot(), content())


def snapshot(hidden: int | None = None) -> Snapshot:
    rng = np.random.default_rng(0)
    vectors = np.eye(KINDS, 16)[np.arange(N) // (N // KINDS)] + 0.3 * rng.normal(size=(N, 16))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    ids = [f"i{n:02}" for n in range(N)]
    titles = [f"{'lamp desk rug vase bench tray'.split()[n // (N // KINDS)]} number {n}" for n in range(N)]
    return Snapshot("1", ids, titles, [""] * N, np.arange(N) == (-1 if hidden is None else hidden), vectors)


def content() -> Content:
    shot = snapshot()
    fields = _fields([{"kind": f"k{n // (N // KINDS)}", "price": float(n)} for n in range(N)])
    return Content(_near(shot.vectors), _titles(shot.titles), *fields)


def walks(seed: int = 0) -> list[np.ndarray]:
    """People who go on to the next item of a kind, now and then to another kind."""
    rng, size = np.random.default_rng(seed), N // KINDS
    found = []
    for _ in range(PEOPLE):
        kind, at = rng.integers(KINDS), rng.integers(size)
        walk = []
        for _ in range(LENGTH):
            walk.append(kind * size + at)
            kind, at = (rng.integers(KINDS), rng.integers(size)) if rng.random() < 0.2 else (kind, (at + 1) % size)
        found.append(np.array(walk))
    return found


def allowed(histories: list[np.ndarray], *, repeats: bool, hidden: int | None = None) -> np.ndarray:
    """(b, n): the items that may come back for each history."""
    may = np.ones((len(histories), N), dtype=bool)
    for row, history in enumerate(histories):
        may[row, [] if repeats else history] = False
        may[row, [] if hidden is None else hidden] = False
    return may


def interactions() -> Interactions:
    rows = walks()
    people = np.repeat(np.arange(PEOPLE), LENGTH)
    ids = [f"i{n:02}" for n in range(N)]
    return Interactions(
        people, np.concatenate(rows), np.tile(np.arange(LENGTH), PEOPLE), [f"u{n}" for n in range(PEOPLE)], ids
    )


@given(
    arrays.arrays(
        np.float32, st.tuples(st.integers(1, 4), st.integers(1, 300)), elements=st.integers(-2, 5).map(float)
    ),
    st.integers(1, 40),
)
def test_highest_returns_the_first_rows_of_a_full_sort(scores: np.ndarray, k: int) -> None:
    for row, found in zip(scores, highest(scores, k), strict=True):
        order = np.lexsort((np.arange(len(row)), -row))
        assert found.tolist() == [column for column in order if row[column] > 0][:k]


def test_no_signal_scores_an_item_by_itself(signals: Signals) -> None:
    histories = [np.array([3, 4, 5]), np.array([17]), np.array([], dtype=np.int64)]
    scores = signals.scores(histories)
    assert list(scores) == [name for name in CHANNEL_OF if not name.endswith("_untrained")]
    for name, found in scores.items():
        assert found.shape == (3, N), name
        assert found.dtype == np.float32, name
        assert np.isfinite(found).all(), name
    for name in ("last", "mean", "near", "titles", "together", "followed", "given", "ease"):
        assert scores[name][1, 17] == 0, name
    assert not any(found[2].any() for name, found in scores.items())


def test_transitions_are_learned_from_events(signals: Signals) -> None:
    asked = [walk[:-1] for walk in walks(1)]
    truth = np.array([walk[-1] for walk in walks(1)])
    first = highest(signals.scores(asked)["next"], 5)
    assert np.mean([target in best for target, best in zip(truth, first, strict=True)]) > 0.5  # chance is .08
    empty = Interactions(*(np.zeros(0, dtype=np.int32) for _ in range(3)), [], [])
    knows_nothing = Signals.fit(empty, snapshot(), content()).scores(asked)
    assert not knows_nothing["next"].any()
    assert not knows_nothing["alike"].any()
    assert knows_nothing["near"].any()


def test_linear_models_are_the_same_when_fitted_again() -> None:
    shot, near = snapshot(), content().near
    linear = Linear.fit(walks(), near, len(shot))
    assert linear.next.shape == (len(linear.items),) * 2
    assert np.diagonal(linear.ease).max() == 0
    again = Linear.fit(walks(), near, len(shot))
    np.testing.assert_array_equal(linear.next, again.next)


def test_linear_models_are_read_back_from_disk(tmp_path: Path) -> None:
    made = Linear.fit(walks(), content().near, N)
    read = load_or_build(tmp_path, "linear", "1", Linear, lambda: made)
    for name in ("items", "ease", "next", "later"):
        assert isinstance(getattr(read, name), np.memmap)
        np.testing.assert_array_equal(getattr(made, name), getattr(read, name))


def test_content_holds_neighbours_titles_and_fields() -> None:
    made = content()
    for matrix in (made.near, made.titles):
        assert matrix.diagonal().max() == 0
        assert matrix.data.min() >= 0
    size = N // KINDS
    assert np.mean(made.near[0].indices // size == 0) > 0.4
    alike = highest(made.titles[:1].toarray(), size - 1)[0]
    assert set(alike // size) == {0}  # "number" is in all titles, "lamp" in those of one kind
    assert made.fields.shape == (N, KINDS)
    assert abs(float(made.numbers["price"].mean())) < 1e-6


def test_candidates_are_allowed_items_only(signals: Signals) -> None:
    histories = [np.array([3, 4, 5]), np.array([17, 18, 17])]
    found = candidates(signals, histories, allowed(histories, repeats=False))
    for row, history in enumerate(histories):
        mine = found.item[found.case == row]
        assert not set(mine) & set(history)
        assert (np.diff(mine) > 0).all()
    assert found.features.shape == (len(found.case), len(found.names))
    again = candidates(signals, histories, allowed(histories, repeats=True))
    assert set(again.item[again.case == 1]) >= {17, 18}
    three = np.zeros((2, N), dtype=bool)
    three[:, [6, 19, 40]] = True
    assert set(candidates(signals, histories, three).item) <= {6, 19, 40}
    assert 6 not in candidates(signals, histories, allowed(histories, repeats=False, hidden=6)).item


def test_a_channel_that_is_left_out_brings_no_candidate_and_no_feature(signals: Signals) -> None:
    histories = [walk[:-1] for walk in walks(2)]
    may = allowed(histories, repeats=True)
    without = candidates(signals, histories, may, without="collaborative")
    own = [at for at, name in enumerate(without.names) if channel_of(name) == "collaborative" and "rank" not in name]
    assert own and not without.features[:, own].any()
    assert len(without.case) < len(candidates(signals, histories, may).case)


def test_learned_fusion_learns_is_deterministic_and_is_read_back_from_disk(signals: Signals, tmp_path: Path) -> None:
    asked, truth = [walk[:-1] for walk in walks(2)], np.array([walk[-1] for walk in walks(2)])
    table = candidates(signals, asked, allowed(asked, repeats=True))
    chosen = table.item == truth[table.case]
    learned = Learned.fit(table, chosen, seeds=(0,), rounds=30, min_data_in_leaf=5)
    again = Learned.fit(table, chosen, seeds=(0,), rounds=30, min_data_in_leaf=5)
    np.testing.assert_array_equal(learned.scores(table), again.scores(table))
    fresh, expected = [walk[:-1] for walk in walks(3)], [int(walk[-1]) for walk in walks(3)]
    ranked = learned.rank(signals, fresh, allowed(fresh, repeats=True)).best(len(fresh), 5)
    assert np.mean([target in [row for row, _ in best] for target, best in zip(expected, ranked, strict=True)]) > 0.6
    assert all(first[1] >= second[1] for best in ranked for first, second in pairwise(best))
    assert all(0 <= score <= 1 for best in ranked for _, score in best)
    learned.save(tmp_path)
    kept = Learned.load(tmp_path)
    assert kept.names == table.names
    np.testing.assert_allclose(kept.scores(table), learned.scores(table))
    with pytest.raises(EvokeError, match=r"fusion\.json cannot be read .*: run `evoke tune` again"):
        Learned.load(tmp_path / "elsewhere")
    (tmp_path / "fusion.json").write_text('{"names": ["next"], "models": ["tree"]}')
    with pytest.raises(EvokeError, match=r"fusion\.json cannot be read .*: run `evoke tune` again"):
        Learned.load(tmp_path)


def test_contributions_sum_up_to_the_log_odds_and_name_the_channels(signals: Signals) -> None:
    asked, truth = [walk[:-1] for walk in walks(2)], np.array([walk[-1] for walk in walks(2)])
    table = candidates(signals, asked, allowed(asked, repeats=True))
    learned = Learned.fit(table, table.item == truth[table.case], seeds=(0,), rounds=30, min_data_in_leaf=5)
    fresh = [walk[:-1] for walk in walks(3)][:3]
    ranked = learned.rank(signals, fresh, allowed(fresh, repeats=True))
    best = ranked.best(3, 5)
    (model,) = learned.models
    bias = model.predict(ranked.table.features, pred_contrib=True)[0, -1]
    for case, own in enumerate(best):
        parts = ranked.parts(case, [row for row, _ in own], signals)
        assert set(parts) == {row for row, _ in own}
        for row, score in own:
            part = parts[row]
            log_odds = np.log(score / (1 - score))
            assert sum(part.contributions.values()) + bias == pytest.approx(log_odds, abs=1e-4)
            assert part.contributions.keys() <= {
                "dense",
                "collaborative",
                "lexical",
                "popular",
                "fields",
                "repeats",
                "other",
            }
            assert part.channels and part.channels.keys() <= {"dense", "collaborative", "lexical", "popular"}
            assert all(rank >= 1 for rank in part.channels.values())
        top = parts[own[0][0]]
        assert max(top.contributions, key=lambda channel: top.contributions[channel]) == "collaborative"


def test_learned_fusion_reads_features_by_name(signals: Signals) -> None:
    asked, truth = [walk[:-1] for walk in walks(2)], np.array([walk[-1] for walk in walks(2)])
    table = candidates(signals, asked, allowed(asked, repeats=True))
    learned = Learned.fit(table, table.item == truth[table.case], seeds=(0,), rounds=10, min_data_in_leaf=5)
    scores = learned.scores(table)
    order = np.random.default_rng(0).permutation(len(table.names))
    moved = replace(table, features=table.features[:, order], names=[table.names[at] for at in order])
    np.testing.assert_array_equal(learned.scores(moved), scores)
    another = np.column_stack([np.arange(len(scores), dtype=np.float32), table.features])
    np.testing.assert_array_equal(
        learned.scores(replace(table, features=another, names=["price", *table.names])), scores
    )
    used = int(np.argmax(learned.models[0].feature_importance()))
    unknown = table.features.copy()
    unknown[:, used] = np.nan
    without = replace(
        table, features=np.delete(table.features, used, axis=1), names=np.delete(table.names, used).tolist()
    )
    np.testing.assert_array_equal(learned.scores(without), learned.scores(replace(table, features=unknown)))
    assert not np.array_equal(learned.scores(without), scores)


def test_people_with_similar_histories_chose_the_same_items() -> None:
    from scipy import sparse

    counts = Cooccurrence.fit(interactions(), snapshot())
    history = sparse.csr_matrix(([1.0, 1.0], ([0, 0], [3, 4])), shape=(1, N), dtype=np.float32)
    found = counts.alike(history).toarray()[0]
    assert found[5] > found[30:].mean() * 3
