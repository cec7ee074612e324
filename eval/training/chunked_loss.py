"""The loss of a language model's answer."""

from __future__ import annotations

from typing import Any

_ROWS = 256


def compared(hidden: Any, words: Any, right: Any, counts: Any) -> tuple[float, Any]:
    """The cross-entropy of the right tokens, (n,), each by what it counts, (n,), and its gradient by `hidden`, (n, dim).

    A few rows at a time: (n, vocabulary) numbers at once are hundreds of megabytes, which take as long as the whole model.
    """
    import torch

    loss, gradient = 0.0, torch.empty_like(hidden)
    with torch.no_grad():
        for start in range(0, len(hidden), _ROWS):
            at = slice(start, start + _ROWS)
            logits = (hidden[at] @ words.T).float()
            whole = logits.logsumexp(dim=1, keepdim=True)
            own = logits.gather(1, right[at, None])
            loss += float(((whole - own)[:, 0] * counts[at]).sum())
            wrong = logits.sub_(whole).exp_()
            wrong.scatter_add_(1, right[at, None], -torch.ones_like(own))
            gradient[at] = wrong.mul_(counts[at, None]).to(hidden.dtype) @ words
    return loss, gradient
