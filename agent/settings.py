"""Every setting, read in one place: `EVOKE_` variables, then `evoke.toml` in the working folder, then the defaults here."""

from __future__ import annotations

from math import inf
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from agent.errors import EvokeError
from store.embedder import Embedder


def _address(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
        raise ValueError("it is no address of a server such as http://localhost:8000/v1")
    return url


Address = Annotated[str, AfterValidator(_address)]


class Serving(BaseModel):
    """`[serve]`: the bounds of `evoke serve`."""

    model_config = ConfigDict(extra="forbid")
    origins: list[str] = Field(
        default_factory=list, description="web origins whose pages may call the service (CORS); none by default"
    )
    body: int = Field(default=1_000_000, ge=1, description="bytes a request may have")
    rate: int = Field(default=1200, ge=1, description="requests a minute and key")
    concurrency: int = Field(default=256, ge=1, description="requests at once and tenant")
    deadline: float = Field(default=180, gt=0, description="seconds that an answer may take, streams included")


class TenantSettings(BaseModel):
    """`[tenants.NAME]`: a store of its own and the keys that open it, each as it is or as `sha256:` and its hash."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)
    store: Path
    keys: list[str] = Field(min_length=1, repr=False)
    base_url: Address | None = None
    api_key: str | None = Field(None, repr=False)
    model: str | None = None


class Settings(BaseSettings):
    """What can be set, with its default. Read at call time with `Settings.load()`."""

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
    base_url: Address | None = Field(
        None, validation_alias=AliasChoices("EVOKE_BASE_URL", "OPENAI_BASE_URL", "base_url")
    )
    api_key: str | None = Field(
        None, validation_alias=AliasChoices("EVOKE_API_KEY", "OPENAI_API_KEY", "api_key"), repr=False
    )
    model: str | None = None
    embedding_model: str | None = Field(
        None, description="where the store's embedding model is on this machine, if it is no package and no hub name"
    )
    deadline: float | None = Field(None, gt=0, description="seconds for all model stages of a request together")
    prompts: Path | None = Field(None, description="a folder of templates that override ours")
    concurrency: int = Field(16, ge=1, description="model calls in flight at once")
    cache_salt: str | None = Field(
        None, repr=False, description="the model server shares cached prompts only between requests of one salt (vLLM)"
    )

    weights: dict[str, float] = Field(
        default_factory=lambda: {
            "queries": 0.3,
            "named": 0.3,
            "dense": 0.3,
            "collaborative": 1.0,
            "lexical": 0.2,
            "popular": 0.1,
        },
        description="fusion weight of each channel; 0 switches it off",
    )
    decay: float = Field(0.8, gt=0, le=1, description="what a history item weighs in recall against the one after it")
    budget: int = Field(200, ge=10, description="candidates each channel may bring")
    n_queries: int = Field(21, ge=1, le=21, description="queries of a profile that are searched with, the first ones")
    diversity: float = Field(0.0, ge=0, le=1, description="0: by score alone; 1: as unlike each other as can be")
    rank_weight: float = Field(0.0, ge=0, le=1, description="share of the model's ranking in the score; 0: rank is off")
    rank_depth: int = Field(20, ge=2, description="how many candidates the model ranks")
    rank_shuffles: int = Field(1, ge=1, description="shufflings the model's ranking is averaged over")
    explain: bool = True
    reading: float | None = Field(
        None, ge=0, description="seconds that the model may read a message of a conversation along; 0: the parser alone"
    )

    serve: Serving = Serving()
    tenants: dict[str, TenantSettings] = Field(default_factory=dict, repr=False)

    @field_validator("weights")
    @classmethod
    def _are_of_channels(cls, weights: dict[str, float]) -> dict[str, float]:
        channels = cls.model_fields["weights"].get_default(call_default_factory=True)
        if unknown := weights.keys() - channels.keys():
            raise ValueError(f"there is no channel {', '.join(sorted(unknown))}; there are {', '.join(channels)}")
        if not all(0 <= weight < inf for weight in weights.values()):
            raise ValueError("a weight is a number from 0 on")
        return weights

    @property
    def seconds(self) -> float:
        """Seconds for all model stages of a request together."""
        return self.deadline or (20.0 if self.base_url else 60.0)

    @property
    def reading_seconds(self) -> float:
        """Seconds that the model may read a message along; the embedded one is too weak to better the parser."""
        return min(self.seconds, (2.0 if self.base_url else 0.0) if self.reading is None else self.reading)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  the signature is pydantic's
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments first, then the environment, then `evoke.toml`."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @classmethod
    def load(cls, **given: Any) -> Settings:
        """The settings in force now; `given` (those that are not None) go before everything else.

        Raises EvokeError in one line that names the setting.
        """
        try:
            return cls(**{name: value for name, value in given.items() if value is not None})
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            why = first["msg"].removeprefix("Value error, ")
            raise EvokeError(f"setting {name}: {why}; mend it in evoke.toml or the environment") from None
        except ValueError as error:
            raise EvokeError(f"evoke.toml cannot be read: {error}") from None

    def embedder(self) -> Embedder | None:
        """The embedding model named here; None leaves it to the store, which knows its model by name."""
        return Embedder(self.embedding_model) if self.embedding_model else None
