"""The plain reader of messages: no model, in milliseconds, the same every time. What it reads as a condition stands.

Readers take turns on one text, from the surest to the vaguest; each strikes out what it understood, and what none of them
understood describes what is looked for. No reader knows what the catalog holds: see `agent.dialogue.nlu.lexicon`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from agent.dialogue.events import Constraint, Intent
from agent.dialogue.nlu import phrases
from agent.dialogue.nlu.comparatives import comparatives
from agent.dialogue.nlu.field_values import facets
from agent.dialogue.nlu.item_mentions import COUNTS, Mention, mentions
from agent.dialogue.nlu.lexicon import KINDS, Lexicon
from agent.dialogue.nlu.message import Text
from agent.dialogue.nlu.numbers import bounds
from agent.dialogue.state import State

LONGEST = 1000
"""Characters of a message that are read: the time to read grows with their square."""
MOST = 20
"""Items that may be asked for at once."""


@dataclass(slots=True)
class Reading:
    """What one message says. `drop` are the constraints it takes back; `strict` are phrases to avoid that cannot be filtered by.

    `modifiers` are values said as adjectives, which add to those asked for before; `missing` names what the catalog has not.
    `compared`: it wishes for more or less of something; `fresh`: something else than before is looked for; `chat` names a
    courtesy; `n` is how many items were asked for.
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
        """The ids of the items that are spoken of so."""
        return list(dict.fromkeys(m.id for m in self.mentions if m.stance in stances))


def parse(
    message: str, state: State, lexicon: Lexicon, metadata: Callable[[Sequence[str]], list[dict[str, Any]]]
) -> Reading:
    """What the message says, coming after `state`. `metadata` looks up items' fields, for comparisons with them."""
    text, said = Text(message[:LONGEST]), Reading()
    whole = text.lower.strip()
    said.chat = next((name for name, pattern in phrases.CHAT.items() if pattern.search(whole)), None)
    said.reset, said.again = text.take(phrases.RESET), text.take(phrases.AGAIN)
    if found := phrases.COUNT.search(text.lower):
        number = found["n"] or found["m"]
        said.n = max(1, min(MOST, COUNTS.get(number) or int(number)))
        text.strike(*found.span("n" if found["n"] else "m"))
    if state.offered and state.asked == "relax" and phrases.YES.search(whole):
        said.drop.append(state.offered)
        text.take(phrases.YES)
    text.take(phrases.ANY)
    said.more = text.take(phrases.NONE_OF)
    said.drop += _dropped(text, state, lexicon)
    said.mentions, said.missing = mentions(text, lexicon, state.last, state.focus)
    asks = bool(phrases.QUESTION.search(whole)) or whole.endswith("?")
    said.intent = _asked(whole, said, state, asks)
    if said.intent in ("why", "compare", "ask"):
        return said
    if re.search(r"\bbut\b", whole) or whole.strip(" .!") == _only(said, message):
        # "The first, but newer", or a bare title: something like it is wanted.
        said.mentions = [replace(m, stance="seed") if m.stance == "none" else m for m in said.mentions]
    said.more |= text.take(phrases.MORE)
    instead, said.also = text.take(phrases.INSTEAD), bool(phrases.ALSO.search(whole))
    said.constraints, absent = bounds(text, lexicon)
    about = (
        [m.id for m in said.mentions] or state.seeds[-1:]
        if _compares_with_seed(state)
        else [m.id for m in said.mentions]
    )
    compared = comparatives(text, lexicon, metadata(about or state.last))
    said.compared = bool({c.op for c in compared} & {"$gt", "$lt"} or phrases.COMPARED.search(whole))
    said.constraints += compared
    said.modifiers = [lexicon.find([w])[0].value for w in re.findall(r"[^\W_]+", text.lower) if lexicon.modifies(w)]
    found_values, missing = facets(text, lexicon)
    said.constraints += found_values
    said.missing += [*absent, *missing]
    said.avoid, said.strict = phrases.avoided(text)
    if query := phrases.left_over(text):
        said.queries.append(query)
    said.compared |= bool(said.queries and phrases.ER.search(text.lower))
    said.intent = _intent(whole, said, state, asks)
    said.fresh = instead or said.reset or _looks_elsewhere(whole, said)
    if said.chat and said.intent != "chat":
        said.chat = None
    return said


def _only(said: Reading, message: str) -> str:
    """The words of the one item spoken of."""
    return message[said.mentions[0].start : said.mentions[0].end].lower() if len(said.mentions) == 1 else ""


def _compares_with_seed(state: State) -> bool:
    """Whether a bare "newer" is meant of the item that others were to be like: nothing else was shown since."""
    return bool(state.seeds) and not state.last


def _dropped(text: Text, state: State, lexicon: Lexicon) -> list[Constraint]:
    """The constraints that the message takes back: by field ("any year"), by value ("horror is fine after all"), or all."""
    dropped: list[Constraint] = []
    for pattern in (phrases.MATTER, phrases.DROP):
        for match in text.find(pattern):
            what = match["what"].strip()
            strong = pattern is phrases.MATTER or match["kind"] or phrases.TAKES_BACK.match(match.group())
            if phrases.EVERYTHING.fullmatch(what):
                dropped += state.constraints
            elif strong:
                dropped += [c for c in state.constraints if _speaks_of(what, c, lexicon)]
            if dropped or (strong and _names_field(what, lexicon)):
                text.strike(*match.span())
    return list({c.words: c for c in dropped}.values())


def _speaks_of(what: str, constraint: Constraint, lexicon: Lexicon) -> bool:
    words = {w.rstrip("s") for w in re.findall(r"\w+", what)}
    kinds = {kind for kind, name in lexicon.fields.items() if name == constraint.field}
    names = {constraint.field.lower().rstrip("s"), *kinds}
    for kind in kinds:
        names |= {word.rstrip("s") for word in KINDS[kind].split()}
        names |= {"time": {"era", "age", "decade", "period"}, "price": {"budget"}}.get(kind, set())
    values = constraint.value if isinstance(constraint.value, list) else [constraint.value]
    meant = {(v.field, v.value) for v in lexicon.find(what.split())}
    said = any(str(v).lower() == what or (constraint.field, v) in meant for v in values)
    return bool(words & names) or said or what == constraint.words.lower()


def _names_field(what: str, lexicon: Lexicon) -> bool:
    words = {word.rstrip("s") for word in re.findall(r"\w+", what)}
    return bool(words & ({name.lower().rstrip("s") for name in lexicon.schema} | set(lexicon.fields)))


def _asked(whole: str, said: Reading, state: State, asks: bool) -> Intent:
    """Whether this is a question about items, rather than for some."""
    seeds = said.of("seed", "like", "dislike", "away")
    if phrases.WHY.search(whole) and (state.last or said.mentions) and not seeds:
        return "why"
    listed = [m for m in said.mentions if m.stance in ("none", "seed")]
    if phrases.COMPARE.search(whole) and (len(listed) > 1 or (state.last and asks and not seeds)):
        return "compare"
    if len(listed) == 2 and asks and re.search(r"\bor\b", whole):
        return "compare"
    if asks and said.mentions and all(m.stance == "none" for m in said.mentions) and not phrases.REQUEST.search(whole):
        return "ask"
    if re.search(r"\b(?:tell me (?:more )?about|describe|what is|what's)\b", whole) and said.of("none"):
        return "ask"
    return "recommend"


_OPENING = re.compile(
    r"^\W*(?:please |can you |could you |hi,? |hello,? |hey,? |ok,? |now )*(?:recommend|suggest|find|i want (?!to\b)|"
    r"i'd like|i would like|i'm looking|i am looking|looking for|i feel like|i'm in the mood|in the mood)\b"
)


def _intent(whole: str, said: Reading, state: State, asks: bool) -> Intent:
    """What is wanted, now that all is read."""
    signals = said.of("like", "dislike", "seen", "away")
    content = said.constraints or said.queries or said.avoid or said.of("seed") or said.drop
    nothing = not (content or signals or said.again or said.more or said.reset)
    if nothing and (said.chat or phrases.NO_ANSWER.search(whole)):
        return "chat"
    if said.reset:
        return "recommend"
    if said.mentions and nothing and asks:
        return "ask"
    if signals and not content and not said.more:
        return "feedback"
    if _OPENING.search(whole) and not said.compared:
        return "recommend"
    begun = bool(state.last or state.constraints or state.topic or state.seeds)
    named = any(m.stance == "seed" and m.by == "title" for m in said.mentions)
    if state.last and said.compared and not named and content and not said.more:
        return "critique"
    if begun and (said.constraints or said.drop or said.avoid or said.more) and not _looks_elsewhere(whole, said):
        return "refine"
    return "recommend"


def _looks_elsewhere(whole: str, said: Reading) -> bool:
    """Whether something new is looked for: a request with a description, or an item to be like, of its own."""
    asked = bool(phrases.REQUEST.search(whole))
    if said.of("seed"):
        return True
    asked = asked or bool(re.search(rf"\b{phrases.THING}\b", whole))
    return bool(said.queries) and asked and not said.compared
