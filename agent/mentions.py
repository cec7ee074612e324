"""The items a message speaks of, by title, by number in the list shown last, or as "it"; and what is said of each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from agent.lexicon import Lexicon, tokens
from agent.scan import STRUCK, Text, cue

Stance = Literal["like", "dislike", "seen", "seed", "away", "none"]

ORDINALS = {
    "first": 1, "second": 2, "third": 3, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8, "ninth": 9, "tenth": 10,
}  # fmt: skip
COUNTS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}
LONGEST = 9
"""Words of a title that is looked for."""
TRIES = 3
"""Stretches of words that are taken for a misspelt title."""
WEAK = frozenset(
    "a an the it its he her him his she us we you me my i up one two this that these those them they others other more less new old"
    " first second third last next best good great big little who what when where why how all about out go home love life man"
    " woman men women people thing things party end day night time way is are was be no not yes ok please thanks some any".split()
)
"""Words that make no title by themselves, unless they are written like one."""

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
_YEAR = re.compile(r" ?\(?\b((?:1[89]|20)\d\d)\b\)?")

_I = r"\b(?:i|we|i've|we've|she|he|they)(?: (?:really|quite|do|also|both|always|absolutely|particularly|already|still))* "
CUES: dict[Stance, re.Pattern[str]] = {
    "away": cue(
        r"\b(?:not (?:like|similar to|another|as)|nothing like|unlike|less like|anything but|other than|different from|not)\b"
    ),
    "dislike": cue(
        r"\b(?:hated?|hates|dislike[ds]?|can't stand|cannot stand|couldn't stand|(?:did(?:n't| not)|do(?:n't| "
        r"not)|never|not) (?:really )?"
        r"(?:like|love|enjoy|care for|want|into)|wasn't into|not (?:interested in|a fan of|keen on|for me)|bored "
        r"by|tired of|sick of|"
        r"no more|skip|remove|drop|down with|thumbs down(?: for| on)?)\b"
    ),
    "seen": cue(r"\b(?:seen|watched|saw|already (?:know|read|have|own|own)|i know|i've read|have read|finished|played|own)\b"),
    "like": cue(
        rf"(?:\b(?:loved?|loves|adored?|enjoy(?:ed)?|fan of|favou?rites?(?: \w+)? (?:is|are|include)|thumbs "
        rf"up(?: for| on| to)?|great choice)\b|"
        rf"{_I}liked?\b|^\W*liked\b)"
    ),
    "seed": cue(
        r"\b(?:like|similar to|such as|in the (?:vein|style|spirit|mood) of|along the lines of|reminiscent of|"
        r"close to|more of|"
        r"same as|resembl\w+|reminds? me of|remind me of|similar|comparable to|as)\b"
    ),
}  # fmt: skip
_PRAISE = re.compile(
    r"\s*(?:is|was|are|were|looks?|sounds?|seems?)\s+(?:really |very |so |quite |just )?(?:great|good|perfect|"
    r"lovely|excellent|amazing|brilliant|wonderful|interesting|fun|nice|awesome)\b"
)
_BLAME = re.compile(
    r"\s*(?:is|was|are|were|looks?|sounds?|seems?)\s+(?:really |very |so |quite |just |a bit |too )*(?:bad|"
    r"boring|awful|terrible|dull|horrible|stupid|"
    r"not (?:for me|my thing|good|interesting)|silly|rubbish|crap)\b"
)


@dataclass(frozen=True, slots=True)
class Mention:
    """An item that is spoken of: where in the message, and how the speaker stands to it. `by`: title, number or pronoun."""

    id: str
    start: int
    end: int
    stance: Stance
    by: Literal["title", "number", "pronoun"]


def mentions(text: Text, lexicon: Lexicon, last: Sequence[str], focus: str | None) -> tuple[list[Mention], list[str]]:
    """The items spoken of, in the order of the message, each struck out of it; and numbers or titles that are not there."""
    found: list[tuple[str, int, int, Literal["title", "number", "pronoun"]]] = []
    missing: list[str] = []
    for quoted in text.find(_QUOTED):
        title = next(g for g in quoted.groups() if g)
        if id := lexicon.titled(title, _year_after(text, quoted.end())) or lexicon.ground(title):
            found.append((id, *_strike(text, quoted.start(), quoted.end()), "title"))
        elif len(title) > 3:
            missing.append(f'"{title}"')
    found += [(id, *_strike(text, start, end), "title") for id, start, end in titled(text, lexicon)]
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
    told = [(_stance(text, start, end), one) for one in found for _, start, end, _ in (one,)]
    for (_, cue_span), _ in told:
        if cue_span:
            text.strike(*cue_span)
    missing += _unknown(text, lexicon)
    return [Mention(id, start, end, stance, by) for (stance, _), (id, start, end, by) in told], missing


def _strike(text: Text, start: int, end: int) -> tuple[int, int]:
    if year := _YEAR.match(text.lower, end):
        end = year.end()
    text.strike(start, end)
    return start, end


def _place(match: re.Match[str], n: int) -> int:
    groups = match.groupdict()
    if groups.get("word"):
        return n if groups["word"] == "last" else ORDINALS[groups["word"]]
    return COUNTS[groups["count"]] if groups.get("count") else int(groups.get("digit") or groups.get("nth") or 0)


def _year_after(text: Text, end: int) -> int | None:
    year = _YEAR.match(text.lower, end)
    return int(year.group(1)) if year else None


def titled(text: Text, lexicon: Lexicon) -> list[tuple[str, int, int]]:
    """Titles written out, the longest first; short and everyday ones count only where a cue or their capitals speak for them."""
    words = [(m.group(), m.start(), m.end()) for m in re.finditer(r"[^\W_]+(?:'[^\W_]+)*", text.lower)]
    found: list[tuple[str, int, int]] = []
    used: set[int] = set()
    for n in range(min(LONGEST, len(words)), 0, -1):
        for i in range(len(words) - n + 1):
            if used & set(range(i, i + n)):
                continue
            start, end = words[i][1], words[i + n - 1][2]
            key = tokens(text.lower[start:end])
            rows = lexicon.titles.get(key)
            if (
                rows
                and STRUCK not in text.lower[start:end]
                and not _in_a_value(words, i, n, lexicon)
                and _meant(text, key, start, end, lexicon)
            ):
                id = lexicon.titled(text.lower[start:end], _year_after(text, end))
                if id:
                    found.append((id, start, end))
                    used |= set(range(i, i + n))
    if not found:
        found = _nearly(text, lexicon)
    return found


def _in_a_value(words: Sequence[tuple[str, int, int]], i: int, n: int, lexicon: Lexicon) -> bool:
    """Whether these words are a part of a longer name that is a value: Akira, of Akira Kurosawa."""
    longer = ((i - before, i + n + after) for before in range(3) for after in range(3) if 0 < before + after <= i + 3)
    return any(
        start >= 0 and lexicon.has([word for word, _, _ in words[start:end]])
        for start, end in longer
        if end <= len(words)
    )


def _meant(text: Text, key: tuple[str, ...], start: int, end: int, lexicon: Lexicon) -> bool:
    content = [word for word in key if word not in WEAK]
    if _year_after(text, end) and content:
        return True
    if len(content) > 1 and not lexicon.find(key):
        return True
    written = re.findall(r"[^\W_]+", text.original[start:end])
    capitals = all(
        w[0].isupper() or w[0].isdigit() or w.lower() in ("of", "the", "and", "in", "a", "on", "to") for w in written
    )
    opens = not text.original[:start].strip() or text.original[:start].rstrip()[-1] in ".!?"
    shouted = text.original.isupper()
    cued = any(text.cued(start, pattern) for pattern in (*CUES.values(), _ASKED))
    listed = re.match(r"\W{0,2} ?(?:or|and|vs\.?|versus|is|was|\?|$)(?!\w)", text.lower[end:])
    if opens and listed and capitals and content and not shouted:
        return True
    if not content:
        return capitals and not opens and not shouted and written[0].lower() != "i"
    if lexicon.find(key):
        return capitals and not opens and not shouted and cued
    return (
        capitals and not shouted and (not opens or len(written) == len(tokens(text.original)) or len(written) > 1)
    ) or (cued and not key[0].isdigit())


_ASKED = cue(
    r"\b(?:compare|versus|vs\.?|than|about|why|directed|made|explain|between|is|was|in|and|or|of|recommend)",
    fillers="the|a",
)


def _nearly(text: Text, lexicon: Lexicon) -> list[tuple[str, int, int]]:
    """A title written about so, right after a cue: the longest stretch that grounds. A try looks at every title: few are made."""
    for pattern in CUES.values():
        for match in re.finditer(pattern.pattern.removesuffix("$"), text.lower):
            stretch = _STRETCH.match(text.lower, match.end())
            words = list(re.finditer(r"\S+", stretch.group()))[:6] if stretch else []
            for n in range(len(words), max(len(words) - TRIES, 0), -1):
                piece = text.lower[match.end() : match.end() + words[n - 1].end()]
                if lexicon.find(tokens(piece)):
                    break
                if len(piece) < 5 or all(w in WEAK for w in tokens(piece)):
                    continue
                if id := lexicon.ground(piece):
                    return [(id, match.end(), match.end() + len(piece))]
    return []


_STRETCH = re.compile(rf"(?:(?!\b(?:but|and|with|from|in|that|which|only|just|please|or)\b)[^.,;:!?\n{STRUCK}])+")


def _stance(text: Text, start: int, end: int) -> tuple[Stance, tuple[int, int] | None]:
    """How the speaker stands to the item at this place, and where the words that say so are."""
    for verdict, pattern in (("like", _PRAISE), ("dislike", _BLAME)):
        if found := pattern.match(text.lower, end):
            return verdict, found.span()  # type: ignore[return-value]
    for stance in ("dislike", "seen", "away", "like", "seed"):
        if span := text.cued(start, CUES[stance]):
            return stance, span
    return "none", None


def _unknown(text: Text, lexicon: Lexicon) -> list[str]:
    """Names with capitals after "like" that no item has; they stay, to be searched by."""
    return [
        match.group("name")
        for match in _LIKE_NAME.finditer(text.original)
        if STRUCK not in text.lower[match.start("name") : match.end("name")]
        and not lexicon.find(tokens(match.group("name")))
    ]


_LIKE_NAME = re.compile(r"\b(?:like|similar to) (?P<name>[A-Z][\w'.-]+(?: (?:of|the|and|[A-Z0-9][\w'.-]*))*)")
