"""Variants of the prompt `interests`, written by us or proposed by a model. They differ only in the line that asks for queries,
and in the draft after it.

A wording is text in a fixed place of our template, never a template itself. So a proposal can change what is asked for, but not
what is shown to the model or how it is quoted, even if an item's text misleads the model that proposes it.
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

from agent.errors import BadAnswer
from agent.item_text import normalize_title
from agent.llm import connect
from agent.llm.client import Deadline
from agent.profile.schemas import N_NAMED, N_QUERIES, Answer, Line
from agent.settings import Settings
from eval.comparison.llm_cache import DEADLINE
from prompts import Prompts
from prompts.cleaning import harmless
from store.paths import write_atomically

TEMPLATE = "interests"
LEAST, MOST = 20, 300
"""The lengths that a wording may have, in characters."""
MAX_TOKENS = 160
TEMPERATURE = 0.8
"""Proposals are sampled, because the most likely answer would always be the same."""

_SOURCE = """\
{# `evoke tune --prompts` chose how queries are asked for; interests.json in this folder says why. #}
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
    """A way to ask for queries: the wording of their line, and whether a first draft follows it. Without a wording, it is the
    template that is used at present."""

    name: str
    wording: str = ""
    draft: bool = True

    @property
    def source(self) -> str:
        """The template of this variant."""
        return _SOURCE.replace("DRAFT", _DRAFT if self.draft else "").replace("WORDING", self.wording)


PRESENT = Variant("present")
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
"""Wordings written by hand, because all proposals of a weak model may be useless."""


@contextmanager
def apply_variant(variant: Variant, settings: Settings) -> Iterator[Settings]:
    """Give the settings with a folder of prompts that has this variant's template. The folder is removed afterwards."""
    if variant is PRESENT:
        yield settings
        return
    with TemporaryDirectory() as folder:
        for other in settings.prompts.glob("*.j2") if settings.prompts else ():
            shutil.copy(other, folder)
        (Path(folder) / f"{TEMPLATE}.j2").write_text(variant.source, encoding="utf-8")
        yield settings.model_copy(update={"prompts": Path(folder)})


def render_task(variant: Variant, settings: Settings) -> str:
    """Return the variant's instructions, rendered for an empty history. Raises PromptError for a template that cannot be used."""
    with apply_variant(variant, settings) as given:
        shown = Prompts(given.prompts).render(
            TEMPLATE, history=[], parts=["queries"], n_queries=N_QUERIES, n_named=N_NAMED
        )
    return str(shown[-1]["content"])


def fingerprint(variant: Variant, settings: Settings) -> str:
    """Return the fingerprint of the variant's template, as traces show it."""
    with apply_variant(variant, settings) as given:
        return Prompts(given.prompts).fingerprint(TEMPLATE, "refresh")


def write_variant(variant: Variant, folder: Path, evidence: Mapping[str, Any]) -> None:
    """Write the variant's template into a folder of prompts, with the evidence and the former template in a JSON file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{TEMPLATE}.j2"
    replaced = file.read_text(encoding="utf-8") if file.is_file() else None
    record = json.dumps({**evidence, "replaced": replaced}, indent=1, ensure_ascii=False) + "\n"
    write_atomically(file.with_suffix(".json"), record.encode())
    write_atomically(file, variant.source.encode())


def reason_to_refuse(wording: str, taken: Sequence[str], titles: Sequence[str]) -> str | None:
    """Return why a proposed wording is not tried, None if it is tried. `titles` were shown to the model that proposed it."""
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


class Proposal(Answer):
    """The form of the answer of a model that proposes a wording."""

    instruction: Line(2 * MOST)  # type: ignore[valid-type]


async def propose_wordings(
    settings: Settings, shown: Mapping[str, Any], tried: Sequence[str], titles: Sequence[str], n: int, seed: int
) -> list[dict[str, str | None]]:
    """Ask a model for n new wordings; return the "wording" of each, and why it is "refused" (None if it is not).

    Args:
        settings: which model.
        shown: the variables of the prompt `propose`, without `tried`.
        tried: the wordings that were tried before.
        titles: the titles that the model is shown.
        n: how many wordings.
        seed: the seed of the first answer.

    Raises ModelError if the model does not answer.
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
            made.append({"wording": wording, "refused": reason_to_refuse(wording, taken, titles)})
    finally:
        await llm.close()
    return made
