"""Errors of the recommender. Every message is one line that names the cause and the remedy."""


class EvokeError(Exception):
    """Base class of all errors that Evoke reports."""


class SessionNotFound(EvokeError):
    """There is no stored conversation with this id and user."""


class ModelError(EvokeError):
    """A model call failed. `reason` is short enough for a trace, and contains no prompt text and no secrets."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ModelDown(ModelError):
    """The model server cannot be reached, fails, or refuses access."""


class ModelSlow(ModelError):
    """There was no answer before the deadline."""


class BadAnswer(ModelError):
    """The model answered, but the answer cannot be used."""


class RequestRefused(BadAnswer):
    """The server refused the request as invalid. A prompt may be too long for the model."""


class AdapterRefused(ModelError):
    """A trained adapter does not match the model, the prompt or the server that would run it."""
