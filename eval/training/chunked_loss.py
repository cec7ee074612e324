"""The loss of a language model's answer, computed in chunks."""

from __future__ import annotations

from typing import Any

_ROWS = 256


def chunked_cross_entropy(hidden: Any, vocabulary: Any, targets: Any, weights: Any) -> tuple[float, Any]:
    """Return the weighted sum of the cross-entropies of the target tokens, and its gradient with respect to `hidden`, (n, dim).

    Rows are computed in chunks: (n, tokens) logits at once take hundreds of megabytes, and as long as the rest of the model.

    Args:
        hidden: (n, dim) last hidden states of the model.
        vocabulary: (tokens, dim) weights of the output layer.
        targets: (n,) the right tokens.
        weights: (n,) the weight of each token in the loss.
    """
    import torch

    loss, gradient = 0.0, torch.empty_like(hidden)
    with torch.no_grad():
        for start in range(0, len(hidden), _ROWS):
            at = slice(start, start + _ROWS)
            logits = (hidden[at] @ vocabulary.T).float()
            total = logits.logsumexp(dim=1, keepdim=True)
            target = logits.gather(1, targets[at, None])
            loss += float(((total - target)[:, 0] * weights[at]).sum())
            # The gradient of the logits: the probabilities, less one for the target.
            error = logits.sub_(total).exp_()
            error.scatter_add_(1, targets[at, None], -torch.ones_like(target))
            gradient[at] = error.mul_(weights[at, None]).to(hidden.dtype) @ vocabulary
    return loss, gradient
