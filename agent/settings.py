"""All settings: `EVOKE_` variables first, then `evoke.toml` in the working folder, then the defaults here."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from functools import cache
from math import inf
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, AliasChoices, BaseModel, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from agent.errors import EvokeError
from store.embedder import Embedder

log = logging.getLogger("evoke")

REMOVED = {
    "decay": "a history item always weighs 0.9 of the next newer one",
    "budget": "channels always retrieve 200 items",
    "n_queries": "all queries of a profile are always searched with",
    "rank_shuffles": "the model always ranks each window of candidates once",
}
"""Settings of earlier versions, and what holds in their place."""


def without_removed(given: Mapping[str, Any], source: str = "", remedy: str = "remove it") -> dict[str, Any]:
    """Return the given settings without removed ones. Each removed one is warned about, once in the life of a process.

    Args:
        given: Values by setting.
        source: Where the settings were found, for the warning, such as " in evoke.toml".
        remedy: What to do about a removed setting, for the warning.
    """
    for name in REMOVED:
        if name in given:
            _warn_removed(name, f"{name}{source}", remedy)
    return {name: value for name, value in given.items() if name not in REMOVED}


@cache
def _warn_removed(name: str, shown: str, remedy: str) -> None:
    log.warning("%s is no longer a setting; %s: %s", shown, remedy, REMOVED[name])


def _check_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
        raise ValueError("not a server URL such as http://localhost:8000/v1")
    return url


ServerURL = Annotated[str, AfterValidator(_check_url)]


class Serving(BaseModel, extra="forbid"):
    """`[serve]`: limits of `evoke serve`."""

    origins: list[str] = []  # web origins whose pages may call the service (CORS)
    body: int = Field(default=1_000_000, ge=1)  # size limit of a request in bytes
    rate: int = Field(default=1200, ge=1)  # requests per minute and API key
    concurrency: int = Field(default=256, ge=1)  # requests of a tenant that are processed at once
    deadline: float = Field(default=180, gt=0)  # time limit of an answer in seconds, streams included


class TenantSettings(BaseModel, extra="forbid", hide_input_in_errors=True):
    """`[tenants.NAME]`: a tenant's own store and API keys. A key is given in plain text or as `sha256:` and its hash."""

    store: Path
    keys: list[str] = Field(min_length=1, repr=False)
    base_url: ServerURL | None = None
    api_key: str | None = Field(None, repr=False)
    model: str | None = None


class Settings(BaseSettings):
    """All settings with their defaults. Read them at call time with `Settings.load()`."""

    model_config = SettingsConfigDict(
        env_prefix="EVOKE_",
        env_nested_delimiter="__",
        toml_file="evoke.toml",
        extra="forbid",
        populate_by_name=True,
        env_ignore_empty=True,
        hide_input_in_errors=True,
    )

    store: Path | None = None
    base_url: ServerURL | None = Field(
        None, validation_alias=AliasChoices("EVOKE_BASE_URL", "OPENAI_BASE_URL", "base_url")
    )
    api_key: str | None = Field(
        None, validation_alias=AliasChoices("EVOKE_API_KEY", "OPENAI_API_KEY", "api_key"), repr=False
    )
    model: str | None = None
    embedding_model: str | None = None
    """Folder of the store's embedding model on this machine, if it is not a package or a hub name."""
    deadline: float | None = Field(None, gt=0)
    """Time limit for all model stages of a request together, in seconds."""
    prompts: Path | None = None
    """Folder of prompt templates that override the built-in ones."""
    concurrency: int = Field(16, ge=1)
    """Model calls at once."""
    cache_salt: str | None = Field(None, repr=False)
    """vLLM shares cached prompts only between requests with the same salt."""

    weights: dict[str, float] = {
        "queries": 0.3,
        "named": 0.3,
        "dense": 0.3,
        "collaborative": 1.0,
        "lexical": 0.2,
        "popular": 0.1,
    }
    """Fusion weight of each channel; 0 switches a channel off."""
    diversity: float = Field(0.0, ge=0, le=1)
    """0: order by score only; 1: shown items as different as possible."""
    rank_weight: float = Field(0.0, ge=0, le=1)
    """Share of the model's ranking in the score; 0 switches ranking off."""
    rank_depth: int = Field(20, ge=2)
    """Number of candidates that the model ranks."""
    explain: bool = True
    reading: float | None = Field(None, ge=0)
    """Timeout of the LLM parser of chat messages in seconds; 0 uses the rules only."""

    serve: Serving = Serving()
    tenants: dict[str, TenantSettings] = Field({}, repr=False)

    @field_validator("weights")
    @classmethod
    def _check_weights(cls, weights: dict[str, float]) -> dict[str, float]:
        channels = cls.model_fields["weights"].get_default(call_default_factory=True)
        if unknown := weights.keys() - channels.keys():
            raise ValueError(f"there is no channel {', '.join(sorted(unknown))}; there are {', '.join(channels)}")
        if not all(0 <= weight < inf for weight in weights.values()):
            raise ValueError("a weight must be a finite number of at least 0")
        return weights

    @property
    def deadline_seconds(self) -> float:
        """Time limit for all model stages of a request together, in seconds."""
        return self.deadline or (20.0 if self.base_url else 60.0)

    @property
    def parser_seconds(self) -> float:
        """Timeout of the LLM parser in seconds; 0 for the embedded model, which is too weak to improve on the rules."""
        return min(self.deadline_seconds, (2.0 if self.base_url else 0.0) if self.reading is None else self.reading)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  the signature is pydantic's
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources by priority: arguments, environment, `evoke.toml`."""
        return init_settings, env_settings, _Toml(settings_cls)

    @classmethod
    def load(cls, **given: Any) -> Settings:
        """Return the current settings. Arguments that are not None override all other sources.

        Raises EvokeError with one line that names the setting.
        """
        given = without_removed({name: value for name, value in given.items() if value is not None})
        for variable, value in os.environ.items():
            name = variable.lower().removeprefix("evoke_")
            if name in REMOVED and name != variable.lower() and value:
                _warn_removed(name, variable, "remove it")
        try:
            return cls(**given)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            why = first["msg"].removeprefix("Value error, ")
            raise EvokeError(f"setting {name}: {why}; fix it in evoke.toml or the environment") from None
        except ValueError as error:
            raise EvokeError(f"evoke.toml cannot be read: {error}") from None

    def embedder(self) -> Embedder | None:
        """Return the embedding model of the settings; None if the store's own record of its model is to be used."""
        return Embedder(self.embedding_model) if self.embedding_model else None


class _Toml(TomlConfigSettingsSource):
    """The settings in `evoke.toml`."""

    def __call__(self) -> dict[str, Any]:
        return without_removed(super().__call__(), " in evoke.toml")
