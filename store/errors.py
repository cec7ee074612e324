"""Errors about stored data. Each message is one line that names cause and remedy."""


class StoreError(Exception):
    """The store, or data meant for it, cannot be used as asked."""

    def __init__(self, message: str) -> None:
        # A message quotes ids, filters and file names: line breaks and control characters in them must not reach a terminal.
        super().__init__(" ".join("".join(char if char.isprintable() else " " for char in message).split()))


class BadData(StoreError):
    """A data file holds something that is not allowed; the message names file, line and remedy."""


class StoreBusy(StoreError):
    """Another process is writing this catalog."""


class MissingExtra(StoreError):
    """An optional dependency is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f'{what} needs the extra "{extra}": pip install "evoke-rec[{extra}]"')
