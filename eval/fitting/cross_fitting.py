"""Cross-fitting: the steps of the events before the cut that learned fusion learns from, each read by other users' signals.

Validation cases are few, and all of one period: trees that learn from them memorise what was chosen in it, which looks good on
cases of other users of that period and helps in no later one (eval/log/2026-11-29c). Signals that hold the step itself would be
trusted blindly; so a user's steps are read by signals fitted on other users, and by vectors that learned from these alone.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from agent.ranking.features import Candidates
from agent.ranking.learned_fusion import training_rows
from eval.data.cases import Case, Cases
from eval.fitting.sequences import Pair, by_other_people, drawn
from eval.fitting.signals import fit, join_tables, table, take_rows, turns_of
from eval.progress import Progress, quiet
from store import Catalog
from store.snapshot import Snapshot

LESSONS = 15_000
"""Most steps to learn from: memory and time grow with them."""


def lessons(
    known: Cases,
    catalog: Catalog,
    *,
    repeats: bool,
    seed: int,
    without: str = "",
    progress: Progress = quiet,
) -> tuple[Candidates, np.ndarray]:
    """Return candidates of steps that users took before the cut, users in turn, and which of them was chosen next, (r,) bool.

    Of each step's candidates those that `Learned.fit` would draw; nothing where there is no step to learn from.

    Args:
        known: the cases whose events are read.
        catalog: the items; a trained encoder is read by vectors that did not learn from the user of the step.
        repeats: whether history items may come back.
        seed: draws steps and candidates.
        without: a channel whose signals are to say nothing.
        progress: shows progress.
    """
    snapshot, turns = catalog.snapshot(), turns_of(catalog)
    steps = drawn(known, snapshot, LESSONS, seed)
    parts: list[tuple[Candidates, np.ndarray]] = []
    done = 0
    with progress("steps read by other users' signals") as advance:
        for fold, (others, places) in enumerate(by_other_people(known, steps)):
            cases = [_case(steps[at], snapshot) for at in places]
            if cases and others.events:
                signals = fit(others, catalog, None if turns is None else turns[fold])
                own, chosen = table(cases, signals, repeats=repeats, without=without)
                rows = training_rows(own.case, chosen, seed)
                own = take_rows(own, rows)
                parts.append((replace(own, case=np.asarray(places)[own.case]), chosen[rows]))
            done += len(places)
            advance(done, len(steps))
    if not parts:
        return Candidates(np.zeros(0, int), np.zeros(0, int), np.zeros((0, 0), np.float32), []), np.zeros(0, bool)
    whole, chosen = join_tables([part for part, _ in parts]), np.concatenate([chosen for _, chosen in parts])
    order = np.argsort(whole.case, kind="stable")
    return take_rows(whole, order), chosen[order]


def _case(step: Pair, snapshot: Snapshot) -> Case:
    ids = snapshot.ids
    return Case(step.user, tuple(ids[row] for row in step.history), (ids[step.chosen[0]],))
