"""Dialogue cases: the session that users talk to answers them, before the next recommendation is known.

`base` sends the last user message to a session that was rebuilt from the messages before it, without a model. `dialogue` is
the baseline: the nearest items to the text of the last turns. Nothing is chosen on these cases.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from agent import event_loop
from agent.dialogue.session import AsyncSession
from agent.recommender import AsyncRecommender
from agent.retrieval.channels import MODEL_CHANNELS
from agent.settings import Settings
from eval.comparison.arms import DIALOGUE, parts
from eval.comparison.bench import BUDGET, Bench
from eval.data.cases import Case, Cases
from eval.progress import Progress
from store import History

TEXT = 1000
"""Last characters of a dialogue that `dialogue` encodes: encoders read a few hundred words, from the start."""


@dataclass(frozen=True, slots=True)
class DialogueLists:
    """Lists of parts that read dialogues, and the milliseconds of each case; empty where no case holds a dialogue."""

    lists: dict[str, list[list[str]]] = field(default_factory=dict)
    ms: dict[str, list[float]] = field(default_factory=dict)


def dialogue_lists(
    arms: Sequence[str], bench: Bench, cases: Cases, settings: Settings, progress: Progress
) -> DialogueLists:
    """Return the lists of the parts that read dialogues, for every case.

    Args:
        arms: names; only `base` and `dialogue` among their parts are ranked here.
        bench: what they rank with.
        cases: the cases.
        settings: the settings of the session.
        progress: shows progress.
    """
    talk = DialogueLists()
    if not any(case.dialogue for case in cases.cases):
        return talk
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        history = stack.enter_context(History.open(folder))
        ways: dict[str, Callable[[Case], list[str]]] = {
            DIALOGUE: lambda case: _nearest(case, bench),
            "base": lambda case: _answered(case, bench, recommender),
        }
        recommender = _recommender(bench, history, settings)
        wanted = [part for part in ways if any(part in parts(arm, bench.on) for arm in arms)]
        bench.sources.catalog.embedder.encode_queries(["warm"])
        with progress("dialogues answered") as advance:
            for row, case in enumerate(cases.cases, 1):
                for part in wanted:
                    started = time.perf_counter()
                    talk.lists.setdefault(part, []).append(ways[part](case))
                    talk.ms.setdefault(part, []).append((time.perf_counter() - started) * 1000)
                advance(row, len(cases))
    return talk


def _recommender(bench: Bench, history: History, settings: Settings) -> AsyncRecommender:
    """The recommender as it is in use, on what was fitted before the cut, with no model."""
    recommender = AsyncRecommender(bench.sources.catalog, history, sources=bench.sources)
    weights = dict(bench.fusion.weights) | dict.fromkeys(MODEL_CHANNELS[1:], 0.0)
    recommender.fusion = replace(bench.fusion, weights=weights)
    recommender.settings = settings.model_copy(
        update={"explain": False, "rank_weight": 0.0, "reading": 0.0, "weights": weights}
    )
    return recommender


def _answered(case: Case, bench: Bench, recommender: AsyncRecommender) -> list[str]:
    """The items of the session's answer to the last user message; of a case without a dialogue, those of `base`."""
    last = max((at for at, turn in enumerate(case.dialogue) if turn["role"] == "user"), default=None)
    if last is None:
        return bench.rank(["base"], [case])["base"][0]
    messages = case.dialogue[: last + 1]
    session = AsyncSession.of_messages(recommender, messages)
    session.n = BUDGET
    turn = event_loop.run(session.send(messages[-1]["content"]))
    excluded = set() if bench.repeats else set(case.excluded)
    return [one.item.id for one in turn.items if one.item.id not in excluded]


def _nearest(case: Case, bench: Bench) -> list[str]:
    """The nearest items to the text of the last turns."""
    text = " ".join(turn["content"] for turn in case.dialogue if turn["role"] != "system")[-TEXT:]
    if not text.strip():
        return []
    catalog, out = bench.sources.catalog, set() if bench.repeats else set(case.excluded)
    (hits,) = catalog.query(catalog.embedder.encode_queries([text]), BUDGET + len(out), None)
    return [hit.id for hit in hits if hit.id not in out][:BUDGET]
