"""Variants of the prompt `interests`, by us and by a model: the line that asks for queries and the draft after it differ, no more.

A wording is text that is put in a fixed place of our template, never a template itself: whoever proposes it, a model that was
talked round by an item's text included, can change what is asked for, and nothing of what is shown or how it is quoted.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import BaseModel

from agent.errors import BadAnswer
from agent.item_text import normalize_title
from agent.llm import connect
from agent.llm.client import Deadline
from agent.profile.schemas import ASKED, N_NAMED, N_QUERIES, Line
from agent.settings import Settings
from eval.comparison.llm_cache import DEADLINE
from prompts import Prompts
from prompts.cleaning import harmless
from store.paths import write_atomically

TEMPLATE = "interests"
LEAST, MOST = 20, 300
"""Characters of a wording."""
MAX_TOKENS = 160
TEMPERATURE = 0.8
"""Proposals are drawn: the one most likely answer would come again and again."""

_SOURCE = """\
{# How queries are asked for was chosen by `evoke tune --prompts`; interests.json beside this file says why. #}
{% block system %}
{% from "_person.j2" import rules %}
{{ rules() }}
{% endblock %}
{% block user %}
{% from "_person.j2" import liked %}
{% from "_answer.j2" import wanted, draft %}
{{ liked(history) }}

{{ wanted(parts | reject("equalto", "queries") | list, n_queries, n_named) -}}
{% if "queries" in parts %}
queries: WORDING
{% endif %}
DRAFT{% endblock %}
"""
_DRAFT = "\nA poor first draft, from counting words; write a better one: {{ draft(history | recurring, parts) }}\n"


@dataclass(frozen=True, slots=True)
class Variant:
    """A way to ask for queries: the wording of their line, and whether a first draft follows it. Without a wording it is the
    template in force, whatever that says."""

    name: str
    wording: str = ""
    draft: bool = True

    @property
    def source(self) -> str:
        """Its template."""
        return _SOURCE.replace("DRAFT", _DRAFT if self.draft else "").replace("WORDING", self.wording)


IN_FORCE = Variant("in force")
_OURS = (
    "8 different search phrases of 3 to 10 words, each describing one kind of thing this person would like next; no titles from "
    "above"
)
_SHORT = "5 search phrases of 2 to 5 words, each naming another kind of thing this person would like next"
_DESCRIBED = (
    "6 descriptions of things this person would choose next, each of 6 to 12 words in a catalog's own language: kind, subject, "
    "setting and mood; no titles"
)
_NEWEST = (
    "6 search phrases of 3 to 10 words: the first three for what goes with the last lines above, the others for what most lines "
    "have in common; no titles"
)
POOL = (
    Variant("as ours, no draft", _OURS, draft=False),
    Variant("short", _SHORT),
    Variant("short, no draft", _SHORT, draft=False),
    Variant("described", _DESCRIBED),
    Variant("described, no draft", _DESCRIBED, draft=False),
    Variant("newest first", _NEWEST),
)
"""Wordings by hand: a weak model's proposals may all be useless."""


@contextmanager
def applied(variant: Variant, settings: Settings) -> Iterator[Settings]:
    """The settings under which this variant is asked; the folder of its template is gone afterwards."""
    if variant is IN_FORCE:
        yield settings
        return
    with TemporaryDirectory() as folder:
        for other in settings.prompts.glob("*.j2") if settings.prompts else ():
            shutil.copy(other, folder)
        (Path(folder) / f"{TEMPLATE}.j2").write_text(variant.source, encoding="utf-8")
        yield settings.model_copy(update={"prompts": Path(folder)})


def task(variant: Variant, settings: Settings) -> str:
    """What the variant tells the model to do, as rendered for nobody. Raises PromptError for templates that cannot be used."""
    with applied(variant, settings) as given:
        shown = Prompts(given.prompts).render(
            TEMPLATE, history=[], parts=["queries"], n_queries=N_QUERIES, n_named=N_NAMED
        )
    return str(shown[-1]["content"])


def fingerprint(variant: Variant, settings: Settings) -> str:
    """The variant's fingerprint, as traces show it."""
    with applied(variant, settings) as given:
        return Prompts(given.prompts).fingerprint(TEMPLATE, "refresh")


def put(variant: Variant, folder: Path, evidence: Mapping[str, Any]) -> None:
    """Write the variant's template into a folder of prompts, its evidence beside it with the template that was there before."""
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / f"{TEMPLATE}.j2"
    replaced = place.read_text(encoding="utf-8") if place.is_file() else None
    whole = json.dumps({**evidence, "replaced": replaced}, indent=1, ensure_ascii=False) + "\n"
    write_atomically(place.with_suffix(".json"), whole.encode())
    write_atomically(place, variant.source.encode())


def refusal(wording: str, taken: Sequence[str], titles: Sequence[str]) -> str | None:
    """Why a proposed wording is not tried; None where it is. `titles` are those that whoever wrote it was shown."""
    if not LEAST <= len(wording) <= MOST:
        return f"it has {len(wording)} characters; {LEAST} to {MOST} are allowed"
    if harmless(wording, MOST) != wording or set(wording) & set("{}%#"):
        return "it holds marks of templates, quotations or chats"
    if normalize_title(wording) in {normalize_title(other) for other in taken}:
        return "it was there before"
    words = f" {normalize_title(wording)} "
    if any(len(normalize_title(title)) >= 5 and f" {normalize_title(title)} " in words for title in titles):
        return "it names an item of the cases that it was shown"
    return None


class Proposal(BaseModel):
    """The form of a proposer's answer."""

    model_config = ASKED
    instruction: Line(2 * MOST)  # type: ignore[valid-type]


async def proposals(
    settings: Settings, shown: Mapping[str, Any], tried: Sequence[str], titles: Sequence[str], n: int, seed: int
) -> list[dict[str, str | None]]:
    """What the model of these settings proposes, in `n` answers: each with the "wording" and why it is "refused" (None: it is not).

    `shown` are the other variables of the prompt `propose`. Raises ModelError where the model does not answer.
    """
    llm = await connect.connect_async(settings)
    made: list[dict[str, str | None]] = []
    prompts = Prompts(settings.prompts)
    try:
        for drawn in range(n):
            taken = [wording for wording in (*tried, *(str(each["wording"]) for each in made)) if wording]
            messages = prompts.render("propose", **shown, tried=taken[-8:])
            try:
                reply = await llm.structured(
                    messages, Proposal, max_tokens=MAX_TOKENS, deadline=Deadline(DEADLINE), temperature=TEMPERATURE,
                    seed=seed + drawn,
                )  # fmt: skip
            except BadAnswer as error:
                made.append({"wording": "", "refused": error.reason})
                continue
            wording = " ".join(str(reply.value.instruction).replace('"', "'").split())
            made.append({"wording": wording, "refused": refusal(wording, taken, titles)})
    finally:
        await llm.close()
    return made
