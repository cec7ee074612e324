"""The `evoke` command: the commands of the recommender, and those that compare, tune and train."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import click

from agent.terminal.cli import AS_JSON, DATASET_STORE, cli, main, print_json, say

DATASET = click.argument("dataset", metavar="DIR", type=click.Path(path_type=Path))
SEED = click.option("--seed", type=int, default=0, show_default=True, help="Seed of random choices.")
SAMPLES = click.option(
    "--samples", type=click.IntRange(min=1), help="Maximum number of training samples. Default: depends on the task."
)
ANYWAY = click.option("--anyway", is_flag=True, help="Switch it on even without a significant gain.")


@cli.command()
@DATASET
@click.option("--arms", help="Arms, separated by commas. The first is tested against each of the others.")
@click.option(
    "--on", type=click.Choice(["test", "valid"]), default="test", show_default=True, help="Cases to compare on."
)
@click.option(
    "--cases",
    type=click.IntRange(min=1),
    help="Number of cases, drawn by user. Default: all; 1,000 if an arm calls a model.",
)
@SEED
@click.option(
    "--split",
    "how",
    type=click.Choice(["temporal", "per-user", "last-out"]),
    help="Make the cases from the events by this split, instead of reading them from DIR.",
)
@click.option("--allow-repeats", is_flag=True, help="Allow items of the history in the results.")
@click.option("--against", type=click.Path(path_type=Path), help="Folder of a saved run to compare this one with.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder to save the run in (JSON, values of each case, HTML page)."
)
@DATASET_STORE
@AS_JSON
def compare(
    dataset: Path, arms: str | None, out: Path | None, store: Path | None, as_json: bool, **options: Any
) -> None:
    """Compare retrieval methods on held-out cases.

    Prints recall and nDCG of each arm, with significance tests. DIR is indexed first if its store is missing or outdated.

    \b
    Arms: queries named dense collaborative lexical popular   the channels
          last-item mean-history item-knn ease star           baselines
          dialogue mentioned                                  baselines for dialogues
          base                                                all channels fused, without a language model
          full                                                base and the model stages that tuning enabled
          a+b                                                 arms a and b fused
          a+rank                                              arm a, ranked by the model
          full-x                                              full without the channel or stage x
          a-retriever  a-adapter  a-training                  arm a without the trained retriever, adapter, or both
    """
    from eval.comparison.arms import DEFAULT
    from eval.comparison.runner import compare as run_compare

    if out:
        _check_writable(out)
    named = [arm.strip() for arm in arms.split(",") if arm.strip()] if arms else DEFAULT
    run = run_compare(dataset, named, **_common(store), **options)
    try:
        if out:
            say(f"saved {run.save(out)}")
    finally:  # show the run even if it could not be saved
        _show(run, as_json)


def _common(store: Path | None) -> dict[str, Any]:
    """Return the arguments of every command: the store, by default that of the settings, and the progress display."""
    from agent.settings import Settings
    from agent.terminal.progress import progress

    return {"store": store or Settings.load().store, "progress": progress}


def _show(result: Any, as_json: bool) -> None:
    """Print a result, as JSON or as rich shows it."""
    from rich.console import Console

    if as_json:
        print_json(result.as_json())
    else:
        Console().print(result)


def _check_writable(folder: Path) -> None:
    """Raise EvalError if results cannot be saved in the folder: before the work, not after it."""
    from eval.errors import EvalError

    try:
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()
    except OSError as error:
        raise EvalError(f"{folder} cannot be written ({error.strerror}); choose another --out") from error


@cli.command()
@DATASET
@SEED
@click.option(
    "--model-cases",
    type=click.IntRange(min=0, max=500),
    default=500,
    show_default=True,
    help="Number of validation cases for the stages that call the model.",
)
@click.option("--minutes", type=float, default=10.0, show_default=True, help="Time limit for calls of the model.")
@click.option("--no-model", is_flag=True, help="Do not tune the stages that call the model; they keep their defaults.")
@click.option("--prompts", is_flag=True, help="Tune the wording of the interests prompt instead.")
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="With --prompts: rounds of new wordings.",
)
@click.option("--proposer-url", help="With --prompts: server of a larger model that proposes wordings.")
@click.option("--proposer-model", help="Name of that model on its server.")
@click.option("--proposer-key", envvar="EVOKE_PROPOSER_KEY", show_envvar=True, help="API key of that server.")
@DATASET_STORE
@AS_JSON
def tune(
    dataset: Path,
    no_model: bool,
    prompts: bool,
    rounds: int,
    proposer_url: str | None,
    proposer_model: str | None,
    proposer_key: str | None,
    store: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Find the best settings for your data.

    On the validation cases of DIR: searches channel weights, trains learned fusion, and switches on the model stages that
    improve the results. The outcome is written into DIR's store, and used from then on.

    With --prompts: compares variants of the interests prompt on those cases. A variant that finds significantly more is
    written into the store, and used from then on.
    """
    from eval.tuning.tune import tune as run_tune

    options |= {"say": say, **_common(store)}
    if prompts:
        from eval.tuning.prompts.prompt_search import load_proposer, tune_prompts

        if no_model or not options["model_cases"]:
            raise click.UsageError("--prompts needs a model: leave out --no-model and --model-cases 0")
        proposer = load_proposer(proposer_url, proposer_model, proposer_key)
        found = tune_prompts(dataset, rounds=rounds, proposer=proposer, **options)
        print_json(found.as_json()) if as_json else click.echo(found)
        return
    tuned = run_tune(dataset, **options | ({"model_cases": 0} if no_model else {}))
    if as_json:
        print_json({"settings": tuned.settings, "learned": tuned.learned, "evidence": tuned.evidence})
        return
    way = "learned fusion" if tuned.learned else "weighted ranks"
    figures = ", ".join(f"{measure} {value:.4f}" for measure, value in tuned.evidence[way].items())
    click.echo(f"{way} on validation: {figures}")
    for name, value in tuned.settings.items():
        click.echo(f"{name}: {value}")


@cli.group()
def train() -> None:
    """Train the language model or the retriever on your data.

    A result that does not improve the validation results stays switched off.
    """


def _train_adapter(task: str, store: Path | None, as_json: bool, **options: Any) -> None:
    from eval.training.adapters import train as run_train

    done = run_train(task, say=say, **_common(store), **options)
    _show(done, as_json)
    if as_json:
        return
    if done.verdict.paid:
        outcome = "it improves the results and is on; run `evoke tune` to weight it"
    elif done.adapter.on:
        outcome = "it is on because of --anyway: no significant gain"
    else:
        outcome = "it stays off: no significant gain"
    if done.stays:
        outcome += f"; {done.stays.name} stays on"
    click.echo(f"{done.adapter.name}: {outcome}")


def _adapter_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of the commands that train an adapter."""
    cases = click.option(
        "--cases", type=click.IntRange(min=1), help="Number of validation cases. Default: depends on the task."
    )
    for option in reversed((DATASET, SEED, SAMPLES, cases, ANYWAY, DATASET_STORE, AS_JSON)):
        command = option(command)
    return command


@train.command()
@_adapter_options
def queries(**given: Any) -> None:
    """Train the model to write search queries from histories.

    It learns to write the queries and titles that find what users choose next.
    """
    _train_adapter("queries", **given)


@train.command()
@_adapter_options
def rank(**given: Any) -> None:
    """Train the model to rank candidates.

    It learns to pick what users choose next from the candidates it is shown.
    """
    _train_adapter("rank", **given)


@train.command()
@DATASET
@SEED
@SAMPLES
@ANYWAY
@DATASET_STORE
@AS_JSON
def retriever(dataset: Path, store: Path | None, as_json: bool, **options: Any) -> None:
    """Train the encoder, and index with it if it finds more.

    It learns to place items that users choose next close to their histories. To undo it, run
    `evoke index DIR --embedding-model NAME` with a new store.
    """
    from eval.training.retriever import list_next_steps
    from eval.training.retriever import train as run_train
    from store.paths import default_store

    common = _common(store)
    folder = common["store"] = common["store"] or default_store(dataset)
    done = run_train(dataset, say=say, **common, **options)
    for line in list_next_steps(folder) if done.on else ():
        say(line)
    _show(done, as_json)
    if as_json:
        return
    if done.pays:
        outcome = "it improves the results, and the store is indexed with it"
    elif done.on:
        outcome = "the store is indexed with it because of --anyway: no significant gain"
    elif done.verdict.paid:
        outcome = "it stays off: items are found less often by their titles"
    else:
        outcome = "it stays off: no significant gain"
    click.echo(f"{done.name}: {outcome}")


__all__ = ["cli", "main"]

if __name__ == "__main__":
    main()
