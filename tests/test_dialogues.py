"""Scripted dialogues without a model: in every turn, every item shown fulfils what the user asked for."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import Recommender
from agent.dialogue.events import Turn
from store import Catalog, History
from tests.helpers.dialogues import DIALOGUES, METADATA, Dialogue, Says, fulfils
from tests.helpers.serving import DEAD


@pytest.fixture(scope="module")
def talker(films_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recommender]:
    """A recommender whose model server cannot be reached."""
    store = shutil.copytree(films_store, tmp_path_factory.mktemp("dialogues") / "store")
    with Catalog.open(store) as catalog, History.open(store) as history:
        recommender = Recommender(catalog, history, base_url=DEAD, deadline=0.2)
        yield recommender
        recommender.close()


@pytest.mark.parametrize("dialogue", DIALOGUES, ids=lambda d: d.name)
def test_every_turn_of_a_dialogue_shows_new_items_that_fulfil_the_request(
    talker: Recommender, dialogue: Dialogue
) -> None:
    session = talker.session(dialogue.user)
    shown: set[str] = set()
    for says in dialogue.turns:
        turn = session.send(says.words)
        ids = [r.item.id for r in turn.items]
        report = f"{says.words!r}: {turn.intent} {[c.words for c in turn.constraints]} {ids}\n{turn.text}"
        check(says, turn, ids, report)
        if "again" not in says.words:
            assert not shown & set(ids), report
            shown |= set(ids)
        assert not set(ids) & {*session.state.disliked, *session.state.seen}, report


def check(says: Says, turn: Turn, ids: list[str], report: str) -> None:
    assert turn.intent == says.intent, report
    assert len(ids) == len(set(ids)), report
    for id in ids:
        assert says.fits(METADATA[id]), f"{id} {METADATA[id]}\n{report}"
        assert all(fulfils(METADATA[id], c) for c in turn.constraints), f"{id}\n{report}"
    if says.force is not None:
        assert sorted(c.words for c in turn.constraints) == sorted(says.force), report
    if says.exactly is not None:
        assert set(ids) == says.exactly, report
    if says.n is not None:
        assert len(ids) == says.n, report
    assert says.some <= set(ids), report
    assert not says.none & set(ids), report
    assert says.text in turn.text, report
    assert says.asks in (None, bool(turn.question)), report
