"""Find titles in a message: exact ones, and misspelt ones after a cue. Not every word that is a title somewhere is meant as one."""

from __future__ import annotations

import re
from collections.abc import Sequence

from agent.dialogue.nlu.lexicon import Lexicon, tokens
from agent.dialogue.nlu.message import STRUCK, Text, cue
from agent.dialogue.nlu.sentiment import CUES

LONGEST = 9
"""Most words of a title."""
TRIES = 3
"""Most attempts at a misspelt title after each cue."""
WEAK = frozenset(
    "a an the it its he her him his she us we you me my i up one two this that these those them they others other more less new old"
    " first second third last next best good great big little who what when where why how all about out go home love life man"
    " woman men women people thing things party end day night time way is are was be no not yes ok please thanks some any".split()
)
"""Words that are a title only if they are capitalised like one."""

YEAR = re.compile(r" ?\(?\b((?:1[89]|20)\d\d)\b\)?")


def find_titles(text: Text, lexicon: Lexicon) -> list[tuple[str, int, int]]:
    """Return (id, start, end) of each title, the longest first. Short and common ones need a cue or capitals."""
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
                and not _is_part_of_value(words, i, n, lexicon)
                and _is_meant(text, key, start, end, lexicon)
            ):
                id = lexicon.find_title(text.lower[start:end], year_after(text, end))
                if id:
                    found.append((id, start, end))
                    used |= set(range(i, i + n))
    if not found:
        found = _find_misspelt(text, lexicon)
    return found


def _is_part_of_value(words: Sequence[tuple[str, int, int]], i: int, n: int, lexicon: Lexicon) -> bool:
    """Return whether these words are part of a longer field value: Akira, of Akira Kurosawa."""
    longer = ((i - before, i + n + after) for before in range(3) for after in range(3) if 0 < before + after <= i + 3)
    return any(
        start >= 0 and lexicon.has([word for word, _, _ in words[start:end]])
        for start, end in longer
        if end <= len(words)
    )


def _is_meant(text: Text, key: tuple[str, ...], start: int, end: int, lexicon: Lexicon) -> bool:
    content = [word for word in key if word not in WEAK]
    if year_after(text, end) and content:
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


def _find_misspelt(text: Text, lexicon: Lexicon) -> list[tuple[str, int, int]]:
    """Return the longest words after a cue that are close to a title. Each attempt compares all titles, so few are made."""
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


def year_after(text: Text, end: int) -> int | None:
    """Return the year that follows a title, or None."""
    year = YEAR.match(text.lower, end)
    return int(year.group(1)) if year else None
