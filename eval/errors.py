"""What can go wrong in measuring. Every message is one line that names the remedy."""

from agent.errors import EvokeError


class EvalError(EvokeError):
    """A measurement cannot be made as asked."""
