"""`evoke tune --prompts`: wordings of the prompt `interests`, ours and a model's, race on validation cases; the winner is tested on
other users, and put in force where it is shown to find more. See `eval.tuning.prompts.successive_halving` for what counts.

The best of many in a race is better than it is by luck; in a test of it alone, on users that had no part in the race, it is not.
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
from eval.tuning.prompts.successive_halving import FIRST, Race, Scorer
from eval.tuning.prompts.variants import IN_FORCE, POOL, Variant, fingerprint, proposals, put, task
from eval.tuning.resumable import Steps
from eval.tuning.tune import MINUTES, MODEL_CASES, repeating, validation_cases
from store.locks import exclusive_lock

ROUNDS = 2
PROPOSALS = 4
"""Wordings that are asked for in a round."""
FAILURES = 3
"""Cases in which the leader found nothing that whoever proposes is shown."""
RACING = 0.5
"""Share of the model's time for the race; the rest is for the test of its winner."""
SHOWN = 8
"""Titles of a history that it is shown, the newest."""
FOLDER = "tuned/prompts"
"""Where the winner goes in a store for which no folder of prompts is set."""


@dataclass(frozen=True, slots=True)
class Prompted:
    """The folder that the winner was written to, None where nothing was; and the evidence, as it stands beside the winner."""

    folder: Path | None
    evidence: dict[str, Any]

    def __str__(self) -> str:
        rows = [
            f"{row['variant']}: recall@100 {row['base+queries']:.4f} with base, {row['queries']:.4f} alone, {row['cases']} cases"
            for row in self.evidence["race"]
        ]
        return "\n".join([*rows, _verdict(self.evidence), *([f"written to {self.folder}"] if self.folder else [])])

    def as_json(self) -> dict[str, Any]:
        """Both by name."""
        return {"folder": str(self.folder) if self.folder else None, **self.evidence}


def proposer(url: str | None, model: str | None, key: str | None) -> Settings | None:
    """Settings of a model that proposes, None for the one in force. A key goes to no other server than the one it is for."""
    if not (url or model):
        return None
    told = Settings.load()
    return told.model_copy(update={"base_url": url, "model": model, "api_key": key} if url else {"model": model})


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
) -> Prompted:
    """Look for a better wording of this dataset's `interests` prompt on its validation cases; returns what was found and written.

    In each of `rounds` a few wordings are proposed by the model of the settings `proposer` (default: the one in force) and race
    against the leader. At most `model_cases` cases are used, half of their users for the race, and about `minutes` of the
    model's time. The race's winner is put in force where it beats the prompt in force on the other half (see `Race.tested`).
    Further keywords override settings, such as `base_url`. Raises EvalError for too few cases, for a store tuned on other
    data or with an adapter that writes its queries, and where no model answers; nothing is written then.
    """
    check_extra()
    dataset = Path(dataset)
    cases = validation_cases(dataset).sample(MOST_CASES, seed)
    rows, racing = _drawn(cases, model_cases, seed)
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
    told = tuned.applied(Settings.load(**settings), folder)
    proposer = (proposer or told).model_copy(update={"prompts": told.prompts})
    before = fingerprint(IN_FORCE, told)
    key = [seen, seed, model_cases, minutes, rounds, before, told.weights, tuned.evidence]
    # Beside the answers: these hold queries too, which are about people, and `evoke forget` empties that folder.
    steps = Steps(
        folder / "measured" / "unfinished-prompts.json",
        " ".join(map(str, [*key, _place(told), told.model, _place(proposer), proposer.model])),
    )
    with exclusive_lock(folder, "tuning", "tuning the prompts of"), open_measured_catalog(folder, cases.on) as catalog:
        say(f"fitting on {len(cases.events)} events before the cut")
        fusion = Fusion(told.weights, "weights" in tuned.settings, tuned.judged_fusion(folder), told.diversity)
        bench = Bench(fit_sources(cases, catalog), fusion, tuned.baselines, repeating(cases))
        judged = [cases.cases[row] for row in rows]
        scorer = Scorer(judged, bench, told, folder / "measured" / "answers.db", progress)
        race = Race(scorer, racing, steps, say)
        leader, refused = _raced(race, scorer, proposer, rounds, RACING * 60 * minutes, seed, say)
        evidence: dict[str, Any] = {
            "on": "valid", "seen": seen, "seed": seed, "model": race.scores[IN_FORCE].model, "rounds": rounds,
            "proposer": proposer.model or _place(proposer) or "embedded", "measure": "recall@100",
            "weight": told.weights.get("queries", 0.0) or JOINING, "prompt": before, "leader": leader.name, "race": race.table,
            "refused": refused,
        }  # fmt: skip
        pays = False
        if leader is not IN_FORCE:
            evidence["test"] = race.tested(leader, IN_FORCE, 60 * minutes - race.spent, seed)
            pays = evidence["test"]["pays"]
        if pays:
            place = told.prompts or folder / FOLDER
            evidence["prompt written"] = fingerprint(leader, told)
            put(leader, place, evidence)
            if told.prompts is None:
                found = {**tuned.settings, "prompts": FOLDER}
                replace(tuned, settings=found, evidence=tuned.evidence or {"on": "valid", "seen": seen}).save(folder)
    steps.finish()
    return Prompted(place if pays else None, evidence)


def _drawn(cases: Cases, most: int, seed: int) -> tuple[list[int], int]:
    """Rows of cases of users drawn at random, those of the race first; and how many these are."""
    users = sorted({case.user for case in cases.cases if case.known})
    if len(users) < 2 * LEAST_USERS:
        raise EvalError(
            f"{cases.dataset}: validation cases of {len(users)} users tell nothing of a prompt; "
            f"at least {2 * LEAST_USERS} with a history are needed"
        )
    random = np.random.default_rng(seed)
    place = dict(zip(users, random.permutation(len(users)), strict=True))
    rows = [row for row in random.permutation(len(cases)) if cases.cases[row].known]
    racing = [int(row) for row in rows if place[cases.cases[row].user] % 2]
    testing = [int(row) for row in rows if not place[cases.cases[row].user] % 2]
    half = max(most // 2, LEAST_USERS)
    return racing[:half] + testing[:half], len(racing[:half])


def _raced(
    race: Race, scorer: Scorer, proposer: Settings, rounds: int, seconds: float, seed: int, say: Say
) -> tuple[Variant, list[dict[str, str]]]:
    """The variant that leads after all rounds, and the proposals that were refused."""
    leader, refused = IN_FORCE, []
    wordings = list(dict.fromkeys(variant.wording for variant in POOL))
    race.score(IN_FORCE, FIRST)
    for drawn in range(1, rounds + 1):
        made = race.steps.step(
            f"proposals {drawn}", partial(_proposed, race, scorer, leader, proposer, wordings, seed + 100 * drawn)
        )
        race.spent += made["seconds"]
        field = list(POOL) if drawn == 1 else []
        for at, each in enumerate(made["proposals"], 1):
            wordings.append(each["wording"])
            if each["refused"]:
                refused.append(each)
            else:
                field.append(Variant(f"proposed {drawn}.{at}", each["wording"]))
        say(f"round {drawn}: {len(field)} variants race against {leader.name}")
        leader = race.winner(leader, field, seconds * drawn / rounds)
    return leader, refused


def _proposed(
    race: Race, scorer: Scorer, leader: Variant, proposer: Settings, tried: list[str], seed: int
) -> dict[str, Any]:
    """Proposals made from what the leader says, finds, and does not find; and the seconds they took."""
    started, score = time.monotonic(), race.scores[leader]
    failed = [row for row, found in enumerate(score.fused) if found == 0][:FAILURES]
    of = [scorer.cases[row] for row in failed]
    items = scorer.bench.sources.catalog.get(sorted({id for case in of for id in (*case.known, *case.targets)}))
    title = {id: item.title for id, item in items.items()}
    failures = [
        {
            "liked": [title[id] for id in case.known[-SHOWN:] if id in title],
            "queries": score.queries[row],
            "chosen": [title[id] for id in case.targets if id in title],
        }
        for row, case in zip(failed, of, strict=True)
    ]
    shown = {"task": task(leader, scorer.settings), "found": f"{score.mean()[0]:.1%}", "failures": failures}
    try:
        made = event_loop.run(proposals(proposer, shown, tried, list(title.values()), PROPOSALS, seed))
    except ModelError as error:
        raise EvalError(f"no model answers to propose wordings ({error.reason}); see `evoke model`") from error
    return {"proposals": made, "seconds": time.monotonic() - started}


def _verdict(evidence: dict[str, Any]) -> str:
    if "test" not in evidence:
        return "no variant leads the prompt in force, which stays"
    test = evidence["test"]
    if not test["cases"]:
        return f'"{evidence["leader"]}" leads, and no time is left to test it: nothing is written; give more --minutes'
    return (
        f'"{evidence["leader"]}" on {test["cases"]} other cases: recall@100 {test["after"][0]:.4f}, '
        f"in force {test['before'][0]:.4f} (p {test['p']:.3f}): "
        + ("put in force" if test["pays"] else "not shown to find more, nothing is written")
    )


def _place(settings: Settings) -> str | None:
    return without_credentials(settings.base_url) if settings.base_url else None
