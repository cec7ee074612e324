"""The errors of evaluation. Every message is one line: the cause, then the remedy."""

from agent.errors import EvokeError


class EvalError(EvokeError):
    """A command of evaluation, tuning or training cannot be run as requested."""
