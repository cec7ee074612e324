"""A conversation rebuilt from chat messages alone, for callers that keep it themselves; no model is called."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from agent.dialogue.nlu.lexicon import Lexicon
from agent.dialogue.nlu.message import Text, readable
from agent.dialogue.nlu.rule_parser import parse
from agent.dialogue.nlu.titles import titled
from agent.dialogue.state import State
from agent.dialogue.state_tracking import follow
from store import Catalog

_NUMBERED = re.compile(r"^\s*\d{1,2}\.\s+(?P<title>.+?)(?:\s+\((?P<year>\d{4})\))?(?::\s|\s*$)", re.MULTILINE)

_OFFER = re.compile(r"Without “(?P<words>[^”]+)” there would be")


def replayed(messages: Sequence[Mapping[str, Any]], catalog: Catalog) -> State:
    """The state that these messages lead to: constraints, what was liked and spoken of, and what answers of ours have shown."""
    state, lexicon = State(), Lexicon.of(catalog)

    def metadata(ids: Sequence[str]) -> list[dict[str, Any]]:
        return [dict(item.metadata) for item in catalog.get(list(ids)).values()]

    for message in messages:
        content = readable(words(message.get("content")))
        if message.get("role") == "user":
            follow(state, parse(content, state, lexicon, metadata), lexicon)
        elif message.get("role") == "assistant":
            if shown := _shown(content, lexicon):
                state.last = shown
                state.shown += [id for id in shown if id not in state.shown]
                state.focus = shown[0] if len(shown) == 1 else None
            _reopen(state, content)
        else:
            continue
        state.messages.append({"role": message["role"], "content": content})
    return state


def _reopen(state: State, content: str) -> None:
    """The question that an answer of ours ended with is open again, and what it offered to drop is on offer."""
    state.asked, state.offered = None, None
    if not content.rstrip().endswith("?"):
        return
    state.asked = "relax" if (offer := _OFFER.search(content)) else "asked"
    if offer:
        state.offered = next((c for c in state.constraints if c.words == offer["words"]), None)
    else:
        state.questioned.append("asked")


def words(content: Any) -> str:
    """The text of a message, which may come in parts."""
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return content if isinstance(content, str) else ""


def _shown(content: str, lexicon: Lexicon) -> list[str]:
    """The items of an answer: its numbered lines, or else the titles written in it."""
    numbered = [lexicon.titled(m["title"], int(m["year"]) if m["year"] else None) for m in _NUMBERED.finditer(content)]
    found = [id for id in numbered if id] or [id for id, _, _ in titled(Text(content), lexicon)]
    return list(dict.fromkeys(found))
