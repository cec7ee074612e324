"""The command line. Data goes to stdout, everything else to stderr. Exit codes: 0 done, 1 error (in one line), 2 wrong usage."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from agent.sync import Recommender
    from store import Catalog, History

STORE = click.option(
    "--store",
    type=click.Path(path_type=Path),
    help="Folder of the store. Default: EVOKE_STORE, else the store that was indexed last.",
)
DATASET_STORE = click.option(
    "--store",
    type=click.Path(path_type=Path),
    help="Folder of the store. Default: EVOKE_STORE, else a folder of its own for each DIR.",
)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


class Interruptible(click.Group):
    """A group of commands that say, after Ctrl-C, that nothing is lost. Click itself would only print "Aborted!"."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. Exit with 130 if it is interrupted."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            say("interrupted; the same command continues where it stopped")
            ctx.exit(130)


@click.group(cls=Interruptible, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="evoke-rec", prog_name="evoke")
def cli() -> None:
    """Evoke is a recommender led by a language model, on your own machine.

    Begin with `evoke index DIR`, where DIR holds your items and events. Then try `evoke recommend --user ID` or `evoke chat`.
    """


@cli.command()
@click.argument("dataset", metavar="DIR", type=click.Path(path_type=Path))
@DATASET_STORE
@click.option("--prune", is_flag=True, help="Remove items from the store that are no longer in the file.")
@click.option(
    "--on-error",
    type=click.Choice(["stop", "skip"]),
    default="stop",
    show_default=True,
    help="At an invalid row: stop and leave the store unchanged, or skip the row and report it.",
)
@click.option(
    "--embedding-model",
    help="A sentence-transformers model (name or folder). Default: all-MiniLM-L6-v2.",
)
@click.option("--chroma", metavar="URL", help="Store vectors on this Chroma server instead of in the store's folder.")
@click.option(
    "--database", metavar="URL", help="Store histories in this PostgreSQL database instead of in the store's folder."
)
@AS_JSON
def index(dataset: Path, store: Path | None, as_json: bool, embedding_model: str | None, **options: Any) -> None:
    """Index the items and events of a dataset folder.

    DIR holds items.jsonl and, if there are any, events.csv (each may be .csv, .jsonl or .parquet). Unchanged items are skipped.
    A run that was interrupted continues where it stopped.
    """
    from agent.settings import Settings
    from agent.terminal import console
    from agent.terminal.progress import progress
    from store.index import index as run
    from store.paths import default_store

    settings = Settings.load(store=store, embedding_model=embedding_model)
    if "@" in (database := options["database"] or "") and ":" in database.partition("://")[2].partition("@")[0]:
        say("the database password is saved in the store; if others can read it, use ~/.pgpass or PGPASSWORD instead")
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
        print_json(console.index_report_json(done))
    else:
        console.print_index_report(done)


@cli.command()
@click.argument("text", required=False)
@STORE
@click.option("--user", help="User whose history to start from.")
@click.option("--history", metavar="ID,ID", help="Item ids to start from, oldest first, instead of a user's history.")
@click.option("--exclude", metavar="ID,ID", help="Item ids to leave out of the result.")
@click.option("--where", metavar="JSON", help='Filter on metadata, such as \'{"year": {"$gte": 1980}}\'.')
@click.option("-n", "n", type=click.IntRange(min=1), default=10, show_default=True, help="Number of items.")
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
    """Recommend items for a user, a history or a request in words.

    TEXT is a request such as "slow-burn heist films". It can be combined with --user or --history.
    """
    from agent.terminal import console

    try:
        passing = json.loads(where) if where is not None else None
    except ValueError as error:
        raise click.BadParameter(f"not JSON: {error}", param_hint="--where") from None
    with _open_store(store) as (_, _, recommender):
        result = recommender.recommend(
            text, user=user, history=_ids(history), exclude=_ids(exclude) or (), where=passing, n=n
        )
        print_json(result.as_json()) if as_json else console.print_result(result)


@cli.command()
@STORE
@click.option("--user", required=True, help="User whose profile to show.")
@AS_JSON
def profile(store: Path | None, user: str, as_json: bool) -> None:
    """Show the profile that the model made from a user's history.

    It consists of a summary, interests with evidence, search queries and named items.
    """
    from agent.terminal import console

    with _open_store(store) as (catalog, _, recommender):
        found = recommender.profile(user)
        print_json(found.as_json()) if as_json else console.print_interests(found, catalog)


@cli.command()
@STORE
@click.option("--user", required=True, help="User to delete.")
@AS_JSON
def forget(store: Path | None, user: str, as_json: bool) -> None:
    """Delete everything about a user.

    Events, profiles and conversations are deleted, and the data derived from them is rebuilt. Models that were trained on the
    user's events are named, with the command that trains them again.
    """
    from store.paths import chat_history_file

    with _open_store(store) as (_, history, recommender):
        rows = recommender.forget(user).rows
        if as_json:
            print_json({"user": user, "rows": rows, "refitted": ["matrices"], "trained": recommender.trained})
        else:
            click.echo(
                f"forgot {user}: " + ", ".join(f"{n} {table}" for table, n in rows.items()) + "; matrices refitted"
            )
        for part in recommender.trained:
            remedy = {
                "learned fusion": "run `evoke tune DIR`",
                "retriever": "index and train in a new store, because training continues from the present retriever",
            }.get(part, f"run `evoke train {part.removesuffix(' adapter')} DIR`")
            say(
                f"{part} was trained on histories that may include {user}'s: take {user} out of the dataset, then {remedy}"
            )
        if chat_history_file().is_file():
            say(
                f"{chat_history_file()} holds the lines typed into `evoke chat`, without user names: delete it if {user} used it"
            )
        if not history.local:
            say(f"the database's WAL and backups may still contain {user}: ask its operator to clear them")


@cli.command()
@STORE
@click.option("--user", help="User whose history to start from. Items liked in the chat are added to it.")
@click.option("--session", metavar="ID", help="Continue the conversation with this id, or start one.")
def chat(store: Path | None, user: str | None, session: str | None) -> None:
    """Chat about recommendations in the terminal.

    If the input is piped, each line is one message, and the output is plain text.
    """
    from agent.terminal.chat import chat as talk

    with _open_store(store) as (catalog, _, recommender):
        talk(recommender.session(user, session), catalog)


@cli.command()
@STORE
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on. Other than this machine only with API keys in evoke.toml.",
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="Port; 0 for any free port."
)
def serve(store: Path | None, host: str, port: int) -> None:
    """Serve the HTTP API and the chat page.

    The API has chat completions (compatible with OpenAI), recommendations and events. Ctrl-C stops the service.
    """
    from store.errors import MissingExtra

    if not all(find_spec(name) for name in ("fastapi", "uvicorn", "prometheus_client")):
        raise MissingExtra("evoke serve", "serve")
    from agent.serve.server import serve as run

    run(store, host, port)


@cli.command()
@STORE
@AS_JSON
def model(store: Path | None, as_json: bool) -> None:
    """Show which language model is used, and whether it answers.

    The store's trained adapters are tried, too. The exit code is 1 if the model or an adapter does not answer.
    """
    from agent import event_loop
    from agent.llm.adapters import Adapters
    from agent.llm.connect import check
    from agent.ranking.tuned import Tuned
    from agent.settings import Settings
    from agent.terminal import console
    from store.paths import last_store

    settings = Settings.load(store=store)
    folder = settings.store or last_store()
    found = event_loop.run(check(Tuned.load(folder).applied(settings, folder), Adapters.load(folder).on))
    print_json(found) if as_json else console.print_model(found)
    if not found["answers"] or not all(adapter["usable"] for adapter in found["adapters"]):
        sys.exit(1)


@contextmanager
def _open_store(store: Path | None) -> Iterator[tuple[Catalog, History, Recommender]]:
    """Open the catalog, history and recommender of a store, and close them at the end of the block."""
    from agent.settings import Settings
    from agent.sync import Recommender
    from store import Catalog, History
    from store.errors import StoreError
    from store.paths import last_store

    settings = Settings.load(store=store)
    folder = settings.store or last_store()
    if folder is None:
        raise StoreError("no store was given and none was indexed before; run `evoke index DIR` first")
    if settings.store is None:
        say(f"using store {folder}")
    with (
        Catalog.open(folder, create=False, embedder=settings.embedder()) as catalog,
        History.open(folder) as history,
        closing(Recommender(catalog, history)) as recommender,
    ):
        yield catalog, history, recommender


def _ids(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def print_json(row: Any) -> None:
    """Print a value as JSON on stdout."""
    click.echo(json.dumps(row, ensure_ascii=False, indent=2))


def say(line: str) -> None:
    """Print a message for the user on stderr."""
    click.echo(f"evoke: {line}", err=True)


def main() -> None:
    """Run the `evoke` command."""
    from agent.errors import EvokeError
    from prompts import PromptError
    from store.errors import StoreError

    logging.getLogger("evoke").addHandler(handler := logging.StreamHandler())
    handler.setFormatter(logging.Formatter("evoke: %(message)s"))
    try:
        cli()
    except (EvokeError, StoreError, PromptError) as error:
        say(str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
