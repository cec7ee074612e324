"""The rule-based parser of messages: no model, a few milliseconds, deterministic. Its constraints are final.

Several parsers read one text, from the most reliable to the least. Each strikes out the part it understood, and the words that
remain are the query. No parser knows what the catalog contains: see `agent.dialogue.nlu.lexicon`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from agent.dialogue.events import Constraint, Intent
from agent.dialogue.nlu import phrases
from agent.dialogue.nlu.comparatives import parse_comparatives
from agent.dialogue.nlu.field_values import parse_field_values
from agent.dialogue.nlu.item_mentions import COUNTS, Mention, find_mentions
from agent.dialogue.nlu.lexicon import KINDS, Lexicon
from agent.dialogue.nlu.message import Text
from agent.dialogue.nlu.numbers import parse_numbers
from agent.dialogue.state import State

LONGEST = 1000
"""Characters of a message that are parsed; the time grows with their square."""
MOST = 20
"""Most items of one answer."""


@dataclass(slots=True)
class ParsedMessage:
    """The content of one message.

    intent: what the user wants to happen.
    constraints, drop: hard constraints that it states, and active ones that it removes.
    mentions: the items it mentions, each with the user's stance.
    queries: phrases to search by.
    avoid, strict: phrases to avoid, and those of them that the user excluded outright but no field can filter by.
    modifiers: field values used as adjectives ("romantic"), which add to earlier values instead of replacing them.
    missing: references to things that the catalog does not have.
    also: its values join the earlier ones ("also", "too").
    again, more: it asks for the last list again, or for further items.
    reset, fresh: it starts over, or begins another search and keeps the constraints.
    compared: it asks for more or less of something than in the last list.
    chat: the kind of small talk, a key of `agent.dialogue.templates.CHAT`.
    n: the number of items it asks for.
    """

    intent: Intent = "recommend"
    constraints: list[Constraint] = field(default_factory=list)
    drop: list[Constraint] = field(default_factory=list)
    mentions: list[Mention] = field(default_factory=list)
    queries: list[str] = field(default_factory=list)
    avoid: list[str] = field(default_factory=list)
    modifiers: list[str] = field(default_factory=list)
    strict: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    also: bool = False
    again: bool = False
    more: bool = False
    reset: bool = False
    fresh: bool = False
    compared: bool = False
    chat: str | None = None
    n: int | None = None

    def of(self, *stances: str) -> list[str]:
        """Return the ids of the items mentioned with one of these stances."""
        return list(dict.fromkeys(m.id for m in self.mentions if m.stance in stances))


def parse(
    message: str, state: State, lexicon: Lexicon, metadata: Callable[[Sequence[str]], list[dict[str, Any]]]
) -> ParsedMessage:
    """Return the content of a message.

    Args:
        message: the user's words.
        state: the state before it, which "the second" and "newer" refer to.
        lexicon: the catalog's words.
        metadata: returns the metadata of the items with these ids, for comparisons with them.
    """
    text, parsed = Text(message[:LONGEST]), ParsedMessage()
    whole = text.lower.strip()
    parsed.chat = next((name for name, pattern in phrases.CHAT.items() if pattern.search(whole)), None)
    parsed.reset, parsed.again = text.take(phrases.RESET), text.take(phrases.AGAIN)
    if found := phrases.COUNT.search(text.lower):
        number = found["n"] or found["m"]
        parsed.n = max(1, min(MOST, COUNTS.get(number) or int(number)))
        text.strike(*found.span("n" if found["n"] else "m"))
    if state.offered and state.asked == "relax" and phrases.YES.search(whole):
        parsed.drop.append(state.offered)
        text.take(phrases.YES)
    text.take(phrases.ANY)
    parsed.more = text.take(phrases.NONE_OF)
    parsed.drop += _find_dropped(text, state, lexicon)
    parsed.mentions, parsed.missing = find_mentions(text, lexicon, state.last, state.focus)
    asks = bool(phrases.QUESTION.search(whole)) or whole.endswith("?")
    parsed.intent = _classify_question(whole, parsed, state, asks)
    if parsed.intent in ("why", "compare", "ask"):
        return parsed
    if re.search(r"\bbut\b", whole) or whole.strip(" .!") == _only_item(parsed, message):
        # "The first, but newer", or a bare title: something like it is wanted.
        parsed.mentions = [replace(m, stance="seed") if m.stance == "none" else m for m in parsed.mentions]
    parsed.more |= text.take(phrases.MORE)
    instead, parsed.also = text.take(phrases.INSTEAD), bool(phrases.ALSO.search(whole))
    parsed.constraints, absent = parse_numbers(text, lexicon)
    about = (
        [m.id for m in parsed.mentions] or state.seeds[-1:]
        if _compares_with_seed(state)
        else [m.id for m in parsed.mentions]
    )
    compared = parse_comparatives(text, lexicon, metadata(about or state.last))
    parsed.compared = bool({c.op for c in compared} & {"$gt", "$lt"} or phrases.COMPARED.search(whole))
    parsed.constraints += compared
    parsed.modifiers = [lexicon.find([w])[0].value for w in re.findall(r"[^\W_]+", text.lower) if lexicon.modifies(w)]
    found_values, missing = parse_field_values(text, lexicon)
    parsed.constraints += found_values
    parsed.missing += [*absent, *missing]
    parsed.avoid, parsed.strict = phrases.find_avoided(text)
    if query := phrases.remaining_query(text):
        parsed.queries.append(query)
    parsed.compared |= bool(parsed.queries and phrases.ER.search(text.lower))
    parsed.intent = _classify_request(whole, parsed, state, asks)
    parsed.fresh = instead or parsed.reset or _begins_search(whole, parsed)
    if parsed.chat and parsed.intent != "chat":
        parsed.chat = None
    return parsed


def _only_item(parsed: ParsedMessage, message: str) -> str:
    """Return the words of the only item mentioned, in lower case, or ""."""
    return message[parsed.mentions[0].start : parsed.mentions[0].end].lower() if len(parsed.mentions) == 1 else ""


def _compares_with_seed(state: State) -> bool:
    """Return whether "newer" compares with the seed, because no list was shown since."""
    return bool(state.seeds) and not state.last


def _find_dropped(text: Text, state: State, lexicon: Lexicon) -> list[Constraint]:
    """Return the constraints that the message removes: by field ("any year"), by value ("horror is fine after all"), or all."""
    dropped: list[Constraint] = []
    for pattern in (phrases.MATTER, phrases.DROP):
        for match in text.find(pattern):
            what = match["what"].strip()
            strong = pattern is phrases.MATTER or match["kind"] or phrases.TAKES_BACK.match(match.group())
            if phrases.EVERYTHING.fullmatch(what):
                dropped += state.constraints
            elif strong:
                dropped += [c for c in state.constraints if _refers_to(what, c, lexicon)]
            if dropped or (strong and _names_field(what, lexicon)):
                text.strike(*match.span())
    return list({c.words: c for c in dropped}.values())


def _refers_to(what: str, constraint: Constraint, lexicon: Lexicon) -> bool:
    """Return whether these words name the constraint: its field, its kind, its value, or all of it."""
    words = {w.rstrip("s") for w in re.findall(r"\w+", what)}
    kinds = {kind for kind, name in lexicon.fields.items() if name == constraint.field}
    names = {constraint.field.lower().rstrip("s"), *kinds}
    for kind in kinds:
        names |= {word.rstrip("s") for word in KINDS[kind].split()}
        names |= {"time": {"era", "age", "decade", "period"}, "price": {"budget"}}.get(kind, set())
    values = constraint.value if isinstance(constraint.value, list) else [constraint.value]
    meant = {(v.field, v.value) for v in lexicon.find(what.split())}
    names_value = any(str(v).lower() == what or (constraint.field, v) in meant for v in values)
    return bool(words & names) or names_value or what == constraint.words.lower()


def _names_field(what: str, lexicon: Lexicon) -> bool:
    words = {word.rstrip("s") for word in re.findall(r"\w+", what)}
    return bool(words & ({name.lower().rstrip("s") for name in lexicon.schema} | set(lexicon.fields)))


def _classify_question(whole: str, parsed: ParsedMessage, state: State, asks: bool) -> Intent:
    """Return "why", "compare" or "ask" for a question about items, else "recommend"."""
    seeds = parsed.of("seed", "like", "dislike", "away")
    if phrases.WHY.search(whole) and (state.last or parsed.mentions) and not seeds:
        return "why"
    listed = [m for m in parsed.mentions if m.stance in ("none", "seed")]
    if phrases.COMPARE.search(whole) and (len(listed) > 1 or (state.last and asks and not seeds)):
        return "compare"
    if len(listed) == 2 and asks and re.search(r"\bor\b", whole):
        return "compare"
    if (
        asks
        and parsed.mentions
        and all(m.stance == "none" for m in parsed.mentions)
        and not phrases.REQUEST.search(whole)
    ):
        return "ask"
    if re.search(r"\b(?:tell me (?:more )?about|describe|what is|what's)\b", whole) and parsed.of("none"):
        return "ask"
    return "recommend"


_OPENING = re.compile(
    r"^\W*(?:please |can you |could you |hi,? |hello,? |hey,? |ok,? |now )*(?:recommend|suggest|find|i want (?!to\b)|"
    r"i'd like|i would like|i'm looking|i am looking|looking for|i feel like|i'm in the mood|in the mood)\b"
)


def _classify_request(whole: str, parsed: ParsedMessage, state: State, asks: bool) -> Intent:
    """Return the intent of a message that is no question about items."""
    signals = parsed.of("like", "dislike", "seen", "away")
    content = parsed.constraints or parsed.queries or parsed.avoid or parsed.of("seed") or parsed.drop
    nothing = not (content or signals or parsed.again or parsed.more or parsed.reset)
    if nothing and (parsed.chat or phrases.NO_ANSWER.search(whole)):
        return "chat"
    if parsed.reset:
        return "recommend"
    if parsed.mentions and nothing and asks:
        return "ask"
    if signals and not content and not parsed.more:
        return "feedback"
    if _OPENING.search(whole) and not parsed.compared:
        return "recommend"
    begun = bool(state.last or state.constraints or state.topic or state.seeds)
    named = any(m.stance == "seed" and m.by == "title" for m in parsed.mentions)
    if state.last and parsed.compared and not named and content and not parsed.more:
        return "critique"
    if (
        begun
        and (parsed.constraints or parsed.drop or parsed.avoid or parsed.more)
        and not _begins_search(whole, parsed)
    ):
        return "refine"
    return "recommend"


def _begins_search(whole: str, parsed: ParsedMessage) -> bool:
    """Return whether the message begins another search: a request with its own description, or its own seed."""
    asked = bool(phrases.REQUEST.search(whole))
    if parsed.of("seed"):
        return True
    asked = asked or bool(re.search(rf"\b{phrases.THING}\b", whole))
    return bool(parsed.queries) and asked and not parsed.compared
