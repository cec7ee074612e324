"""Queries and interests without a model: the check of its queries, and what fills up its answer."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from rapidfuzz import fuzz

from agent.item_text import descriptive_values, first_sentence, item_query, latest_items, normalize_title
from agent.llm.adapters import Mix
from agent.results import Interest, Interests, Profile, Stage
from prompts.cleaning import harmless
from store import Item
from store.catalog import Field

MIN_QUERIES = 5
RECENT = 20


NO_MIX = Mix()


def good_queries(queries: Sequence[str], history: Sequence[Item], known: Sequence[str] = ()) -> list[str]:
    """Return the queries that are fit for retrieval: 2 to 16 words, no address, no bare history title, and no near-duplicate of
    an earlier one or of a `known` one."""
    titles = [normalize_title(item.title) for item in history]
    kept: list[str] = []
    for query in (" ".join(q.split()) for q in queries):
        words = normalize_title(query)
        if not 2 <= len(words.split()) <= 16 or re.search(r"https?:|www\.|\.com\b|/", query):
            continue
        if any(fuzz.ratio(words, title) > 88 for title in titles):
            continue
        if any(fuzz.token_set_ratio(words, normalize_title(other)) > 88 for other in (*known, *kept)):
            continue
        kept.append(query)
    return kept


def fill_up(
    found: Interests,
    history: Sequence[Item],
    schema: Mapping[str, Field],
    stage: Stage,
    mix: Mix = NO_MIX,
    others: Sequence[Item] = (),
) -> Interests:
    """Return the interests with what the model left open: queries for items that others chose next, and queries and interests
    built from the fields and text of recent history items.

    Args:
        found: what the model said, after the checks; nothing where it was not asked.
        history: liked items, oldest first.
        schema: the catalog's fields.
        stage: where notes go.
        mix: how many queries for the latest items come first, and how many are built where there is material for them.
        others: items that other people chose after such a history.
    """
    profile = found.profile or Profile("", (), ())
    if not profile.interests:
        built = interests_from_fields(history, schema)
        summary = profile.summary or f"Likes {', '.join(interest.name for interest in built[:3])}."
        profile = replace(profile, summary=summary, interests=tuple(built))
        stage.notes.append("interests built from the history's fields")
    copied = queries_for_latest(history, schema, mix.latest)
    queries = list(found.queries)
    if copied or others:
        queries = good_queries([*queries, *(item_query(item, schema) for item in others)], history, copied)
    if shown := len(set(queries) - set(found.queries)):
        stage.notes.append(f"{shown} queries for items that others chose next")
    wanted = max(MIN_QUERIES - len(copied), len(queries) + mix.built)
    if len(queries) < wanted:
        queries = good_queries(queries + queries_from_fields(history, schema), history, copied)[:wanted]
    if added := len(copied) + len(set(queries) - set(found.queries)) - shown:
        stage.notes.append(f"{added} queries built from the history's fields")
    return Interests(profile, (*copied, *queries), found.named, len(copied))


def interests_from_fields(history: Sequence[Item], schema: Mapping[str, Field]) -> list[Interest]:
    """Return up to 4 interests: the most frequent values of the recent history's fields, weighted by their frequency."""
    recent = history[-RECENT:]
    values = {item.id: descriptive_values(item, schema) for item in recent}
    counts = Counter(value for found in values.values() for value in found)
    top = [(value, n) for value, n in counts.most_common(4) if n > 1]
    if not top:
        return [Interest(f"things like {recent[-1].title}"[:60], 1.0, (recent[-1].id,))]
    return [
        Interest(value, round(n / len(recent), 3), tuple(id for id, found in values.items() if value in found)[-5:])
        for value, n in top
    ]


def queries_for_latest(history: Sequence[Item], schema: Mapping[str, Field], n: int) -> list[str]:
    """Return one query for each of the `n` latest distinct items, newest first: its whole title and descriptive values."""
    said = (
        [harmless(words, 200) for words in (item.title, *descriptive_values(item, schema)[:3])]
        for item in latest_items(history, n)
    )
    return [query for words in said if (query := ", ".join(filter(None, words)))]


def queries_from_fields(history: Sequence[Item], schema: Mapping[str, Field]) -> list[str]:
    """Return one query an item, newest first: its descriptive values (genre and director, brand), then its own words."""
    return [
        " ".join([*descriptive_values(item, schema)[:2], *first_sentence(item).split()][:14])
        for item in reversed(history[-RECENT:])
    ]
