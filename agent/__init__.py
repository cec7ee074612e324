"""The recommender: interests, recall, fusion, rank, explain. `from agent import Recommender` is the way in."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agent.dialogue.session import AsyncSession
    from agent.errors import EvokeError, ModelError
    from agent.recommender import AsyncRecommender
    from agent.results import Profile, Recommendation, Result
    from agent.sync import Recommender, Session

__all__ = [
    "AsyncRecommender",
    "AsyncSession",
    "EvokeError",
    "ModelError",
    "Profile",
    "Recommendation",
    "Recommender",
    "Result",
    "Session",
]

_HOME = {
    "AsyncRecommender": "recommender",
    "AsyncSession": "dialogue.session",
    "EvokeError": "errors",
    "ModelError": "errors",
    "Profile": "results",
    "Recommendation": "results",
    "Recommender": "sync",
    "Result": "results",
    "Session": "sync",
}


def __getattr__(name: str) -> Any:
    # Loaded on first use, so that importing the package costs nothing.
    if name not in _HOME:
        raise AttributeError(f"module 'agent' has no attribute {name!r}")
    return getattr(import_module(f"agent.{_HOME[name]}"), name)
