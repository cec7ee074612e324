"""Tenants: each has its own store, API keys, recommender and metrics, and shares nothing with the others."""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from agent.errors import EvokeError
from agent.recommender import AsyncRecommender
from agent.serve.errors import ApiError
from agent.serve.metrics import Metrics
from agent.settings import Settings, TenantSettings
from store import Catalog, Embedder, History, paths
from store.history import database_of
from store.tables import database_identity

_OF_THE_SERVICE = {"store", "embedding_model", "serve", "tenants"}
_MODEL = ("base_url", "api_key", "model")
_HASHED = re.compile(r"sha256:([0-9a-fA-F]{64})")


@dataclass(slots=True)
class RateLimit:
    """A token bucket. A tenth of the requests of a minute may come at once."""

    per_minute: int
    left: float = field(init=False)
    at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.left = self.burst

    @property
    def burst(self) -> float:
        """Number of requests that may come at once."""
        return max(self.per_minute / 10, 1.0)

    def take(self) -> float:
        """Count one request. Return 0, or the seconds to wait if the limit is reached."""
        now = time.monotonic()
        self.left = min(self.burst, self.left + (now - self.at) * self.per_minute / 60)
        self.at = now
        if self.left < 1:
            return (1 - self.left) * 60 / self.per_minute
        self.left -= 1
        return 0.0


@dataclass(eq=False, slots=True)
class Tenant:
    """One tenant.

    `keys` are SHA-256 hashes of API keys; without any, every request is admitted. `limits` are the rate limits by key,
    `max_running` the number of requests at once, `running` their present number.
    """

    name: str
    recommender: AsyncRecommender
    keys: tuple[bytes, ...]
    limits: dict[bytes, RateLimit]
    max_running: int
    metrics: Metrics = field(default_factory=Metrics)
    running: int = 0

    def admit(self, key: bytes) -> None:
        """Count one more request in progress. Raises ApiError (429) beyond the key's rate or the tenant's concurrency."""
        if wait := self.limits[key].take():
            raise ApiError(
                429, "too many requests with this API key; slow down", code="rate_limit_exceeded", retry=wait
            )
        if self.running >= self.max_running:
            message = f"{self.max_running} requests are already in progress; try again when one is done"
            raise ApiError(429, message, code="concurrency_limit_exceeded", retry=1)
        self.running += 1


class Tenants:
    """All tenants of the service. They are opened and closed together."""

    def __init__(self, tenants: Sequence[Tenant], opened: ExitStack) -> None:
        self.all = list(tenants)
        self._opened = opened

    @classmethod
    def open(cls, settings: Settings, store: Path | None) -> Tenants:
        """Open the tenants in the settings; without any, one tenant for `store`, without API keys.

        Raises EvokeError if tenants would share a key or data, and StoreError if a store cannot be opened.
        """
        named = settings.tenants
        hashes = {name: _hash_keys(name, tenant.keys) for name, tenant in named.items()}
        _check_separate(named, hashes)
        given = settings.embedder()
        embedders = {given.name: given} if given else {}
        with ExitStack() as opened:
            if named:
                each = [
                    (name, t.store, hashes[name], _settings_for(t, hashes[name], settings)) for name, t in named.items()
                ]
            else:
                each = [("default", store or Path(), (), settings)]
            return cls([_open_tenant(*one, embedders, opened) for one in each], opened.pop_all())

    @property
    def keyless(self) -> bool:
        """Whether no tenant has API keys, so that every request is admitted."""
        return not any(tenant.keys for tenant in self.all)

    def admit(self, authorization: str | None) -> Tenant:
        """Return the tenant of an `Authorization` header, and count the request. Raises ApiError (401, 429)."""
        if self.keyless:
            self.all[0].admit(b"")
            return self.all[0]
        scheme, _, key = (authorization or "").partition(" ")
        given = hashlib.sha256(key.strip().encode("utf-8", "surrogatepass")).digest()
        found = None
        # All hashes are compared even after a match, so that the time taken reveals nothing.
        for tenant in self.all:
            for known in tenant.keys:
                if hmac.compare_digest(known, given):
                    found = tenant
        if found is None or scheme.lower() != "bearer":
            message = "unknown API key" if key else "no API key was given: send it as `Authorization: Bearer KEY`"
            raise ApiError(401, message, code="invalid_api_key")
        found.admit(given)
        return found

    async def close(self) -> None:
        """Close all recommenders and stores."""
        for tenant in self.all:
            await tenant.recommender.close()
        self._opened.close()


def _open_tenant(
    name: str,
    store: Path,
    keys: tuple[bytes, ...],
    settings: Settings,
    embedders: dict[str, Embedder],
    opened: ExitStack,
) -> Tenant:
    # Tenants with the same model share one encoder in memory. It keeps no data of a tenant.
    known = str(paths.read_store_json(store.expanduser()).get("model"))
    catalog = opened.enter_context(Catalog.open(store, create=False, embedder=embedders.get(known)))
    embedders.setdefault(catalog.embedder.name, catalog.embedder)
    history = opened.enter_context(History.open(store))
    limits = {key: RateLimit(settings.serve.rate) for key in keys or (b"",)}
    given = {name: getattr(settings, name) for name in settings.model_fields_set - _OF_THE_SERVICE}
    return Tenant(name, AsyncRecommender(catalog, history, **given), keys, limits, settings.serve.concurrency)


def _hash_keys(name: str, keys: Sequence[str]) -> tuple[bytes, ...]:
    found = []
    for key in keys:
        hashed = _HASHED.fullmatch(key.strip())
        if not hashed and (len(key) < 16 or key.startswith("sha256:")):
            raise EvokeError(
                f"tenant {name}: a key has fewer than 16 characters or is not a valid sha256 hash; use a longer one"
            )
        found.append(bytes.fromhex(hashed[1]) if hashed else hashlib.sha256(key.encode()).digest())
    return tuple(found)


def _settings_for(tenant: TenantSettings, keys: tuple[bytes, ...], settings: Settings) -> Settings:
    """Return the settings with the tenant's own model server, if any, and a salt for the prompt cache of the server."""
    own: dict[str, Any] = {name: value for name in _MODEL if (value := getattr(tenant, name)) is not None}
    if tenant.base_url and not tenant.api_key:
        own["api_key"] = "EMPTY"  # the common key is only for the common server
    # With a single tenant, the embedded model has no prompts of others.
    if len(settings.tenants) > 1 or tenant.base_url or settings.base_url:
        own["cache_salt"] = hashlib.blake2b(keys[0], digest_size=16, person=b"evoke-salt").hexdigest()
    return settings.model_copy(update=own)


def _check_separate(named: dict[str, TenantSettings], hashes: dict[str, tuple[bytes, ...]]) -> None:
    """Raise EvokeError if two tenants share a key, a store, a database or a vector collection."""
    owners: dict[Any, str] = {}
    for name, tenant in named.items():
        folder = tenant.store.expanduser()
        # A URL can be written in several ways, so the server and database behind it are compared.
        _, where, collection = paths.locate_chroma(folder, None)
        for what, value in [
            *(("key", key) for key in hashes[name]),
            ("store", folder.resolve()),
            ("database", database_identity(database_of(folder))),
            *([] if isinstance(where, Path) else [("vector collection", (_host_and_port(where), collection))]),
        ]:
            if (other := owners.setdefault((what, value), name)) != name:
                raise EvokeError(f"tenants {other} and {name} share a {what}; give each its own in evoke.toml")


def _host_and_port(url: str) -> tuple[str | None, int]:
    """Return host and port of a Chroma server, as `store.chroma` connects to it."""
    parts = urlsplit(url)
    return parts.hostname, parts.port or (443 if parts.scheme == "https" else 8000)
