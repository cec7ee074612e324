"""What can go wrong in the recommender. Every message is one line that names the remedy."""


class EvokeError(Exception):
    """Evoke cannot do what was asked."""


class SessionNotFound(EvokeError):
    """No conversation is kept under this id, for this user."""


class ModelError(EvokeError):
    """A model call failed; `reason` is short enough for a trace and holds no prompt text and no secret."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ModelDown(ModelError):
    """The model server cannot be reached, or fails, or refuses us."""


class ModelSlow(ModelError):
    """The deadline passed before the answer was there."""


class BadAnswer(ModelError):
    """The model answered, but with nothing that can be used."""


class RequestRefused(BadAnswer):
    """The server does not take the request as it is: a prompt may be too long for the model."""


class AdapterRefused(ModelError):
    """A trained adapter does not belong to what would run with it."""
