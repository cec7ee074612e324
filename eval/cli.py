"""The `evoke` command: what the recommender offers, and on top of it measuring and tuning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import click

from agent.terminal.cli import AS_JSON, STORE, cli, main, print_json, say


@cli.command()
@click.argument("dataset", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--arms", help="Comma-separated arms, the one to test against the others first; a+b fuses two.")
@click.option("--on", type=click.Choice(["test", "valid"]), default="test", show_default=True)
@click.option(
    "--cases",
    type=click.IntRange(min=1),
    help="Draw users until there are so many cases; default all, 1,000 where an arm calls a model.",
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--split", "how", type=click.Choice(["temporal", "per-user", "last-out"]), help="Make cases from the events so."
)
@click.option("--allow-repeats", is_flag=True, help="Keep history items among the candidates.")
@click.option("--against", type=click.Path(path_type=Path), help="A saved run to compare this one with.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Where the run is saved (JSON, per-case values, HTML page)."
)
@STORE
@AS_JSON
def compare(
    dataset: Path,
    arms: str | None,
    on: str,
    cases: int | None,
    seed: int,
    how: str | None,
    allow_repeats: bool,
    against: Path | None,
    out: Path | None,
    store: Path | None,
    as_json: bool,
) -> None:
    """Measure recall methods on DIR's held-out cases, and test their differences.

    \b
    Arms: queries named dense collaborative lexical popular   the channels
          last-item mean-history item-knn ease star           baselines
          dialogue mentioned                                  baselines for dialogues
          base full                                           fused: without a model, and with it as tuned
          a+b  a+rank  full-x                                 fused, ranked, without x
          a-retriever  a-adapter  a-training                  without what training taught
    """
    from agent.settings import Settings
    from agent.terminal.progress import progress
    from eval.comparison.arms import DEFAULT
    from eval.comparison.runner import compare as run_compare

    if out:
        _writable(out)
    run = run_compare(
        dataset,
        [arm.strip() for arm in arms.split(",") if arm.strip()] if arms else DEFAULT,
        store=store or Settings.load().store,
        on=on,
        cases=cases,
        seed=seed,
        allow_repeats=allow_repeats,
        how=how,
        against=against,
        progress=progress,
    )
    try:
        if out:
            say(f"saved {run.save(out)}")
    finally:  # what could not be saved is shown nevertheless
        if as_json:
            print_json(run.as_json())
        else:
            from rich.console import Console

            Console().print(run)


def _writable(folder: Path) -> None:
    """Says that results could not be saved there before they are worked out, not after."""
    from eval.errors import EvalError

    try:
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()
    except OSError as error:
        raise EvalError(f"{folder} cannot be written ({error.strerror}); choose another --out") from error


@cli.command()
@click.argument("dataset", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--model-cases",
    type=click.IntRange(min=0, max=500),
    default=500,
    show_default=True,
    help="Validation cases to judge the stages on that call a model.",
)
@click.option("--minutes", type=float, default=10.0, show_default=True, help="Time for the model, at most.")
@click.option("--no-model", is_flag=True, help="Do not judge the stages that call a model; they keep their defaults.")
@click.option("--prompts", is_flag=True, help="Look for a better wording of the prompt for interests instead.")
@click.option(
    "--rounds", type=click.IntRange(min=1), default=2, show_default=True, help="Times that wordings are proposed."
)
@click.option("--proposer-url", help="The server of a larger model that proposes them; default the model in force.")
@click.option("--proposer-model", help="Its name there.")
@click.option("--proposer-key", envvar="EVOKE_PROPOSER_KEY", show_envvar=True, help="The key of its server.")
@STORE
@AS_JSON
def tune(
    dataset: Path,
    seed: int,
    model_cases: int,
    minutes: float,
    no_model: bool,
    prompts: bool,
    rounds: int,
    proposer_url: str | None,
    proposer_model: str | None,
    proposer_key: str | None,
    store: Path | None,
    as_json: bool,
) -> None:
    """Find weights, learned fusion and which stages pay for DIR's store on its validation cases, and write them there.

    With --prompts: variants of the prompt for interests race on those cases, and one that is shown to find more is put in force.
    """
    from agent.settings import Settings
    from agent.terminal.progress import progress
    from eval.tuning.tune import tune as run_tune

    if prompts:
        from eval.tuning.prompts.prompt_search import proposer, tune_prompts

        if no_model or not model_cases:
            raise click.UsageError("prompts cannot be tuned without a model")
        found = tune_prompts(
            dataset,
            store=store or Settings.load().store,
            seed=seed,
            model_cases=model_cases,
            minutes=minutes,
            rounds=rounds,
            proposer=proposer(proposer_url, proposer_model, proposer_key),
            say=say,
            progress=progress,
        )
        print_json(found.as_json()) if as_json else click.echo(found)
        return
    tuned = run_tune(
        dataset,
        store=store or Settings.load().store,
        seed=seed,
        model_cases=0 if no_model else model_cases,
        minutes=minutes,
        say=say,
        progress=progress,
    )
    if as_json:
        print_json({"settings": tuned.settings, "learned": tuned.learned, "evidence": tuned.evidence})
        return
    quality = tuned.evidence["learned fusion" if tuned.learned else "weighted ranks"]
    figures = ", ".join(f"{measure} {value:.4f}" for measure, value in quality.items())
    click.echo(f"{'learned fusion' if tuned.learned else 'weighted ranks'} on validation: {figures}")
    for name, value in tuned.settings.items():
        click.echo(f"{name}: {value}")


@cli.group()
def train() -> None:
    """Teach the language model, or the retriever, on DIR's own events; what does not pay on validation stays off."""


def _trained(task: str, **given: Any) -> None:
    from agent.settings import Settings
    from agent.terminal.progress import progress
    from eval.training.adapters import train as run_train

    as_json, store = given.pop("as_json"), given.pop("store")
    done = run_train(task, store=store or Settings.load().store, say=say, progress=progress, **given)
    if as_json:
        rewritten = [asdict(one) for one in done.rewritten]
        told = {"adapter": done.adapter.name, "on": done.adapter.on, "evidence": done.adapter.evidence}
        told["stays"] = done.stays.name if done.stays else None
        print_json(told | {"rewritten": rewritten})
        return
    from rich.console import Console

    Console().print(done)
    if done.verdict.paid:
        paid = "it pays and is on; `evoke tune` says how much it weighs"
    else:
        paid = "no gain is shown, but it is on as you asked" if done.adapter.on else "it stays off: no gain is shown"
        if done.stays:
            paid += f"; {done.stays.name} stays on"
    click.echo(f"{done.adapter.name}: {paid}")


SEED = click.option("--seed", type=int, default=0, show_default=True)
SAMPLES = click.option("--samples", type=click.IntRange(min=1), help="Steps to learn from, at most; default by task.")
ANYWAY = click.option("--anyway", is_flag=True, help="Switch it on even where no gain is shown, to measure it.")
DATASET = click.argument("dataset", metavar="DIR", type=click.Path(path_type=Path))


def _adapter_options(command: Callable[..., None]) -> Callable[..., None]:
    """What the commands that train an adapter take."""
    cases = click.option("--cases", type=click.IntRange(min=1), help="Validation cases to judge on; default by task.")
    for option in reversed((DATASET, SEED, SAMPLES, cases, ANYWAY, STORE, AS_JSON)):
        command = option(command)
    return command


@train.command()
@_adapter_options
def queries(**given: Any) -> None:
    """Teach the model to write, from histories, the searches and titles that find what people choose next."""
    _trained("queries", **given)


@train.command()
@_adapter_options
def rank(**given: Any) -> None:
    """Teach the model to pick what people choose next among the candidates it is shown."""
    _trained("rank", **given)


@train.command()
@DATASET
@SEED
@SAMPLES
@ANYWAY
@STORE
@AS_JSON
def retriever(dataset: Path, seed: int, samples: int | None, anyway: bool, store: Path | None, as_json: bool) -> None:
    """Teach the encoder of items to put what people choose next near their histories, and index with it.

    The way back: `evoke index DIR --embedding-model NAME` into a new store.
    """
    from agent.settings import Settings
    from agent.terminal.progress import progress
    from eval.training.retriever import to_do_next
    from eval.training.retriever import train as run_train
    from store.paths import default_store

    folder = store or Settings.load().store or default_store(dataset)
    done = run_train(dataset, store=folder, seed=seed, samples=samples, anyway=anyway, say=say, progress=progress)
    for line in to_do_next(folder) if done.on else ():
        say(line)
    if as_json:
        print_json(done.as_json())
        return
    from rich.console import Console

    Console().print(done)
    if done.pays:
        paid = "it pays, and the store is indexed with it"
    elif done.on:
        paid = "it does not pay, but the store is indexed with it as you asked"
    elif done.verdict.paid:
        paid = "nothing is switched on: titles are found less often"
    else:
        paid = "nothing is switched on: no gain is shown"
    click.echo(f"{done.name}: {paid}")


__all__ = ["cli", "main"]

if __name__ == "__main__":
    main()
