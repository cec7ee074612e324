"""What learned fusion learns from: steps of the events before the cut, each read by what other people did (cross-fitting).

Validation cases are few, and all of one period: trees taught by them learn by heart what was chosen in it, which looks good on the
cases of other people of that period and helps in no later one (eval/log/2026-11-29c).
Signals that hold the step itself would be trusted blindly; so a person's steps are read by signals fitted on other
people, and by vectors that learned from these alone.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from agent.ranking.features import Candidates
from agent.ranking.learned_fusion import rows_taught
from agent.retrieval.signals import Signals
from eval.comparison.llm_cache import Progress, quiet
from eval.data.cases import Case, Cases
from eval.fitting.sequences import Pair, by_other_people, drawn
from eval.fitting.signals import fit, table_of, turns_of
from store import Catalog
from store.snapshot import Snapshot

LESSONS = 15_000
"""Steps that are learned from at most: memory and time grow with them."""


def lessons(
    known: Cases,
    catalog: Catalog,
    *,
    repeats: bool,
    seed: int,
    silenced: Callable[[Signals], Signals] = lambda signals: signals,
    progress: Progress = quiet,
) -> tuple[Candidates, np.ndarray]:
    """Candidates of steps that people took before the cut of `known`, users in turn, and which was chosen next, (r,) bool.

    Of each step's candidates those that `Learned.fit` would draw. `silenced` is done to the signals first. Without a step that can
    be learned from, nothing is returned.
    """
    snapshot, turns = catalog.snapshot(), turns_of(catalog)
    steps = drawn(known, snapshot, LESSONS, seed)
    parts: list[tuple[Candidates, np.ndarray]] = []
    done = 0
    with progress("steps read by what others did") as advance:
        for fold, (others, places) in enumerate(by_other_people(known, steps)):
            cases = [_case(steps[at], snapshot) for at in places]
            if cases and others.events:
                signals = fit(others, catalog, None if turns is None else turns[fold])
                table, chosen = table_of(cases, silenced(signals), repeats=repeats)
                rows = rows_taught(table.case, chosen, seed)
                case = np.asarray(places)[table.case[rows]]
                parts.append((Candidates(case, table.item[rows], table.features[rows], table.names), chosen[rows]))
            done += len(places)
            advance(done, len(steps))
    if not parts:
        return Candidates(np.zeros(0, int), np.zeros(0, int), np.zeros((0, 0), np.float32), []), np.zeros(0, bool)
    case = np.concatenate([part.case for part, _ in parts])
    order = np.argsort(case, kind="stable")
    item, features = (
        np.concatenate([getattr(part, name) for part, _ in parts])[order] for name in ("item", "features")
    )
    names = parts[0][0].names
    return Candidates(case[order], item, features, names), np.concatenate([chosen for _, chosen in parts])[order]


def _case(step: Pair, snapshot: Snapshot) -> Case:
    ids = snapshot.ids
    return Case(step.user, tuple(ids[row] for row in step.history), (ids[step.chosen[0]],))
