"""The text of a message. Each parser strikes out the part it understood, so that no later parser reads it differently."""

from __future__ import annotations

import re
from collections.abc import Iterator

STRUCK = "¤"
"""Replaces each struck-out character. Phrases do not continue across it; a cue before it still applies after it."""

FILLERS = (
    "a|an|the|any|some|more|too|so|very|really|that|those|this|these|all|of|in|from|by|with|to|for|or|and|nor|want|see|watch|read|"
    "like|liked|it|is|be|are|was|were|things?|stuff|anything|something|ones?|movies?|films?|books?|songs?|games?|shows?|please|"
    "much|kind|sort|type|other|no|not|me|give|show|you|have|has|had|been|being|made|set"
)
"""Words that may stand between a cue and the words it applies to."""
NO = (
    r"no|not|without|except|excluding|minus|never|avoid|skip|nothing|none|neither|nor|isn't|aren't|wasn't|don't|doesn't|didn't|"
    r"dont|didnt|isnt|no more|anything but|other than|hate|hates|hated|dislike|disliked|can't stand|cannot stand|sick of|tired of|"
    r"fed up with|enough"
)
_HALVES = re.compile(r"[\ud800-\udfff]")
_NO = re.compile(rf"\b(?:{NO})\b")
_NEGATED = re.compile(rf"\b(?:{NO})\b(?:[\s,/&{STRUCK}'-]|\b(?:{FILLERS})\b)*$")
_ENDS = re.compile(r"[.;:!?\n]|\b(?:but|instead|rather|just|only|prefer|then|though|because)\b")
_NOT_ONLY = re.compile(r"\bnot (?:only|just|necessarily)\b")
_ALL_BUT = re.compile(r"\b(?:anything|everything|all) but\b")


def replace_surrogates(message: str) -> str:
    """Return the message with `\ufffd` in place of unpaired surrogates, which cannot be stored. Python makes them of bytes that
    are not UTF-8."""
    return _HALVES.sub("\ufffd", message)


class Text:
    """A message. `lower` is `original` in lower case, character by character, with the understood parts struck out."""

    def __init__(self, message: str) -> None:
        self.original = message.replace("’", "'")
        self.lower = "".join(c.lower() if len(c.lower()) == 1 else c for c in self.original)

    def find(self, pattern: re.Pattern[str]) -> Iterator[re.Match[str]]:
        """Yield the matches of a pattern; each may be struck out before the next is searched for."""
        at = 0
        while found := pattern.search(self.lower, at):
            yield found
            at = max(found.end(), at + 1)

    def strike(self, start: int, end: int) -> None:
        """Strike out the characters from `start` to `end`."""
        self.lower = self.lower[:start] + STRUCK * (end - start) + self.lower[end:]

    def take(self, pattern: re.Pattern[str]) -> bool:
        """Strike out all matches of a pattern, and return whether there was one."""
        found = list(self.find(pattern))
        for one in found:
            self.strike(*one.span())
        return bool(found)

    def before(self, start: int) -> str:
        """Return the text before a place, back to the last break of the sentence."""
        clause = _NOT_ONLY.sub(lambda found: " " * len(found.group()), self.lower[:start])
        clause = _ALL_BUT.sub(lambda found: "not".ljust(len(found.group())), clause)
        ends = [end.end() for end in _ENDS.finditer(clause)]
        return clause[ends[-1] :] if ends else clause

    def negated(self, start: int) -> bool:
        """Return whether the words at this place are negated.

        A negation crosses a comma only within a list: "no war, horror or crime", but not "no war, something funny".
        """
        clause = self.before(start)
        nearest = (_NEGATED.match(clause, cue.start()) for cue in reversed(list(_NO.finditer(clause))))
        found = next((one for one in nearest if one), None)
        if not found or "," not in found.group():
            return bool(found)
        rest = _ENDS.split(self.lower[start:], maxsplit=1)[0]
        return bool(re.search(r"\b(?:or|nor|and)\b", found.group() + rest))

    def cued(self, start: int, cue: re.Pattern[str]) -> tuple[int, int] | None:
        """Return the span of the cue (a pattern of `cue`) that applies to this place, or None.

        Fillers and struck-out parts may stand between.
        """
        clause = self.before(start)
        found = cue.search(clause)
        offset = start - len(clause)
        return (offset + found.start(), offset + found.end()) if found else None


def cue(words: str, fillers: str = FILLERS) -> re.Pattern[str]:
    """Return the pattern of a cue, for `Text.cued`."""
    return re.compile(rf"(?:{words})(?:[\s,/&{STRUCK}'\"-]|\b(?:{fillers})\b)*$")
