"""Print results as tables for people."""

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

_JOINERS = "\u200c\u200d"  # needed in some scripts and emoji, and harmless in a terminal


def print_result(found: Result) -> None:
    """Print profile, queries and items; on stderr the stages with their time, notes, and the reasons for degraded ones."""
    out = Console(highlight=False)
    if found.profile:
        _print_profile(out, found.profile)
    if found.queries:
        out.print("[bold]Queries[/]  " + escape(" | ".join(found.queries)))
    if found.named:
        out.print(
            "[bold]Named[/]    "
            + escape(", ".join(n.title + ("" if n.id else " (not in the catalog)") for n in found.named))
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
            err.print(f"[yellow]{stage.name} degraded: {escape(stage.degraded)}[/]")


def print_model(found: dict[str, Any]) -> None:
    """Print the result of `agent.llm.connect.check`: the model, whether it answers, and each trained adapter."""
    out = Console(highlight=False, soft_wrap=True)
    out.print(escape(f"{found['model']} at {found['where']}: {'answers' if found['answers'] else found['reason']}"))
    for adapter in found["adapters"]:
        status = "answers" if adapter["usable"] else adapter["reason"]
        out.print(escape(f"{adapter['task']} adapter ({adapter['name']}): {status}"))
    if found["vllm"]:
        out.print(
            escape(
                f"to serve the adapters: {found['vllm']} (MODEL: Hugging Face folder of the model they were trained on)"
            )
        )


def print_interests(found: Interests, catalog: Catalog) -> None:
    """Print a profile with the titles of its evidence, its queries and its named items."""
    out = Console(highlight=False)
    if found.profile:
        titles = {
            i: item.title for i, item in catalog.get([e for x in found.profile.interests for e in x.evidence]).items()
        }
        _print_profile(out, found.profile, titles)
    out.print("[bold]Queries[/]  " + escape(" | ".join(found.queries)))
    if found.named:
        out.print("[bold]Named[/]    " + escape(", ".join(n.title for n in found.named)))


def print_index_report(done: Indexed) -> None:
    """Print the counts of `evoke index`; on stderr skipped rows and other problems."""
    items, events = done.items, done.events
    out, err = Console(highlight=False), Console(stderr=True, highlight=False)
    out.print(
        f"items: {items.added} added, {items.updated} changed, {items.unchanged} unchanged, {done.pruned} pruned; "
        f"events: {events.added} added, {events.duplicates} already there; store {escape(str(done.store))}",
        soft_wrap=True,
    )
    if items.truncated:
        err.print(
            f"evoke: {items.truncated} texts are longer than the encoder's limit; their ends are not part of the vectors"
        )
    if done.gone and not done.pruned:
        err.print(
            f"evoke: {done.gone} items of the store are no longer in the file; --prune removes them"
            + (" once no item row is skipped" if done.skipped_items else "")
        )
    if events.future:
        err.print(
            f"evoke: {events.future} events have timestamps in the future (by this machine's clock); they are kept"
        )
    for reason, count in done.problems.counts.most_common():
        cases = "; ".join(done.problems.cases[reason])
        err.print(f"evoke: {count} rows skipped: {escape(reason)}, first {escape(cases)}", soft_wrap=True)


def index_report_json(done: Indexed) -> dict[str, Any]:
    """Return the report of `evoke index` as JSON."""
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


def _print_profile(out: Console, profile: Profile, titles: dict[str, str] | None = None) -> None:
    out.print("[bold]Profile[/]  " + escape(profile.summary))
    for interest in profile.interests:
        evidence = ", ".join((titles or {}).get(e, e) for e in interest.evidence)
        out.print(f"         {interest.weight:.2f} {escape(interest.name)} [dim]({escape(evidence)})[/]")
    if profile.avoid:
        out.print("[bold]Avoids[/]   " + escape(", ".join(profile.avoid)))


def strip_controls(text: str) -> str:
    """Return the text without characters that control a terminal, except line ends, and without marks of writing direction."""
    return "".join(c for c in text if c == "\n" or c in _JOINERS or unicodedata.category(c) not in ("Cc", "Cf", "Cs"))


def escape(text: str) -> str:
    """Return the text for a rich console: on one line, without control characters, and with markup escaped."""
    return markup.escape(strip_controls(text).replace("\n", " "))
