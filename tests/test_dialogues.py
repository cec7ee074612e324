"""Scripted dialogues with the model down: every item shown fulfils what was said, in every turn."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent import Recommender
from agent.dialogue.events import Constraint, Turn
from store import Catalog, History
from tests.helpers.dialogues import DIALOGUES, Dialogue, Says
from tests.helpers.recommending import FILMS

DEAD = "http://127.0.0.1:9/v1"
METADATA: dict[str, dict[str, Any]] = {
    row["id"]: row["metadata"] for row in map(json.loads, (FILMS / "items.jsonl").read_text("utf-8").splitlines())
}


@pytest.fixture(scope="module")
def talker(films_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recommender]:
    """A recommender whose model is down."""
    store = shutil.copytree(films_store, tmp_path_factory.mktemp("dialogues") / "store")
    with Catalog.open(store) as catalog, History.open(store) as history:
        recommender = Recommender(catalog, history, base_url=DEAD, deadline=0.2)
        yield recommender
        recommender.close()


def fulfils(metadata: dict[str, Any], constraint: Constraint) -> bool:
    """Whether an item fulfils a constraint: written anew, without a filter."""
    held, value = metadata[constraint.field], constraint.value
    holds = (lambda one: one in held) if isinstance(held, list) else (lambda one: one == held)
    match constraint.op:
        case "$gte" | "$gt" | "$lte" | "$lt":
            inside = {"$gte": held >= value, "$gt": held > value, "$lte": held <= value, "$lt": held < value}
            return bool(inside[constraint.op])
        case "$between":
            return bool(value[0] <= held <= value[1])
        case "$outside":
            return not value[0] <= held <= value[1]
        case "$ranges":
            return any(low <= held <= high for low, high in value)
        case "$in":
            return any(map(holds, value))
        case "$nin":
            return not any(map(holds, value))
        case "$eq" | "$contains":
            return bool(holds(value))
        case "$ne" | "$not_contains":
            return not holds(value)
    raise AssertionError(constraint)


@pytest.mark.parametrize("dialogue", DIALOGUES, ids=lambda d: d.name)
def test_dialogue(talker: Recommender, dialogue: Dialogue) -> None:
    session = talker.session(dialogue.user)
    shown: set[str] = set()
    for says in dialogue.turns:
        turn = session.send(says.words)
        ids = [r.item.id for r in turn.items]
        told = f"{says.words!r}: {turn.intent} {[c.words for c in turn.constraints]} {ids}\n{turn.text}"
        check(says, turn, ids, told)
        if "again" not in says.words:
            assert not shown & set(ids), told
            shown |= set(ids)
        assert not set(ids) & {*session.state.disliked, *session.state.seen}, told


def check(says: Says, turn: Turn, ids: list[str], told: str) -> None:
    assert turn.intent == says.intent, told
    assert len(ids) == len(set(ids)), told
    for id in ids:
        assert says.fits(METADATA[id]), f"{id} {METADATA[id]}\n{told}"
        assert all(fulfils(METADATA[id], c) for c in turn.constraints), f"{id}\n{told}"
    if says.force is not None:
        assert sorted(c.words for c in turn.constraints) == sorted(says.force), told
    if says.exactly is not None:
        assert set(ids) == says.exactly, told
    if says.n is not None:
        assert len(ids) == says.n, told
    assert says.some <= set(ids), told
    assert not says.none & set(ids), told
    assert says.text in turn.text, told
    assert says.asks in (None, bool(turn.question)), told


def test_there_are_enough_dialogues_and_they_cover_every_intent() -> None:
    intents = {says.intent for dialogue in DIALOGUES for says in dialogue.turns}
    assert len(DIALOGUES) >= 40
    assert intents == {"recommend", "refine", "critique", "ask", "compare", "why", "feedback", "chat"}
