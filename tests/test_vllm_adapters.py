"""One adapter in the embedded engine and in real vLLM (make test-adapters): the same answers, except for rounding."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from agent.llm.adapters import Adapter
from agent.llm.client import LLM, Deadline
from tests.helpers.adapters import LABELS, Messages, best_label, gap, ranking_samples
from tests.helpers.vllm_server import VLLM

pytestmark = pytest.mark.vllm

CLEAR = 0.5
"""The least difference in nats between the two best labels; below it, the rounding of 4-bit weights may decide."""


async def score_labels(llm: LLM, asked: Sequence[Messages], adapter: Adapter | None) -> list[dict[str, float]]:
    replies = (llm.labels(messages, LABELS, deadline=Deadline(3000), adapter=adapter) for messages in asked)
    return [reply.value for reply in await asyncio.gather(*replies)]


async def test_adapter_gives_the_same_labels_in_both_engines(
    adapted_vllm: VLLM, rank_adapter: Adapter, films_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = ranking_samples(films_store, 200, seed=5)
    asked = [sample.messages for sample in samples]
    shares, firsts = {}, {}
    for name, adapter in {"plain": None, "adapter": rank_adapter}.items():
        embedded, served = LLM.embedded(), LLM(adapted_vllm.base_url)
        ours, theirs = await asyncio.gather(
            score_labels(embedded, asked, adapter), score_labels(served, asked, adapter)
        )
        await embedded.close()
        await served.close()
        firsts[name] = [best_label(labels) for labels in theirs]
        same = np.array([best_label(a) == best_label(b) for a, b in zip(ours, theirs, strict=True)])
        clear = np.array([min(gap(a), gap(b)) > CLEAR for a, b in zip(ours, theirs, strict=True)])
        clear_there = np.array([gap(labels) > CLEAR for labels in theirs])
        clear_here = np.array([gap(labels) > CLEAR for labels in ours])
        shares[name] = float(same[clear_there].mean())
        right = np.mean([first == sample.answer for first, sample in zip(firsts[name], samples, strict=True)])
        with capsys.disabled():
            print(
                f"\n{name}: the same first label on {same.mean():.1%} of 200, on {same[clear_there].mean():.1%} of the "
                f"{clear_there.sum()} that are clear by {CLEAR} nats through vLLM, on {same[clear_here].mean():.1%} of the "
                f"{clear_here.sum()} through the embedded engine, {same[clear].mean():.1%} of {clear.sum()} through both; "
                f"right {right:.1%}"
            )
    assert firsts["plain"] != firsts["adapter"]
    assert shares["adapter"] >= 0.95
