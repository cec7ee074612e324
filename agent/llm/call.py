"""What every stage that calls the model is given."""

from __future__ import annotations

from dataclasses import dataclass

from agent.llm.adapters import Adapter
from agent.llm.client import Connect, Deadline
from agent.results import Stage
from prompts import Prompts


@dataclass(frozen=True, slots=True)
class ModelCall:
    """The model as one stage of one request may call it.

    Args:
        connect: gives the client, connected on first use; raises ModelError where there is no model.
        prompts: the templates.
        deadline: the moment after which no answer is waited for.
        stage: where the stage writes its tokens, notes and what degraded.
        adapter: a trained adapter for this stage's task, where there is one.
    """

    connect: Connect
    prompts: Prompts
    deadline: Deadline
    stage: Stage
    adapter: Adapter | None = None
