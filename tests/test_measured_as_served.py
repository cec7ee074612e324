"""The lists that `evoke compare` judges are those that `recommend` returns: one channel code, one fusion."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent import Recommender
from agent.profile.user_history import UserHistory
from agent.ranking.tuned import Tuned
from agent.retrieval.channels import CHANNELS, MODEL_CHANNELS
from agent.settings import Settings
from eval.comparison.bench import BUDGET
from eval.comparison.run_arms import run_arms
from eval.comparison.runner import Setup
from eval.data.cases import Case, Cases
from eval.fitting import cross_fitting
from eval.progress import quiet
from eval.tuning import grid_search
from eval.tuning.tune import tune
from store import Catalog, History
from tests.helpers.recommending import FILMS, modelled

OFF: dict[str, Any] = {"explain": False, "diversity": 0.0}


@pytest.fixture(autouse=True)
def nothing_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    for name in ("EVOKE_BASE_URL", "OPENAI_BASE_URL", "EVOKE_STORE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def tuned_films(films: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The demo store, tuned with small trees on few steps; learned fusion is switched on whatever it is worth."""
    monkeypatch.setattr(cross_fitting, "LESSONS", 300)
    monkeypatch.setattr(grid_search, "TREES", ({"num_leaves": 4, "rounds": 20, "min_data_in_leaf": 5},))
    monkeypatch.setattr(grid_search, "channel_weights", lambda *_: ({}, {}))
    monkeypatch.setattr("eval.tuning.tune.channel_weights", lambda *_: ({}, {"ndcg@10": 0.0, "recall@100": 0.0}))
    assert tune(FILMS, store=films, model_cases=0).learned
    return films


def everyone(history: History, catalog: Catalog) -> Cases:
    """A case for each user of the store, with all events on both sides; the target is an item that nobody is asked to find."""
    events = [replace(event, split="train") for user in history.users() for event in history.of(user)]
    snapshot = catalog.snapshot()
    cases = []
    for user in history.users():
        known = UserHistory.of(history, snapshot, user)
        target = next(id for id in snapshot.ids if id not in known.seen)
        cases.append(Case(user, tuple(known.liked), (target,)))
    return Cases("demo", "valid", tuple(cases), tuple(events))


def lists(store: Path, arms: list[str], **settings: Any) -> tuple[dict[str, list[list[str]]], list[str]]:
    """What `compare` judges for the arms, with all events before the cut, and the users."""
    with Catalog.open(store) as catalog, History.open(store) as history:
        cases = everyone(history, catalog)
        tuned = Tuned.load(store)
        in_use = tuned.applied(Settings.load(**settings), store)
        on = [channel for channel in MODEL_CHANNELS if in_use.weights.get(channel, 0.0) > 0]
        bench = Setup(FILMS, store, tuned, in_use, False, on).bench(arms, cases, catalog)
        results = run_arms(arms, bench, cases, in_use, {}, store / "measured" / "answers.db", quiet)
        assert not results.not_run
        return results.lists, [case.user for case in cases.cases]


def served(store: Path, users: list[str], **settings: Any) -> list[list[str]]:
    """What `recommend` returns to the users."""
    with Catalog.open(store) as catalog, History.open(store) as history:
        recommender = Recommender(catalog, history, **settings)
        try:
            return [[one.item.id for one in recommender.recommend(user=user, n=BUDGET)] for user in users]
        finally:
            recommender.close()


def weights(*channels: str) -> dict[str, float]:
    defaults = Settings.model_fields["weights"].get_default(call_default_factory=True)
    return {channel: defaults[channel] if channel in channels else 0.0 for channel in CHANNELS}


MODEL_FREE = tuple(channel for channel in CHANNELS if channel not in MODEL_CHANNELS)


def test_untuned_base_is_what_recommend_returns(films: Path) -> None:
    settings = OFF | {"weights": weights(*MODEL_FREE)}
    measured, users = lists(films, ["base"], **settings)
    assert len(users) == 48
    assert measured["base"] == served(films, users, **settings)


def test_tuned_base_is_what_recommend_returns(tuned_films: Path) -> None:
    settings = OFF | {"weights": weights(*MODEL_FREE)}
    measured, users = lists(tuned_films, ["base"], **settings)
    assert len(users) == 48
    assert measured["base"] == served(tuned_films, users, **settings)


@pytest.mark.parametrize("channel", MODEL_FREE)
def test_a_channel_alone_is_what_recommend_returns_with_that_channel_alone(films: Path, channel: str) -> None:
    settings = OFF | {"weights": weights(channel)}
    measured, users = lists(films, [channel], **settings)
    for own, shown in zip(measured[channel], served(films, users, **settings), strict=True):
        # A channel is measured as it retrieves. In what is served near-duplicates stand last, and popular items fill up.
        assert [id for id in shown if id in own] == [id for id in own if id in shown] or set(own[:50]) <= set(shown)


@pytest.mark.parametrize("store", ["films", "tuned_films"])
def test_full_is_what_recommend_returns_with_a_model(
    store: str, request: pytest.FixtureRequest, model_server: Callable[..., Any]
) -> None:
    folder: Path = request.getfixturevalue(store)
    settings = OFF | {"base_url": model_server(modelled()).base_url}
    measured, users = lists(folder, ["full", "base"], **settings)
    assert measured["full"] != measured["base"]
    assert measured["full"] == served(folder, users, **settings)
