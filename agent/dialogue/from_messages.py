"""Rebuild a conversation from chat messages alone, for callers that store it themselves. No model is called."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from agent.dialogue.nlu.lexicon import Lexicon
from agent.dialogue.nlu.message import Text, replace_surrogates
from agent.dialogue.nlu.rule_parser import parse
from agent.dialogue.nlu.titles import find_titles
from agent.dialogue.state import State
from agent.dialogue.state_tracking import update_state
from store import Catalog

_NUMBERED = re.compile(r"^\s*\d{1,2}\.\s+(?P<title>.+?)(?:\s+\((?P<year>\d{4})\))?(?::\s|\s*$)", re.MULTILINE)
"""An item's line in an answer, as `agent.dialogue.policy` writes it."""
_OFFER = re.compile(r"Without “(?P<words>[^”]+)” there would be")
"""The offer to drop a constraint, as `agent.dialogue.policy` words it."""


def rebuild_state(messages: Sequence[Mapping[str, Any]], catalog: Catalog) -> State:
    """Return the state after these messages (`role` and `content`, as OpenAI's API has them).

    The user's messages are parsed again; the answers tell which items were shown and which question is open.
    """
    state, lexicon = State(), Lexicon.of(catalog)

    def metadata(ids: Sequence[str]) -> list[dict[str, Any]]:
        return [dict(item.metadata) for item in catalog.get(list(ids)).values()]

    for message in messages:
        content = replace_surrogates(_text(message.get("content")))
        if message.get("role") == "user":
            update_state(state, parse(content, state, lexicon, metadata), lexicon)
        elif message.get("role") == "assistant":
            if ids := _find_shown(content, lexicon):
                state.last = ids
                state.shown += [id for id in ids if id not in state.shown]
                state.focus = ids[0] if len(ids) == 1 else None
            _reopen_question(state, content)
        else:
            continue
        state.messages.append({"role": message["role"], "content": content})
    return state


def _reopen_question(state: State, content: str) -> None:
    """Open the question that this answer ended with, and the constraint it offered to drop."""
    state.asked, state.offered = None, None
    if not content.rstrip().endswith("?"):
        return
    state.asked = "relax" if (offer := _OFFER.search(content)) else "asked"
    if offer:
        state.offered = next((c for c in state.constraints if c.words == offer["words"]), None)
    else:
        state.questioned.append("asked")


def _text(content: Any) -> str:
    """Return the text of a message, whose content may be a string or a list of parts."""
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return content if isinstance(content, str) else ""


def _find_shown(content: str, lexicon: Lexicon) -> list[str]:
    """Return the ids of an answer's items: of its numbered lines, else of the titles in it."""
    numbered = [
        lexicon.find_title(m["title"], int(m["year"]) if m["year"] else None) for m in _NUMBERED.finditer(content)
    ]
    found = [id for id in numbered if id] or [id for id, _, _ in find_titles(Text(content), lexicon)]
    return list(dict.fromkeys(found))
