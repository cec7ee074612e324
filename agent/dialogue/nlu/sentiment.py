"""Classify the user's stance to a mentioned item by the words around it: praise, blame, or a wish for similar items."""

from __future__ import annotations

import re
from typing import Literal

from agent.dialogue.nlu.message import Text, cue

Stance = Literal["like", "dislike", "seen", "seed", "away", "none"]

_I = r"\b(?:i|we|i've|we've|she|he|they)(?: (?:really|quite|do|also|both|always|absolutely|particularly|already|still))* "
CUES: dict[Stance, re.Pattern[str]] = {  # the first that matches counts
    "dislike": cue(
        r"\b(?:hated?|hates|dislike[ds]?|can't stand|cannot stand|couldn't stand|(?:did(?:n't| not)|do(?:n't| "
        r"not)|never|not) (?:really )?"
        r"(?:like|love|enjoy|care for|want|into)|wasn't into|not (?:interested in|a fan of|keen on|for me)|bored "
        r"by|tired of|sick of|"
        r"no more|skip|remove|drop|down with|thumbs down(?: for| on)?)\b"
    ),
    "seen": cue(r"\b(?:seen|watched|saw|already (?:know|read|have|own|own)|i know|i've read|have read|finished|played|own)\b"),
    "away": cue(
        r"\b(?:not (?:like|similar to|another|as)|nothing like|unlike|less like|anything but|other than|different from|not)\b"
    ),
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


def classify_stance(text: Text, start: int, end: int) -> tuple[Stance, tuple[int, int] | None]:
    """Return the user's stance to the item at this place, and the span of the words that state it, or None."""
    if found := _PRAISE.match(text.lower, end):
        return "like", found.span()
    if found := _BLAME.match(text.lower, end):
        return "dislike", found.span()
    governing = ((verdict, text.cued(start, pattern)) for verdict, pattern in CUES.items())
    return next(((verdict, span) for verdict, span in governing if span), ("none", None))
