"""Tests with real vLLM (make test-vllm): the model contract, complete recommendations, prefix cache, hostile text."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent import Recommender
from agent.llm.client import LLM
from store import Catalog, History
from tests.helpers.hostile_model import estimate_gain, measure_gains
from tests.helpers.model_contract import ModelContract
from tests.helpers.vllm_server import VLLM

pytestmark = pytest.mark.vllm


class TestVLLM(ModelContract):
    @pytest.fixture
    async def llm(self, vllm: VLLM) -> AsyncIterator[LLM]:
        llm = LLM(vllm.base_url)
        yield llm
        await llm.close()


def test_recommendations_of_ten_users_share_cached_prefixes(
    vllm: VLLM, films: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked, found = vllm.prefix_hits()
    with Catalog.open(films) as catalog, History.open(films) as history:
        rec = Recommender(catalog, history, base_url=vllm.base_url, rank_weight=0.2, deadline=240)
        results = [rec.recommend(user=user) for user in history.users()[:10]]
        rec.close()
    for result in results:
        assert len(result) == 10
        assert result.trace.degraded == []
        assert result.trace["profile"].tokens_out > 20
        assert result.trace["rerank"].tokens_out == 2
        assert all(r.explanation for r in result)
    asked, found = (after - before for after, before in zip(vllm.prefix_hits(), (asked, found), strict=True))
    with capsys.disabled():
        print(f"\nprefix cache over ten users: {found:.0f} of {asked:.0f} prompt tokens ({found / asked:.0%})")
    assert found / asked > 0.1


async def test_hostile_titles_do_not_rise_with_a_real_model(vllm: VLLM, capsys: pytest.CaptureFixture[str]) -> None:
    # One call at a time: batching changes the last digits of the log-probabilities, and with them some ranks.
    llm = LLM(vllm.base_url, concurrency=1)
    title = await measure_gains(llm, 50, "title")
    text = await measure_gains(llm, 5, "text")
    await llm.close()
    gain = estimate_gain(title)
    with capsys.disabled():
        print(
            f"\nhostile titles, {title.size} pairs: mean gain {gain.mean:+.4f} of a window "
            f"({gain.low:+.4f} to {gain.high:+.4f}), one-sided p {gain.p:.3f}"
        )
    assert gain.p > 0.05
    assert not text.any()
