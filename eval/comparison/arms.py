"""The arms of a comparison, by name: ways to rank the catalog for a history, from one channel to everything fused.

dense, queries, ...   one channel, or one baseline
base                  everything fused, no model call; base-x leaves channel x out
full, full-x          base with the model's channels and reranking, as far as tuning left them on; the same without x
a+b                   fused by reciprocal ranks: equally, dense+queries and dense+named by the weight and the first places of the
                      channel that tuning found; with base by the weights of the settings
a+rank                the first items of a reranked by the model
any-retriever         the same with the untrained encoder (before `evoke train retriever`)
any-adapter           the same with the untrained language model (before `evoke train queries` and `evoke train rank`)
any-training          the same with both untrained
"""

from __future__ import annotations

from collections.abc import Sequence

from agent.retrieval.channels import CHANNELS, MODEL_CHANNELS
from eval.comparison.baselines import BASELINES
from eval.errors import EvalError

RANK = "rank"
"""The part of an arm that says that the model reranks what the others retrieve."""
DIALOGUE = "dialogue"
"""The baseline that reads a dialogue's text."""
TRAINED = ("retriever", "adapter", "training")
"""Endings of an arm that leave out a trained part."""
MODEL_FREE = ("dense", "collaborative", "lexical", "popular")
"""The channels of `base`."""
DEFAULT = ("base", *MODEL_FREE, "last-item", "mean-history", "item-knn", "ease", "star")

Parts = tuple[str, ...]


def trained_part(arm: str) -> tuple[str, str]:
    """Return the arm without its ending, and the trained part of TRAINED that it leaves out ("" for none)."""
    whole, _, out = arm.rpartition("-")
    return (whole, out) if out in TRAINED else (arm, "")


def parts(arm: str, on: Sequence[str] = MODEL_CHANNELS) -> Parts:
    """Return the parts that an arm fuses, RANK last; the arm alone where it fuses none. A trained part that it leaves out is none.

    Args:
        arm: the name.
        on: the model's channels (and RANK) that are on, which `full` holds. Raises EvalError for an unknown arm.
    """
    found: list[str] = []
    for part in trained_part(arm)[0].split("+"):
        whole, _, out = part.partition("-")
        if part == "full" or (whole == "full" and out in (*CHANNELS, RANK)):
            found += ["base" if out in ("", *MODEL_CHANNELS, RANK) else f"base-{out}", *(c for c in on if c != out)]
        elif part in {*CHANNELS, *BASELINES, DIALOGUE, "base"} or (part == RANK and found):
            found.append(part)
        else:
            known = ", ".join((*CHANNELS, *BASELINES, DIALOGUE, "base", "full"))
            raise EvalError(
                f'there is no arm "{part}"; there are {known}; a+b fuses two, full-x leaves x out, a+rank reranks, and '
                "the ending -retriever, -adapter or -training leaves out that trained part"
            )
    return tuple(sorted(dict.fromkeys(found), key=lambda single: single == RANK))


def base_of(plan: Sequence[str]) -> str | None:
    """Return the part of an arm that is `base` or `base-x`, if it has one."""
    return next((part for part in plan if left_out(part) is not None), None)


def left_out(part: str) -> str | None:
    """Return the channel that "base-x" leaves out, "" for "base", None for any other part."""
    return part.removeprefix("base").removeprefix("-") if part == "base" or part.startswith("base-") else None
