"""Hostile text in the catalog against a model that obeys whatever it reads: what it still cannot do.

How a real model fares is measured in test_hostile_model.py.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

from store import Item
from tests.helpers.attacks import ATTACKS
from tests.helpers.faults import obeying

TARGETS = ("thief-1981", "the-third-man-1949")
SPECIAL = re.compile(r"<\|?|\|>|\[/?INST|</s>|```|^#", re.MULTILINE)


def attacked(recommender: Any, id: str, attack: str, place: str) -> Item:
    """The item with the attack in its title or text, as it now stands in the catalog."""
    catalog = recommender._core.catalog
    item = catalog.get([id])[id]
    title, text = (f"{item.title} {attack}", item.text) if place == "title" else (item.title, f"{attack}. {item.text}")
    catalog.upsert([changed := Item(item.id, title, text, item.metadata)])
    return changed


def trigger(attack: str) -> str:
    """The attack's longest run of plain words: what is left of it in a prompt."""
    return max(re.findall(r"[A-Za-z ]+", attack), key=len).strip()


def user_prompts(recommender: Any) -> list[str]:
    return [request["messages"][1]["content"] for request in recommender.server.requests]


@pytest.mark.parametrize("place", ["title", "text"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_hostile_text_stays_quoted_and_opens_no_role(rec: Any, attack: str, place: str) -> None:
    recommender = rec(rank_weight=0.3)
    recommender.recommend(user="mara", history=["heat-1995", "ronin-1998"], n=10)
    calm = {request["messages"][0]["content"] for request in recommender.server.requests}
    recommender.server.requests.clear()
    for id in ("heat-1995", *TARGETS):
        attacked(recommender, id, attack, place)
    recommender.recommend(history=["heat-1995", "ronin-1998"], n=10)
    for request in recommender.server.requests:
        assert [message["role"] for message in request["messages"]] == ["system", "user"]
        assert request["messages"][0]["content"] in calm
    for prompt in user_prompts(recommender):
        assert not SPECIAL.search(prompt)
        for line in prompt.splitlines():
            assert line.count('"') % 2 == 0, line
    start = trigger(attack)
    lines = [line for prompt in user_prompts(recommender) for line in prompt.splitlines() if start in line]
    for line in lines:
        assert start not in re.sub(r'"[^"]*"', '""', line)
    if place == "title":
        assert lines


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_obeying_model_moves_one_item_within_the_blend_and_changes_no_other(rec: Any, attack: str) -> None:
    weight, history = 0.2, ["heat-1995", "ronin-1998"]
    # Without the channels that the model itself writes for, so that only its ranking can move anything.
    weights = {"dense": 0.6, "collaborative": 1.0, "lexical": 0.3, "popular": 0.1}
    plain = rec(weights=weights)
    target = plain.recommend(history=history, n=12).items[-1].item.id
    changed = attacked(plain, target, attack, "title")
    before = {r.item.id: r.score for r in plain.recommend(history=history, n=60)}
    recommender = rec(obeying(trigger(attack)), weights=weights, rank_weight=weight, rank_depth=20)
    hijacked = recommender.recommend(history=history, n=60)
    assert hijacked.trace.degraded == []
    assert max(r.score - (1 - weight) * before[r.item.id] for r in hijacked) <= weight + 1e-6
    assert {r.item.id for r in hijacked.items[:20]} == set(list(before)[:20])
    for r in hijacked:
        if r.item.id != target:
            assert trigger(attack).casefold() not in r.explanation.casefold()
            assert r.item.title != changed.title


def test_an_obeying_model_cannot_name_an_item_outside_the_catalog(rec: Any) -> None:
    recommender = rec(obeying("Zorblax"))
    result = recommender.recommend(history=["heat-1995", "ronin-1998"], n=10)
    assert all(n.id is None for n in result.named)
    assert len(recommender._core.catalog.get([r.item.id for r in result])) == 10
    assert not any("Zorblax" in r.explanation for r in result)
