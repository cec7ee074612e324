"""Dialogue state tracking: apply a parsed message to the state (constraints, likes and dislikes, the current search)."""

from __future__ import annotations

from agent.dialogue.constraint_text import describe_constraint
from agent.dialogue.events import Constraint, Interpretation
from agent.dialogue.nlu.comparison_words import is_storable
from agent.dialogue.nlu.lexicon import Lexicon
from agent.dialogue.nlu.rule_parser import ParsedMessage
from agent.dialogue.state import State
from store.errors import StoreError
from store.filters import normalise_filter

MAX_PHRASES = 4
"""Most phrases of the topic, the latest; twice as many to avoid."""
_LOW = {"$gt", "$gte"}
_HIGH = {"$lt", "$lte"}
_NEGATIVE = {"$nin", "$ne", "$not_contains", "$outside"}


def update_state(state: State, parsed: ParsedMessage, lexicon: Lexicon) -> Interpretation:
    """Change the state as the message asks, and return how the message was understood."""
    if parsed.reset:
        state.constraints, state.topic, state.avoid, state.seeds, state.questioned = [], [], [], [], []
    # The catalog may have been indexed again since: a field can be gone, or hold values of another type.
    obsolete = [c for c in state.constraints if not _is_filterable(c, lexicon)]
    state.constraints = [c for c in state.constraints if c not in parsed.drop and c not in obsolete]
    fields: set[str] = set()
    for constraint in parsed.constraints:
        also = parsed.also or constraint.field in fields or constraint.value in parsed.modifiers
        add_constraint(state.constraints, constraint, lexicon, also=also)
        fields.add(constraint.field)
    if parsed.intent in ("recommend", "refine", "critique", "feedback"):
        _apply_stances(state, parsed)
        _update_search(state, parsed)
    mentioned = list(dict.fromkeys(m.id for m in parsed.mentions))
    if mentioned:
        state.focus = mentioned[-1]
    dropped = [f"no filter for “{phrase}”: similar items are ranked lower instead" for phrase in parsed.strict]
    missing = [*parsed.missing, *(f"a field for “{c.words}”" for c in obsolete)]
    dropped += [f"{name} is not in this catalog" for name in missing]
    return Interpretation(
        parsed.intent,
        list(state.constraints),
        parsed.of("like", "seed"),
        parsed.of("dislike", "away"),
        mentioned,
        list(state.topic),
        dropped,
    )


def _is_filterable(constraint: Constraint, lexicon: Lexicon) -> bool:
    """Return whether the catalog can be filtered by this constraint."""
    try:
        return normalise_filter(constraint.where, lexicon.schema) is not None and is_storable(constraint.value)
    except StoreError:
        return False


def _apply_stances(state: State, parsed: ParsedMessage) -> None:
    for m in parsed.mentions:
        if m.stance in ("like", "dislike", "away"):
            set_stance(state, m.id, "like" if m.stance == "like" else "dislike")
        elif m.stance == "seen":
            set_stance(state, m.id, "seen")


def set_stance(state: State, id: str, kind: str) -> None:
    """Note that the user likes ("like"), dislikes ("dislike") or has seen ("seen") an item.

    Of like and dislike, the latest holds; "seen" leaves both as they are.
    """
    liked, disliked = ([one for one in known if one != id] for known in (state.liked, state.disliked))
    if kind == "like":
        state.liked, state.disliked = [*liked, id], disliked
    elif kind == "dislike":
        state.liked, state.disliked = liked, [*disliked, id]
    elif id not in state.seen:
        state.seen = [*state.seen, id]


def _update_search(state: State, parsed: ParsedMessage) -> None:
    """Update the topic, the phrases to avoid and the seeds."""
    seeds = parsed.of("seed")
    if parsed.fresh:
        state.topic, state.seeds = [], []
        if seeds or parsed.queries:
            state.avoid = []
    state.seeds = [id for id in state.seeds if id not in seeds and id not in parsed.of("dislike", "away")] + seeds
    state.topic = [*[q for q in state.topic if q not in parsed.queries], *parsed.queries][-MAX_PHRASES:]
    state.avoid = [*[a for a in state.avoid if a not in parsed.avoid], *parsed.avoid][-2 * MAX_PHRASES :]


def add_constraint(constraints: list[Constraint], new: Constraint, lexicon: Lexicon, *, also: bool) -> None:
    """Add a constraint in place, and remove those on the same field that it contradicts or replaces.

    A wanted value replaces the wanted values of its field. Unwanted values add up. For numbers see `_replaces`.

    Args:
        constraints: the active constraints.
        new: the constraint to add.
        lexicon: the catalog's words and fields.
        also: whether a wanted value joins the earlier ones instead, where items can have several.
    """
    values = _values(new)
    kept = []
    for old in constraints:
        if old.field != new.field:
            kept.append(old)
        elif _is_numeric(new):
            if not _replaces(new, old):
                kept.append(old)
        elif (old.op in _NEGATIVE) != (new.op in _NEGATIVE):
            # Of wanted and unwanted, the latest message on a value holds.
            left = [value for value in _values(old) if value not in values]
            if len(left) == len(_values(old)):
                kept.append(old)
            elif left:
                kept.append(Constraint(old.field, old.op, left, describe_constraint(old.field, old.op, left)))
        elif new.op in _NEGATIVE:
            if old != new:
                kept.append(old)
        elif also and lexicon.schema[new.field].type == "list" and old != new:
            kept.append(old)
    constraints[:] = [*kept, new]


def _values(constraint: Constraint) -> list[object]:
    return list(constraint.value) if isinstance(constraint.value, list) else [constraint.value]


def _is_numeric(constraint: Constraint) -> bool:
    return not any(isinstance(value, str) for value in _values(constraint))


def _replaces(new: Constraint, old: Constraint) -> bool:
    """Return whether a constraint on a number replaces an earlier one on the same field.

    A lower and an upper bound stand together if the lower is less than the upper. An unwanted value or range replaces only
    its equal, and only its equal replaces it. In any other pair the new one wins.
    """
    if new.op in _NEGATIVE or old.op in _NEGATIVE:
        return new == old
    if new.op in _LOW and old.op in _HIGH:
        return bool(new.value >= old.value)
    if new.op in _HIGH and old.op in _LOW:
        return bool(new.value <= old.value)
    return True
