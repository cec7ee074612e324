"""Results as tables for a person at a terminal."""

from __future__ import annotations

import unicodedata
from dataclasses import asdict
from typing import Any

from rich import markup
from rich.console import Console
from rich.table import Table

from agent.results import Interests, Profile, Result
from store import Catalog
from store.index import Indexed

_JOINERS = "\u200c\u200d"  # some scripts and emoji are written with them, and they move nothing in a terminal


def result(found: Result) -> None:
    """Print profile, queries, items with scores, channels and explanations, and what did not go as meant."""
    out = Console(highlight=False)
    if found.profile:
        _profile(out, found.profile)
    if found.queries:
        out.print("[bold]Queries[/]  " + escape(" | ".join(found.queries)))
    if found.named:
        out.print(
            "[bold]Named[/]    " + escape(", ".join(n.title + ("" if n.id else " (not here)") for n in found.named))
        )
    table = Table("", "Item", "Score", "Channels", "Why", box=None, padding=(0, 1), header_style="bold")
    for r in found:
        channels = escape(", ".join(f"{channel} {rank}" for channel, rank in r.channels.items()))
        table.add_row(
            str(r.rank), escape(f"{r.item.title} [{r.item.id}]"), f"{r.score:.2f}", channels, escape(r.explanation)
        )
    out.print(table)
    stages = ", ".join(
        f"{s.name} {s.ms:.0f} ms"
        + (f" ({s.tokens_in}+{s.tokens_out} tokens)" if s.tokens_out else "")
        + (" cached" if s.cached else "")
        for s in found.trace.stages
    )
    err = Console(stderr=True, highlight=False)
    err.print(f"[dim]{escape(stages)}[/]")
    for stage in found.trace.stages:
        for note in stage.notes:
            err.print(f"[dim]{stage.name}: {escape(note)}[/]")
        if stage.degraded:
            err.print(f"[yellow]{stage.name} went on with less: {escape(stage.degraded)}[/]")


def model(found: dict[str, Any]) -> None:
    """Print what `agent.llm.connect.check` found: the model, whether it answers, and each trained adapter."""
    out = Console(highlight=False, soft_wrap=True)
    out.print(escape(f"{found['model']} at {found['where']}: {'answers' if found['answers'] else found['reason']}"))
    for adapter in found["adapters"]:
        can = "answers" if adapter["usable"] else adapter["reason"]
        out.print(escape(f"{adapter['task']} adapter ({adapter['name']}): {can}"))
    if found["vllm"]:
        out.print(
            escape(f"served by: {found['vllm']} (MODEL: the weights they were trained on, as a Hugging Face folder)")
        )


def interests(found: Interests, catalog: Catalog) -> None:
    """Print a profile with the titles of its evidence, the queries and the named items."""
    out = Console(highlight=False)
    if found.profile:
        titles = {
            i: item.title for i, item in catalog.get([e for x in found.profile.interests for e in x.evidence]).items()
        }
        _profile(out, found.profile, titles)
    out.print("[bold]Queries[/]  " + escape(" | ".join(found.queries)))
    if found.named:
        out.print("[bold]Named[/]    " + escape(", ".join(n.title for n in found.named)))


def indexed(done: Indexed) -> None:
    """Print what `evoke index` did, and on stderr what is worth a second look."""
    items, events = done.items, done.events
    out, err = Console(highlight=False), Console(stderr=True, highlight=False)
    out.print(
        f"items: {items.added} added, {items.updated} changed, {items.unchanged} unchanged, {done.pruned} pruned; "
        f"events: {events.added} added, {events.duplicates} already there; store {escape(str(done.store))}",
        soft_wrap=True,
    )
    if items.truncated:
        err.print(
            f"evoke: {items.truncated} texts are longer than the encoder reads; their ends do not count in vectors"
        )
    if done.gone and not done.pruned:
        err.print(
            f"evoke: {done.gone} items of the store are gone from the file; --prune removes them once no item's row is skipped"
            if done.skipped_items
            else f"evoke: {done.gone} items of the store are gone from the file; --prune removes them"
        )
    if events.future:
        err.print(f"evoke: {events.future} events lie in the future by this machine's clock; they are kept")
    for reason, count in done.problems.counts.most_common():
        cases = "; ".join(done.problems.cases[reason])
        err.print(f"evoke: {count} rows skipped: {escape(reason)}, first {escape(cases)}", soft_wrap=True)


def indexed_json(done: Indexed) -> dict[str, Any]:
    """What `evoke index --json` prints."""
    return {
        "store": str(done.store),
        "items": asdict(done.items),
        "events": asdict(done.events),
        "gone": done.gone,
        "pruned": done.pruned,
        "skipped": done.problems.skipped,
        "problems": dict(done.problems.counts),
        "cases": done.problems.cases,
    }


def _profile(out: Console, profile: Profile, titles: dict[str, str] | None = None) -> None:
    out.print("[bold]Profile[/]  " + escape(profile.summary))
    for interest in profile.interests:
        evidence = ", ".join((titles or {}).get(e, e) for e in interest.evidence)
        out.print(f"         {interest.weight:.2f} {escape(interest.name)} [dim]({escape(evidence)})[/]")
    if profile.avoid:
        out.print("[bold]Avoids[/]   " + escape(", ".join(profile.avoid)))


def inert(text: str) -> str:
    """`text` without what a terminal obeys: control characters but for line ends, and marks that turn the direction of writing."""
    return "".join(c for c in text if c == "\n" or c in _JOINERS or unicodedata.category(c) not in ("Cc", "Cf", "Cs"))


def escape(text: str) -> str:
    """`text` for a rich console, on one line: nothing in it is markup, and nothing moves the cursor."""
    return markup.escape(inert(text).replace("\n", " "))
