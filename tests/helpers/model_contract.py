"""Tests that every model server must pass: the embedded engine and real vLLM."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator

import pytest

from agent.errors import ModelSlow
from agent.llm.client import LLM, Deadline
from agent.profile.schemas import Written
from prompts import Prompts

LIKED = [
    {"label": n, "title": title, "text": "", "facts": facts}
    for n, (title, facts) in enumerate(
        [("Heat", "1995; Crime"), ("Ronin", "1998; Action"), ("Thief", "1981; Crime"), ("Rififi", "1955; Crime, Noir")],
        1,
    )
]
LETTERS = "ABCDEFGHIJ"


def rank_prompt(titles: list[str]) -> list[dict[str, str]]:
    candidates = [
        {"label": label, "title": title, "facts": "", "text": ""} for label, title in zip(LETTERS, titles, strict=False)
    ]
    return Prompts().render("rank", history=LIKED, request="", candidates=candidates)


class ModelContract:
    """The tests. Subclasses define the fixture `llm`, a client."""

    @pytest.fixture
    async def llm(self) -> AsyncIterator[LLM]:
        raise NotImplementedError
        yield

    async def test_model_name_is_part_of_the_cache_key(self, llm: LLM) -> None:
        assert await llm.model_name()
        assert await llm.model_name() in llm.key

    async def test_structured_answers_match_the_schema(self, llm: LLM) -> None:
        messages = Prompts().render(
            "interests", history=LIKED, parts=["profile", "queries", "named"], n_queries=8, n_named=5
        )
        reply = await llm.structured(messages, Written, max_tokens=400, deadline=Deadline(120))
        assert isinstance(reply.value, Written)
        assert reply.value.summary or reply.value.queries
        assert reply.usage.tokens_in > 50
        assert 0 < reply.usage.tokens_out <= 400
        assert reply.usage.calls == 1

    async def test_labels_have_log_probabilities(self, llm: LLM) -> None:
        titles = ["Casino", "Babe", "Collateral", "Toy Story", "Inside Man", "Titanic", "Seven", "Mulan", "Dune", "Up"]
        reply = await llm.labels(rank_prompt(titles), LETTERS, deadline=Deadline(60))
        assert len(reply.value) >= 5
        assert set(reply.value) <= set(LETTERS)
        assert all(math.isfinite(logprob) and logprob <= 1e-6 for logprob in reply.value.values())
        assert sum(math.exp(logprob) for logprob in reply.value.values()) > 0.3
        assert reply.usage.tokens_out == 1
        again = await llm.labels(rank_prompt(titles), LETTERS, deadline=Deadline(60))
        assert max(again.value, key=again.value.__getitem__) == max(reply.value, key=reply.value.__getitem__)

    async def test_text_is_streamed_in_pieces(self, llm: LLM) -> None:
        stream = llm.stream(
            [{"role": "user", "content": "Count from one to ten in words."}], max_tokens=40, deadline=Deadline(60)
        )
        pieces = [piece async for piece in stream]
        assert len(pieces) > 3
        assert stream.usage.tokens_out > 3

    async def test_closing_a_stream_frees_the_server(self, llm: LLM) -> None:
        stream = llm.stream(
            [{"role": "user", "content": "Write a very long story."}], max_tokens=2000, deadline=Deadline(60)
        )
        async for _ in stream:
            break
        await stream.aclose()
        reply = await llm.labels(rank_prompt(["Casino", "Babe"]), "AB", deadline=Deadline(30))
        assert reply.value

    async def test_deadline_is_kept(self, llm: LLM) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        with pytest.raises(ModelSlow):
            stream = llm.stream(
                [{"role": "user", "content": "Write a very long story."}], max_tokens=3000, deadline=Deadline(1.0)
            )
            async for _ in stream:
                pass
        assert loop.time() - started < 4

    async def test_many_calls_at_once(self, llm: LLM) -> None:
        replies = await asyncio.gather(
            *(llm.labels(rank_prompt(["Casino", f"Film {n}"]), "AB", deadline=Deadline(120)) for n in range(12))
        )
        assert all(reply.value for reply in replies)
