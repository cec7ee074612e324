"""`evoke tune --prompts`: find a better wording of the prompt `interests`.

Wordings by us and by a model race on validation cases (see `eval.tuning.prompts.successive_halving`). The winner is then tested on
the cases of other users, because the best of many wordings looks better in the race than it is. It is used from then on only if
it finds significantly more there.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from agent import event_loop
from agent.errors import ModelError
from agent.llm.adapters import Adapters
from agent.llm.retries import without_credentials
from agent.ranking.candidates import Fusion
from agent.ranking.tuned import Tuned
from agent.settings import Settings
from eval.comparison.bench import JOINING, Bench
from eval.comparison.llm_cache import Asking
from eval.data.cases import Cases
from eval.data.dataset import index_dataset
from eval.data.leakage import hash_tuning_data, open_measured_catalog
from eval.errors import EvalError
from eval.fitting.ablation import MOST_CASES
from eval.fitting.signals import fit_sources
from eval.metrics import check_extra
from eval.progress import Progress, quiet
from eval.significance import LEAST_USERS
from eval.tuning.objective import Say
from eval.tuning.prompts.successive_halving import FIRST, Race
from eval.tuning.prompts.variants import (
    POOL,
    PRESENT,
    Variant,
    fingerprint,
    propose_wordings,
    render_task,
    write_variant,
)
from eval.tuning.resumable import Steps
from eval.tuning.tune import MINUTES, MODEL_CASES, repeating, validation_cases
from store.locks import exclusive_lock

ROUNDS = 2
PROPOSALS = 4
"""The wordings that a model is asked for in each round."""
FAILURES = 3
"""The most cases in which the leader found nothing that are shown to the model that proposes."""
RACING = 0.5
"""The share of the model's time for the race; the rest is for the test of the winner."""
SHOWN = 8
"""The most titles of a history that are shown to the model that proposes, the newest ones."""
FOLDER = "tuned/prompts"
"""The folder in the store for the winner, if the settings name no folder of prompts."""


@dataclass(frozen=True, slots=True)
class PromptSearch:
    """The result of a search: the folder that the winner was written to (None if nothing was written), and the evidence."""

    folder: Path | None
    evidence: dict[str, Any]

    def __str__(self) -> str:
        lines = [
            f"{row['variant']}: recall@100 {row['base+queries']:.4f} with base, {row['queries']:.4f} alone, {row['cases']} cases"
            for row in self.evidence["race"]
        ]
        return "\n".join([*lines, _verdict(self.evidence), *([f"written to {self.folder}"] if self.folder else [])])

    def as_json(self) -> dict[str, Any]:
        """Return both as plain values."""
        return {"folder": str(self.folder) if self.folder else None, **self.evidence}


def load_proposer(url: str | None, model: str | None, key: str | None) -> Settings | None:
    """Return the settings of the model that proposes wordings, None for the same model that is tuned.

    With another URL, the key of the settings is not sent to it, only the one that is given.
    """
    if not (url or model):
        return None
    changed = {"base_url": url, "model": model, "api_key": key} if url else {"model": model}
    return Settings.load().model_copy(update=changed)


def tune_prompts(
    dataset: str | Path,
    *,
    store: str | Path | None = None,
    seed: int = 0,
    model_cases: int = MODEL_CASES,
    minutes: float = MINUTES,
    rounds: int = ROUNDS,
    proposer: Settings | None = None,
    say: Say = lambda _: None,
    progress: Progress = quiet,
    **settings: Any,
) -> PromptSearch:
    """Search a better wording of the `interests` prompt for this dataset; return what was found and written.

    In each round a model proposes a few wordings, which race against the leader. Half of the users are for the race. The winner
    is used from then on if it is significantly better than the present prompt on the other half (see `Race.test`).

    Args:
        dataset: the dataset folder.
        store: the store folder, by default the dataset's own.
        seed: the seed of all draws.
        model_cases: the most validation cases to use.
        minutes: about the time that the model may take.
        rounds: the number of rounds.
        proposer: the settings of the model that proposes wordings, by default the model that is tuned.
        say: called with a line for each finished step.
        progress: shows progress.
        settings: any of `agent.settings.Settings`, such as `base_url`.

    Raises EvalError if there are too few cases, if the store was tuned on other data or has an adapter that writes queries, or if
    no model answers. Nothing is written then.
    """
    check_extra()
    dataset = Path(dataset)
    cases = validation_cases(dataset).sample(MOST_CASES, seed)
    rows, racing = _draw_cases(cases, model_cases, seed)
    say("indexing")
    folder = index_dataset(dataset, store)
    tuned, seen = Tuned.load(folder), hash_tuning_data(dataset)
    if tuned.evidence and tuned.evidence.get("seen") != seen:
        raise EvalError(f"{folder} was tuned on other data than {dataset} holds now; run `evoke tune` first")
    if Adapters.load(folder).adapter("queries"):
        raise EvalError(
            f"{folder}: the queries adapter writes the queries, by a prompt of its own; take trained/queries out of the store "
            "to tune the prompt without it"
        )
    active = tuned.applied(Settings.load(**settings), folder)
    proposer = (proposer or active).model_copy(update={"prompts": active.prompts})
    before = fingerprint(PRESENT, active)
    key = [seen, seed, model_cases, minutes, rounds, before, active.weights, tuned.evidence]
    key += [_address(active), active.model, _address(proposer), proposer.model]
    # `evoke forget` empties this folder: the steps hold queries, which are about users, as the answers do.
    steps = Steps(folder / "measured" / "unfinished-prompts.json", " ".join(map(str, key)))
    with exclusive_lock(folder, "tuning", "tuning the prompts of"), open_measured_catalog(folder, cases.on) as catalog:
        say(f"fitting on {len(cases.events)} events before the cut")
        fusion = Fusion(active.weights, "weights" in tuned.settings, tuned.judged_fusion(folder), active.diversity)
        bench = Bench(fit_sources(cases, catalog), fusion, tuned.baselines, repeating(cases))
        asking = Asking(active, folder / "measured" / "answers.db", progress=progress)
        race = Race([cases.cases[row] for row in rows], racing, bench, asking, steps, say)
        leader, refused = _run_rounds(race, proposer, rounds, RACING * 60 * minutes, seed)
        evidence: dict[str, Any] = {
            "on": "valid", "seen": seen, "seed": seed, "model": race.scores[PRESENT].model, "rounds": rounds,
            "proposer": proposer.model or _address(proposer) or "embedded", "measure": "recall@100",
            "weight": active.weights.get("queries", 0.0) or JOINING, "prompt": before, "leader": leader.name,
            "race": race.table, "refused": refused,
        }  # fmt: skip
        pays = False
        if leader is not PRESENT:
            evidence["test"] = race.test(leader, PRESENT, 60 * minutes - race.spent, seed)
            pays = evidence["test"]["pays"]
        if pays:
            place = active.prompts or folder / FOLDER
            evidence["prompt written"] = fingerprint(leader, active)
            write_variant(leader, place, evidence)
            if active.prompts is None:
                found = {**tuned.settings, "prompts": FOLDER}
                replace(tuned, settings=found, evidence=tuned.evidence or {"on": "valid", "seen": seen}).save(folder)
    steps.finish()
    return PromptSearch(place if pays else None, evidence)


def _draw_cases(cases: Cases, most: int, seed: int) -> tuple[list[int], int]:
    """Return the rows of cases of randomly drawn users, those for the race first, and the number of those."""
    users = sorted({case.user for case in cases.cases if case.known})
    if len(users) < 2 * LEAST_USERS:
        raise EvalError(
            f"{cases.dataset}: validation cases of {len(users)} users are too few to compare prompts; "
            f"at least {2 * LEAST_USERS} with a history are needed"
        )
    random = np.random.default_rng(seed)
    place = dict(zip(users, random.permutation(len(users)), strict=True))
    rows = [int(row) for row in random.permutation(len(cases)) if cases.cases[row].known]
    half = max(most // 2, LEAST_USERS)
    racing, testing = ([row for row in rows if place[cases.cases[row].user] % 2 == odd][:half] for odd in (1, 0))
    return racing + testing, len(racing)


def _run_rounds(
    race: Race, proposer: Settings, rounds: int, seconds: float, seed: int
) -> tuple[Variant, list[dict[str, str]]]:
    """Return the variant that leads after all rounds, and the proposals that were refused."""
    leader, refused = PRESENT, []
    wordings = list(dict.fromkeys(variant.wording for variant in POOL))
    race.score(PRESENT, FIRST)
    for turn in range(1, rounds + 1):
        made = race.steps.step(
            f"proposals {turn}", partial(_propose, race, leader, proposer, wordings, seed + 100 * turn)
        )
        race.spent += made["seconds"]
        field = list(POOL) if turn == 1 else []
        for at, each in enumerate(made["proposals"], 1):
            wordings.append(each["wording"])
            if each["refused"]:
                refused.append(each)
            else:
                field.append(Variant(f"proposed {turn}.{at}", each["wording"]))
        race.say(f"round {turn}: {len(field)} variants race against {leader.name}")
        leader = race.find_winner(leader, field, seconds * turn / rounds)
    return leader, refused


def _propose(race: Race, leader: Variant, proposer: Settings, tried: list[str], seed: int) -> dict[str, Any]:
    """Ask for new wordings, showing the leader's wording and cases in which it found nothing; return them with their seconds."""
    started, score = time.monotonic(), race.scores[leader]
    failed = [row for row, found in enumerate(score.fused) if found == 0][:FAILURES]
    cases = [race.cases[row] for row in failed]
    items = race.bench.sources.catalog.get(sorted({id for case in cases for id in (*case.known, *case.targets)}))
    title = {id: item.title for id, item in items.items()}
    failures = [
        {
            "liked": [title[id] for id in case.known[-SHOWN:] if id in title],
            "queries": score.queries[row],
            "chosen": [title[id] for id in case.targets if id in title],
        }
        for row, case in zip(failed, cases, strict=True)
    ]
    task = render_task(leader, race.asking.settings)
    shown = {"task": task, "found": f"{score.mean()[0]:.1%}", "failures": failures}
    try:
        made = event_loop.run(propose_wordings(proposer, shown, tried, list(title.values()), PROPOSALS, seed))
    except ModelError as error:
        raise EvalError(f"no model answers to propose wordings ({error.reason}); see `evoke model`") from error
    return {"proposals": made, "seconds": time.monotonic() - started}


def _verdict(evidence: dict[str, Any]) -> str:
    if "test" not in evidence:
        return "no variant is better than the present prompt, which stays"
    test = evidence["test"]
    if not test["cases"]:
        return f'"{evidence["leader"]}" leads, and no time is left to test it: nothing is written; give more --minutes'
    return (
        f'"{evidence["leader"]}" on {test["cases"]} other cases: recall@100 {test["after"][0]:.4f}, '
        f"present prompt {test['before'][0]:.4f} (p {test['p']:.3f}): "
        + ("used from now on" if test["pays"] else "no significant gain, nothing is written")
    )


def _address(settings: Settings) -> str | None:
    return without_credentials(settings.base_url) if settings.base_url else None
