"""Make texts of catalogs and users harmless inside a prompt: still readable, but without control over the prompt."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping

# Characters of special tokens (<|im_start|>, [INST], </s>, <start_of_turn>, <｜User｜>), code fences, headings and quotes, and
# similar characters that a model reads in the same way. Unicode normalisation turns none of the replacements back.
_LOOK_ALIKES = str.maketrans(
    {
        "<": "‹", ">": "›", "≮": "‹", "≯": "›", "[": "(", "]": ")", "{": "(", "}": ")", "|": "/", "\\": "/",
        "`": "'", '"': "'", "“": "'", "”": "'", "„": "'", "«": "'", "»": "'", "▁": "_", "⁅": "(", "⁆": ")",
    }
)  # fmt: skip
_ROLES = re.compile(r"\b(system|user|assistant|human|model|developer|instruction|response)s?\s*:", re.IGNORECASE)
# Tags say nothing about an item, and even the remains of one distract a small model.
_MARKS = re.compile(r"<[^<>\s]{1,40}>|\[/?(?:INST|SYS|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\]")
_RUNS = re.compile(r"([#*=~_'\-])\1+")
_INVISIBLE = frozenset(("Cc", "Cf", "Cs", "Co", "Cn"))


def harmless(text: object, limit: int) -> str:
    """Return `text` on one line of at most `limit` characters, without anything that could end a quotation or begin a role.

    Control, zero-width, bidirectional and unassigned characters and tags (`<|im_end|>`, `<b>`, `[INST]`) are removed. Characters
    of special tokens, code fences and quotes are replaced by similar ones, and so is the colon after the name of a chat role.
    """
    # Shortened first, so that a text of megabytes takes no longer than one page.
    normal = unicodedata.normalize("NFKC", str(text)[: 8 * limit + 64])
    spaced = "".join(" " if char.isspace() else "" if _hidden(char) else char for char in normal)
    plain = _RUNS.sub(r"\1", _MARKS.sub(" ", spaced).translate(_LOOK_ALIKES))
    line = " ".join(_ROLES.sub(r"\1 -", plain).split())
    return line if len(line) <= limit else _cut(line, limit)


def listed(facts: object) -> str:
    """Return facts (a text, a list or a mapping) as text: the values, separated by commas."""
    if isinstance(facts, Mapping):
        return ", ".join(listed(value) for value in facts.values())
    if isinstance(facts, Iterable) and not isinstance(facts, str):
        return ", ".join(listed(value) for value in facts)
    return str(facts)


def _hidden(char: str) -> bool:
    # Variation selectors are marks by category, but can hide whole sentences.
    return (
        unicodedata.category(char) in _INVISIBLE or "\ufe00" <= char <= "\ufe0f" or "\U000e0100" <= char <= "\U000e01ef"
    )


def _cut(line: str, limit: int) -> str:
    """Return at most `limit` characters of the line, ending with a whole word if possible."""
    head = line[: limit - 3]
    whole = head.rpartition(" ")[0] if " " in head[limit // 2 :] else head
    return whole.rstrip() + "..."
