"""Find the items that a message mentions (by title, by number in the last list, or as "it") and the user's stance to each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from agent.dialogue.nlu.lexicon import Lexicon, tokens
from agent.dialogue.nlu.message import STRUCK, Text, cue
from agent.dialogue.nlu.sentiment import Stance, classify_stance
from agent.dialogue.nlu.titles import YEAR, find_titles, year_after

ORDINALS = {
    "first": 1, "second": 2, "third": 3, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8, "ninth": 9, "tenth": 10,
}  # fmt: skip
COUNTS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}
_ORDINAL = re.compile(
    r"(?:#|\b(?:number|no\.?|nr\.?|item|option|pick) ?)(?P<digit>\d{1,2})\b|"
    rf"\b(?:number|item|option|pick) (?P<count>{'|'.join(COUNTS)})\b|"
    rf"\b(?:the )?(?P<nth>\d{{1,2}})(?:st|nd|rd|th)\b(?! century)(?: (?:one|film|movie|item|book|pick))?|"
    rf"\b(?:the )?(?P<word>{'|'.join(ORDINALS)}|last)\b(?! (?:\d+|few|years?|decades?|time|century|two|three|"
    rf"five|ten|twenty))(?: (?:one|film|movie|item|book|pick))?"
)
_BARE = re.compile(
    r"(?<![\w$€£.,])(?P<digit>\d{1,2})(?![\w.]*\w)(?! ?-?(?:and a half )?(?:hours?|hrs?|h|minutes?|mins?|"
    r"dollars?|euros?|bucks|years?|decades?|films?|movies?|stars?|pages?)\b)"
)
_BARE_AFTER = cue(
    r"\b(?:compare|why|like|liked|loved|seen|watched|hated?|dislike|about|between|versus|vs\.?|is|show me|explain)"
)
_PRONOUN = re.compile(
    r"(?:\b(?:it|this)|(?:(?<=\bseen )|(?<=\bwatched )|(?<=\bliked )|(?<=\blike )|(?<=\bloved )|(?<=\blove )|"
    r"(?<=\bhated )|(?<=\bhate )|(?<=\bwhy )|(?<=\babout )|(?<=\bis )|"
    r"(?<=\bwas )|(?<=\bknow )|^)that)(?: (?:one|film|movie|book|item|game|song))?"
    r"(?=\W*$|[,.;!?]| (?:is|was|has|and|or|but|in|already|too|an?|made|about|before|yet|please|from|so|again|"
    r"one)\b)|"
    r"\b(?:them|those|these)(?: all)?(?=\W*$|[,.;!?]| (?:already|before|too|yet|are|were|again)\b)"
)
_QUOTED = re.compile(r"\"([^\"]{2,80})\"|“([^”]{2,80})”|(?<!\w)'([^']{2,80})'(?!\w)")


@dataclass(frozen=True, slots=True)
class Mention:
    """An item that the message mentions: its id, its place in the message, the user's stance, and how it is referred to."""

    id: str
    start: int
    end: int
    stance: Stance
    by: Literal["title", "number", "pronoun"]


def find_mentions(
    text: Text, lexicon: Lexicon, last: Sequence[str], focus: str | None
) -> tuple[list[Mention], list[str]]:
    """Return the mentions in the order of the message, each struck out, and the numbers or titles that do not exist.

    Args:
        text: the message.
        lexicon: the catalog's words.
        last: ids of the list shown last.
        focus: the id that "it" refers to, if there is one.
    """
    found: list[tuple[str, int, int, Literal["title", "number", "pronoun"]]] = []
    missing: list[str] = []
    for quoted in text.find(_QUOTED):
        title = next(g for g in quoted.groups() if g)
        if id := lexicon.find_title(title, year_after(text, quoted.end())) or lexicon.ground(title):
            found.append((id, *_strike(text, quoted.start(), quoted.end()), "title"))
        elif len(title) > 3:
            missing.append(f'"{title}"')
    found += [(id, *_strike(text, start, end), "title") for id, start, end in find_titles(text, lexicon)]
    if last:
        for pattern, needs in ((_ORDINAL, False), (_BARE, True)):
            for match in text.find(pattern):
                if needs and not text.cued(match.start(), _BARE_AFTER):
                    continue
                at = _place(match, len(last))
                if 0 < at <= len(last):
                    found.append((last[at - 1], *_strike(text, *match.span()), "number"))
                elif not needs or at > 0:
                    text.strike(*match.span())
                    missing.append(f"number {at}")
    if (focus or last) and not found:
        for match in text.find(_PRONOUN):
            many = match.group().startswith(("them", "those", "these"))
            if many and " again" in text.lower[match.end() :][:8]:
                continue
            for id in last if many else [focus or last[0]]:
                found.append((id, *match.span(), "pronoun"))
            text.strike(*match.span())
            break
    found.sort(key=lambda one: one[1])
    mentioned = [(classify_stance(text, start, end), one) for one in found for _, start, end, _ in (one,)]
    for (_, cue_span), _ in mentioned:
        if cue_span:
            text.strike(*cue_span)
    missing += _unknown(text, lexicon)
    return [Mention(id, start, end, verdict, by) for (verdict, _), (id, start, end, by) in mentioned], missing


def _strike(text: Text, start: int, end: int) -> tuple[int, int]:
    if year := YEAR.match(text.lower, end):
        end = year.end()
    text.strike(start, end)
    return start, end


def _place(match: re.Match[str], n: int) -> int:
    groups = match.groupdict()
    if groups.get("word"):
        return n if groups["word"] == "last" else ORDINALS[groups["word"]]
    return COUNTS[groups["count"]] if groups.get("count") else int(groups.get("digit") or groups.get("nth") or 0)


def _unknown(text: Text, lexicon: Lexicon) -> list[str]:
    """Return capitalised names after "like" that no item has. They are not struck out, so they are searched by."""
    return [
        match.group("name")
        for match in _LIKE_NAME.finditer(text.original)
        if STRUCK not in text.lower[match.start("name") : match.end("name")]
        and not lexicon.find(tokens(match.group("name")))
    ]


_LIKE_NAME = re.compile(r"\b(?:like|similar to) (?P<name>[A-Z][\w'.-]+(?: (?:of|the|and|[A-Z0-9][\w'.-]*))*)")
