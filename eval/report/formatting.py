"""How numbers and measures are written, in the terminal and on the page."""

from __future__ import annotations

NAMES = {
    "recall": "R",
    "ndcg": "nDCG",
    "mrr": "MRR",
    "exclusive": "excl",
    "ms_p50": "p50",
    "ms_p90": "p90",
    "calls": "calls",
    "tokens_in": "tokens in",
    "tokens_out": "tokens out",
}
# The main ones first: a phone shows no more of the table at once.
QUALITY = ("ndcg@10", "recall@10", "recall@100", "mrr", "recall@5", "recall@50", "exclusive@100")
COST = ("ms_p50", "ms_p90", "calls", "tokens_in", "tokens_out")
SHOWN = ("coverage@10", "novelty@10", "diversity@10", "gini@10", "popularity@10")


def name_of(measure: str) -> str:
    """The measure as a heading: "ndcg@10" is "nDCG@10"."""
    family, at, k = measure.partition("@")
    return f"{NAMES.get(family, family)}{at}{k}"


def written(measure: str, value: float | None) -> str:
    """The value as it is written for this measure: ".191", "4.2 ms", "1,204"."""
    if value is None:
        return "–"
    if measure.startswith("ms"):
        return duration(value)
    if measure.startswith(("tokens", "calls", "popularity")):
        return f"{value:,.0f}" if value >= 10 or value == round(value) else f"{value:.1f}"
    if measure.startswith("novelty"):
        return f"{value:.1f}"
    return share(value)


def share(value: float | None) -> str:
    """Three decimals without the leading zero."""
    if value is None:
        return "–"
    text = f"{value:.3f}"
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text


def signed(value: float) -> str:
    """A difference, with its sign; one that rounds to nothing is "+.000"."""
    value = round(value, 3) + 0.0  # never -0.0
    return share(value) if value < 0 else f"+{share(value)}"


def duration(milliseconds: float) -> str:
    """Milliseconds, or seconds from one on."""
    if milliseconds >= 1000:
        return f"{milliseconds / 1000:.1f} s"
    return f"{milliseconds:.0f} ms" if milliseconds >= 10 else f"{milliseconds:.1f} ms"


def probability(p: float) -> str:
    """A p value, as "p=.012" or "p<.001"."""
    return "p<.001" if p < 0.001 else f"p={share(p)}"


def bounds(low: float | None, high: float | None) -> str:
    """An interval in brackets, or nothing."""
    return "" if low is None or high is None else f"[{share(low)}, {share(high)}]"
