"""Fixtures of the recommender's tests: the demo dataset indexed once, a copy for each test, and recommenders over it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent import Recommender
from store import Catalog, History
from store.index import index
from tests.helpers.faults import Labels, Text

FILMS = Path(__file__).parents[2] / "eval" / "films"
GOOD = {
    "summary": "Enjoys careful crime stories.",
    "interests": [
        {"name": "heists", "weight": 0.9, "evidence": [1, 2, 99]},
        {"name": "made up", "weight": 0.5, "evidence": [77]},
    ],
    "avoid": ["gore"],
    "queries": [
        "a crew plans one last robbery",
        "http://example.org/films",
        "Heat",
        "crew plans one last robbery",
        "lonely detective follows a thief",
        "stylish con artists in a big city",
        "slow tense crime drama at night",
        "a driver for hire in trouble",
    ],
    "named": [
        {"title": "Heat", "year": 1995},
        {"title": "Ocean's Eleven", "year": 2001},
        {"title": "No Such Film", "year": 2040},
    ],
}


def modelled(said: dict[str, Any] = GOOD, explained: str = "") -> Any:
    """A scripted model: `said` for structured answers, `explained` for text, the alphabet for labels."""

    def behave(body: dict[str, Any]) -> Text | Labels:
        if body.get("logprobs"):
            return Labels({letter: -float(i) for i, letter in enumerate("ABCDEFGHIJ")})
        return Text(json.dumps(said)) if "response_format" in body else Text(explained)

    return behave


@pytest.fixture(scope="session")
def films_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo dataset, indexed once with the real encoder. Tests that change it take `films`."""
    store = tmp_path_factory.mktemp("films") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(store.parent))
        index(FILMS, store)
    return store


@pytest.fixture
def films(films_store: Path, tmp_path: Path) -> Path:
    """A copy of the demo store, to change at will."""
    return shutil.copytree(films_store, tmp_path / "store")


@pytest.fixture
def rec(films: Path, model_server: Any) -> Iterator[Any]:
    """Makes recommenders over one copy of the demo store, each with a scripted model (`server`) and settings."""
    opened: list[tuple[Any, ...]] = []

    def make(*script: Any, **settings: Any) -> Any:
        catalog, history = Catalog.open(films), History.open(films)
        server = model_server(*(script or (modelled(),)))
        made: Any = Recommender(catalog, history, base_url=server.base_url, **settings)
        made.server = server
        opened.append((made, history, catalog))
        return made

    yield make
    for parts in opened:
        for part in parts:
            part.close()
