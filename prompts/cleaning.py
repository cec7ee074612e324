"""Making text from catalogs and people harmless inside a prompt: what it says stays readable, what it could do is gone."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping

# What chat templates build special tokens from (<|im_start|>, [INST], </s>, <start_of_turn>, <｜User｜>), what fences, headings
# and quotes are made of, and look-alikes that a model reads as well. None of them turns back under Unicode normalisation.
_LOOK_ALIKES = str.maketrans(
    {
        "<": "‹", ">": "›", "≮": "‹", "≯": "›", "[": "(", "]": ")", "{": "(", "}": ")", "|": "/", "\\": "/",
        "`": "'", '"': "'", "“": "'", "”": "'", "„": "'", "«": "'", "»": "'", "▁": "_", "⁅": "(", "⁆": ")",
    }
)  # fmt: skip
_ROLES = re.compile(r"\b(system|user|assistant|human|model|developer|instruction|response)s?\s*:", re.IGNORECASE)
# Marks of a template or a page tell nothing of an item, and what is left of one still draws a small model's eye.
_MARKS = re.compile(r"<[^<>\s]{1,40}>|\[/?(?:INST|SYS|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\]")
_RUNS = re.compile(r"([#*=~_'\-])\1+")
_INVISIBLE = frozenset(("Cc", "Cf", "Cs", "Co", "Cn"))


def harmless(text: object, limit: int) -> str:
    """`text` on one line of at most `limit` characters, without anything that could end a quotation or open a role.

    Control, zero-width, bidirectional and unassigned characters are removed, and marks (`<|im_end|>`, `<b>`, `[INST]`);
    characters that special tokens, fences and quotes consist of become look-alikes; the colon after the name of a chat role
    goes.
    """
    # Bounded before the work, too: a text of megabytes costs no more than one of a page.
    normal = unicodedata.normalize("NFKC", str(text)[: 8 * limit + 64])
    spaced = "".join(" " if char.isspace() else "" if _hidden(char) else char for char in normal)
    plain = _RUNS.sub(r"\1", _MARKS.sub(" ", spaced).translate(_LOOK_ALIKES))
    line = " ".join(_ROLES.sub(r"\1 -", plain).split())
    return line if len(line) <= limit else _cut(line, limit)


def listed(facts: object) -> str:
    """Facts given as text, a list or a mapping, in words: values joined by commas."""
    if isinstance(facts, Mapping):
        return ", ".join(listed(value) for value in facts.values())
    if isinstance(facts, Iterable) and not isinstance(facts, str):
        return ", ".join(listed(value) for value in facts)
    return str(facts)


def _hidden(char: str) -> bool:
    # Variation selectors are marks by category, yet they can smuggle whole sentences unseen.
    return (
        unicodedata.category(char) in _INVISIBLE or "\ufe00" <= char <= "\ufe0f" or "\U000e0100" <= char <= "\U000e01ef"
    )


def _cut(line: str, limit: int) -> str:
    """At most `limit` characters, ending with a whole word where there is one."""
    head = line[: limit - 3]
    whole = head.rpartition(" ")[0] if " " in head[limit // 2 :] else head
    return whole.rstrip() + "..."
