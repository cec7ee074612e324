"""The command line: data on stdout, the rest on stderr; exit 0 done, 1 refused in one line that says why, 2 wrong usage."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from agent.sync import Recommender
    from store import Catalog, History

STORE = click.option(
    "--store",
    type=click.Path(path_type=Path),
    help="The store's folder; default EVOKE_STORE, else the store indexed last.",
)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")


class Interruptible(click.Group):
    """Commands that say, where Ctrl-C ends them, that nothing is lost: click itself would only call it aborted."""

    def invoke(self, ctx: click.Context) -> Any:
        """What the command returns; exit 130 where it was interrupted."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            say("interrupted; the same command continues where it stopped")
            ctx.exit(130)


@click.group(cls=Interruptible, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="evoke-rec", prog_name="evoke")
def cli() -> None:
    """Evoke: recommendations called forth by prompts, on your own machine."""


@cli.command()
@click.argument("dataset", metavar="DIR", type=click.Path(path_type=Path))
@STORE
@click.option("--prune", is_flag=True, help="Remove items that are gone from the file.")
@click.option(
    "--on-error",
    type=click.Choice(["stop", "skip"]),
    default="stop",
    show_default=True,
    help="Stop at the first broken row with the store as it was, or go on and report.",
)
@click.option("--embedding-model", help="Any sentence-transformers model, by name or folder.")
@click.option("--chroma", metavar="URL", help="Keep the vectors in this Chroma server.")
@click.option("--database", metavar="URL", help="Keep histories in this PostgreSQL database.")
@AS_JSON
def index(dataset: Path, store: Path | None, as_json: bool, embedding_model: str | None, **options: Any) -> None:
    """Index the items and events of DIR. Unchanged items cost nothing; an interrupted run continues."""
    from agent.settings import Settings
    from agent.terminal import console
    from agent.terminal.progress import progress
    from store.index import index as run
    from store.paths import default_store

    settings = Settings.load(store=store, embedding_model=embedding_model)
    if "@" in (database := options["database"] or "") and ":" in database.partition("://")[2].partition("@")[0]:
        say(
            "the database's password is kept in the store; leave it out and use ~/.pgpass or PGPASSWORD where others read it"
        )
    folder = settings.store or default_store(dataset)
    with progress("items indexed") as advance:
        done = run(
            dataset,
            folder,
            embedder=settings.embedder(),
            progress=advance,
            **options,
        )
    if as_json:
        print_json(console.indexed_json(done))
    else:
        console.indexed(done)


@cli.command()
@click.argument("text", required=False)
@STORE
@click.option("--user", help="Whose history to start from.")
@click.option("--history", metavar="ID,ID", help="Item ids to start from, oldest first, in place of a user's.")
@click.option("--exclude", metavar="ID,ID", help="Item ids that must not come back.")
@click.option("--where", metavar="JSON", help='A filter on metadata, e.g. \'{"year": {"$gte": 1980}}\'.')
@click.option("-n", "n", type=click.IntRange(min=1), default=10, show_default=True, help="How many items.")
@AS_JSON
def recommend(
    text: str | None,
    store: Path | None,
    user: str | None,
    history: str | None,
    exclude: str | None,
    where: str | None,
    n: int,
    as_json: bool,
) -> None:
    """Recommend items for a user, a history, a request in words, or any of these together."""
    from agent.terminal import console

    try:
        passing = json.loads(where) if where is not None else None
    except ValueError as error:
        raise click.BadParameter(f"not JSON: {error}", param_hint="--where") from None
    with _opened(store) as (_, _, recommender):
        result = recommender.recommend(
            text, user=user, history=_ids(history), exclude=_ids(exclude) or (), where=passing, n=n
        )
        print_json(result.as_json()) if as_json else console.result(result)


@cli.command()
@STORE
@click.option("--user", required=True)
@AS_JSON
def profile(store: Path | None, user: str, as_json: bool) -> None:
    """Show what a user's history says of them: summary, interests with evidence, queries, named items."""
    from agent.terminal import console

    with _opened(store) as (catalog, _, recommender):
        found = recommender.profile(user)
        print_json(found.as_json()) if as_json else console.interests(found, catalog)


@cli.command()
@STORE
@click.option("--user", required=True)
@AS_JSON
def forget(store: Path | None, user: str, as_json: bool) -> None:
    """Delete everything about a user: events, profiles and what was derived from them."""
    from store.paths import typed_lines

    with _opened(store) as (_, history, recommender):
        rows = recommender.forget(user).rows
        if as_json:
            print_json({"user": user, "rows": rows, "refitted": ["matrices"], "trained": recommender.trained})
        else:
            click.echo(
                f"forgot {user}: " + ", ".join(f"{n} {table}" for table, n in rows.items()) + "; matrices refitted"
            )
        for part in recommender.trained:
            anew = {
                "learned fusion": "run `evoke tune DIR`",
                "retriever": "index and train in a new store, since it learns on top of what it knows",
            }.get(part, f"run `evoke train {part.removesuffix(' adapter')} DIR`")
            say(
                f"{part} was trained on histories that may have held {user}'s: take {user} out of the dataset, then {anew}"
            )
        if typed_lines().is_file():
            say(
                f"lines typed into `evoke chat` are kept in {typed_lines()}, whoever typed them: that is yours to clear"
            )
        if not history.local:
            say("the database's WAL and backups may still hold this user: that is for its operator to clear")


@cli.command()
@STORE
@click.option("--user", help="Whose history to start from; what is liked here is added to it.")
@click.option("--session", metavar="ID", help="Go on with this conversation, or begin it under this id.")
def chat(store: Path | None, user: str | None, session: str | None) -> None:
    """Talk it over in the terminal; plain, one message a line, when piped."""
    from agent.terminal.chat import chat as talk

    with _opened(store) as (catalog, _, recommender):
        talk(recommender.session(user, session), catalog)


@cli.command()
@STORE
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Others than this machine need keys in evoke.toml."
)
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 for any free one.")
def serve(store: Path | None, host: str, port: int) -> None:
    """Serve chat (as OpenAI's API), recommendations, events and the chat page until stopped."""
    from agent.serve import run

    run(store, host, port)


@cli.command()
@STORE
@AS_JSON
def model(store: Path | None, as_json: bool) -> None:
    """Say which model answers, where, and whether it does, plain and with what was trained for the store (exit 1 if not)."""
    from agent import event_loop
    from agent.llm.adapters import Trained
    from agent.llm.connect import check
    from agent.ranking.tuned import Tuned
    from agent.settings import Settings
    from agent.terminal import console
    from store.paths import last_store

    settings = Settings.load(store=store)
    folder = settings.store or last_store()
    found = event_loop.run(check(Tuned.load(folder).applied(settings, folder), Trained.load(folder).on))
    print_json(found) if as_json else console.model(found)
    if not found["answers"] or not all(adapter["usable"] for adapter in found["adapters"]):
        sys.exit(1)


class _opened:  # noqa: N801  used as a `with` block, named as what it gives
    """The catalog, history and recommender of a store, closed at the end."""

    def __init__(self, store: Path | None) -> None:
        from agent.settings import Settings
        from store.errors import StoreError
        from store.paths import last_store

        settings = Settings.load(store=store)
        folder = settings.store
        if folder is None:
            folder = last_store()
            if folder is None:
                raise StoreError("no store is named and none was indexed before; run `evoke index DIR` first")
            say(f"store {folder}")
        self._folder, self._embedder = folder, settings.embedder()

    def __enter__(self) -> tuple[Catalog, History, Recommender]:
        from agent.sync import Recommender
        from store import Catalog, History

        self._catalog = Catalog.open(self._folder, create=False, embedder=self._embedder)
        self._history = History.open(self._folder)
        self._recommender = Recommender(self._catalog, self._history)
        return self._catalog, self._history, self._recommender

    def __exit__(self, *_: object) -> None:
        self._recommender.close()
        self._history.close()
        self._catalog.close()


def _ids(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def print_json(row: Any) -> None:
    click.echo(json.dumps(row, ensure_ascii=False, indent=2))


def say(line: str) -> None:
    click.echo(f"evoke: {line}", err=True)


def main() -> None:
    """The `evoke` command."""
    from agent.errors import EvokeError
    from prompts import PromptError
    from store.errors import StoreError

    ours = logging.getLogger("evoke")
    ours.addHandler(handler := logging.StreamHandler())
    handler.setFormatter(logging.Formatter("evoke: %(message)s"))
    try:
        cli()
    except (EvokeError, StoreError, PromptError) as error:
        say(str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
