"""What a message does to the conversation: conditions join or replace others, signals act, what is looked for moves on."""

from __future__ import annotations

from agent.dialogue.constraint_text import worded
from agent.dialogue.events import Constraint, Understood
from agent.dialogue.nlu.comparison_words import storable
from agent.dialogue.nlu.lexicon import Lexicon
from agent.dialogue.nlu.rule_parser import Reading
from agent.dialogue.state import State
from store.errors import StoreError
from store.filters import normalised

PHRASES = 4
"""Phrases that are looked for together, the latest."""
_LOW = {"$gt", "$gte"}
_HIGH = {"$lt", "$lte"}
_NEVER = {"$nin", "$ne", "$not_contains", "$outside"}


def follow(state: State, said: Reading, lexicon: Lexicon) -> Understood:
    """Change the state as the message says; returns what was understood."""
    if said.reset:
        state.constraints, state.topic, state.avoid, state.seeds, state.questioned = [], [], [], [], []
    # A catalog that was indexed anew may have lost a field that an old conversation asks about, or hold other things in it.
    gone = [c for c in state.constraints if not _possible(c, lexicon)]
    state.constraints = [c for c in state.constraints if c not in said.drop and c not in gone]
    fresh: set[str] = set()
    for constraint in said.constraints:
        join(
            state.constraints,
            constraint,
            lexicon,
            also=said.also or constraint.field in fresh or constraint.value in said.modifiers,
        )
        fresh.add(constraint.field)
    if said.intent in ("recommend", "refine", "critique", "feedback"):
        signal(state, said)
        _look(state, said)
    mentioned = list(dict.fromkeys(m.id for m in said.mentions))
    if mentioned:
        state.focus = mentioned[-1]
    dropped = [f"no filter for “{phrase}”: steered away from by description" for phrase in said.strict]
    dropped += [
        f"{name} is not in this catalog" for name in [*said.missing, *(f"a field for “{c.words}”" for c in gone)]
    ]
    return Understood(
        said.intent,
        list(state.constraints),
        said.of("like", "seed"),
        said.of("dislike", "away"),
        mentioned,
        list(state.topic),
        dropped,
    )


def _possible(constraint: Constraint, lexicon: Lexicon) -> bool:
    """Whether the catalog can be filtered by this condition."""
    try:
        return normalised(constraint.where, lexicon.schema) is not None and storable(constraint.value)
    except StoreError:
        return False


def signal(state: State, said: Reading) -> None:
    """Likes, dislikes and what was seen act from now on; the latest word on an item counts."""
    for m in said.mentions:
        if m.stance in ("like", "dislike", "away"):
            mark(state, m.id, "like" if m.stance == "like" else "dislike")
        elif m.stance == "seen":
            mark(state, m.id, "seen")


def mark(state: State, id: str, kind: str) -> None:
    """Set how the person stands to an item."""
    liked, disliked = ([one for one in known if one != id] for known in (state.liked, state.disliked))
    if kind == "like":
        state.liked, state.disliked = [*liked, id], disliked
    elif kind == "dislike":
        state.liked, state.disliked = liked, [*disliked, id]
    elif id not in state.seen:
        state.seen = [*state.seen, id]


def _look(state: State, said: Reading) -> None:
    """Move on what is looked for."""
    seeds = said.of("seed")
    if said.fresh:
        state.topic, state.seeds = [], []
        if seeds or said.queries:
            state.avoid = []
    state.seeds = [id for id in state.seeds if id not in seeds and id not in said.of("dislike", "away")] + seeds
    state.topic = [*[q for q in state.topic if q not in said.queries], *said.queries][-PHRASES:]
    state.avoid = [*[a for a in state.avoid if a not in said.avoid], *said.avoid][-2 * PHRASES :]


def join(constraints: list[Constraint], new: Constraint, lexicon: Lexicon, *, also: bool) -> None:
    """Add a condition to those in force; what it contradicts or replaces goes.

    A new wanted value replaces the wanted values of its field unless it is to be joined to them (`also`); a new bound replaces that
    of its side; a new stretch replaces all bounds. What is unwanted adds up.
    """
    values = _values(new)
    kept = []
    for old in constraints:
        if old.field != new.field:
            kept.append(old)
        elif _numeric(new):
            if not _replaces(new, old):
                kept.append(old)
        elif (old.op in _NEVER) != (new.op in _NEVER):
            # The latest word on a value counts.
            left = [value for value in _values(old) if value not in values]
            if len(left) == len(_values(old)):
                kept.append(old)
            elif left:
                kept.append(Constraint(old.field, old.op, left, worded(old.field, old.op, left)))
        elif new.op in _NEVER:
            if old != new:
                kept.append(old)
        elif also and lexicon.schema[new.field].type == "list" and old != new:
            kept.append(old)
    constraints[:] = [*kept, new]


def _values(constraint: Constraint) -> list[object]:
    return list(constraint.value) if isinstance(constraint.value, list) else [constraint.value]


def _numeric(constraint: Constraint) -> bool:
    return not any(isinstance(value, str) for value in _values(constraint))


def _replaces(new: Constraint, old: Constraint) -> bool:
    if new.op in _NEVER or old.op in _NEVER:
        return new == old
    if new.op in _LOW and old.op in _HIGH:
        return bool(new.value >= old.value)
    if new.op in _HIGH and old.op in _LOW:
        return bool(new.value <= old.value)
    if new.op in _LOW | _HIGH and old.op in ("$between", "$ranges", "$eq"):
        return True
    return True
