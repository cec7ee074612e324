"""Tenants: each has a store, keys, a recommender and metrics of its own, and nothing in common with the others."""

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
from agent.serve.errors import Refused
from agent.serve.metrics import Metrics
from agent.settings import Settings, TenantSettings
from store import Catalog, Embedder, History, paths
from store.history import database_of
from store.tables import identity

_OF_THE_SERVICE = {"store", "embedding_model", "serve", "tenants"}
_MODEL = ("base_url", "api_key", "model")
_HASHED = re.compile(r"sha256:([0-9a-fA-F]{64})")


@dataclass(slots=True)
class Rate:
    """A bucket that fills evenly; a tenth of a minute's requests may come at once."""

    per_minute: int
    left: float = field(init=False)
    at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.left = self.burst

    @property
    def burst(self) -> float:
        """How many requests may come at once."""
        return max(self.per_minute / 10, 1.0)

    def take(self) -> float:
        """Take one request: 0, or the seconds until one may come."""
        now = time.monotonic()
        self.left = min(self.burst, self.left + (now - self.at) * self.per_minute / 60)
        self.at = now
        if self.left < 1:
            return (1 - self.left) * 60 / self.per_minute
        self.left -= 1
        return 0.0


@dataclass(eq=False, slots=True)
class Tenant:
    """One tenant. `keys` are SHA-256 hashes; none means that any key, or no key, is let in."""

    name: str
    recommender: AsyncRecommender
    keys: tuple[bytes, ...]
    rates: dict[bytes, Rate]
    most: int
    metrics: Metrics = field(default_factory=Metrics)
    running: int = 0

    def admit(self, key: bytes) -> None:
        """Count one more request in flight. Raises Refused (429) beyond the key's rate or the tenant's concurrency."""
        if wait := self.rates[key].take():
            raise Refused(429, "too many requests for this key; slow down", code="rate_limit_exceeded", retry=wait)
        if self.running >= self.most:
            said = f"{self.most} requests are being answered already; try again when one is done"
            raise Refused(429, said, code="concurrency_limit_exceeded", retry=1)
        self.running += 1


class Tenants:
    """All tenants of the service, opened together and closed together."""

    def __init__(self, tenants: Sequence[Tenant], opened: ExitStack) -> None:
        self.all = list(tenants)
        self._opened = opened

    @classmethod
    def open(cls, settings: Settings, store: Path | None) -> Tenants:
        """Those that `evoke.toml` names, or else one for `store`, without keys.

        Raises EvokeError where tenants would share a key or data, and StoreError where a store cannot be opened.
        """
        named = settings.tenants
        hashes = {name: _hashes(name, tenant.keys) for name, tenant in named.items()}
        _apart(named, hashes)
        given = settings.embedder()
        embedders = {given.name: given} if given else {}
        with ExitStack() as opened:
            if named:
                each = [(name, t.store, hashes[name], _for(t, hashes[name], settings)) for name, t in named.items()]
            else:
                each = [("default", store or Path(), (), settings)]
            return cls([_tenant(*one, embedders, opened) for one in each], opened.pop_all())

    @property
    def keyless(self) -> bool:
        """Whether anybody is let in."""
        return not any(tenant.keys for tenant in self.all)

    def admitted(self, authorization: str | None) -> Tenant:
        """The tenant of an `Authorization` header, with one more request in flight. Raises Refused (401, 429)."""
        if self.keyless:
            self.all[0].admit(b"")
            return self.all[0]
        scheme, _, key = (authorization or "").partition(" ")
        given = hashlib.sha256(key.strip().encode("utf-8", "surrogatepass")).digest()
        found = None
        # All hashes are compared, whichever fits: the time taken tells nothing.
        for tenant in self.all:
            for known in tenant.keys:
                if hmac.compare_digest(known, given):
                    found = tenant
        if found is None or scheme.lower() != "bearer":
            said = (
                "no API key was given: send it as `Authorization: Bearer KEY`"
                if not key
                else "this API key is not known"
            )
            raise Refused(401, said, code="invalid_api_key")
        found.admit(given)
        return found

    async def close(self) -> None:
        """Close recommenders and stores."""
        for tenant in self.all:
            await tenant.recommender.close()
        self._opened.close()


def _tenant(
    name: str,
    store: Path,
    keys: tuple[bytes, ...],
    settings: Settings,
    embedders: dict[str, Embedder],
    opened: ExitStack,
) -> Tenant:
    # One encoder in memory for all tenants that use the same model; it keeps nothing that tells one from another.
    known = str(paths.about(store.expanduser()).get("model"))
    catalog = opened.enter_context(Catalog.open(store, create=False, embedder=embedders.get(known)))
    embedders.setdefault(catalog.embedder.name, catalog.embedder)
    history = opened.enter_context(History.open(store))
    rates = {key: Rate(settings.serve.rate) for key in keys or (b"",)}
    given = {name: getattr(settings, name) for name in settings.model_fields_set - _OF_THE_SERVICE}
    return Tenant(name, AsyncRecommender(catalog, history, **given), keys, rates, settings.serve.concurrency)


def _hashes(name: str, keys: Sequence[str]) -> tuple[bytes, ...]:
    found = []
    for key in keys:
        hashed = _HASHED.fullmatch(key.strip())
        if not hashed and (len(key) < 16 or key.startswith("sha256:")):
            raise EvokeError(
                f"tenant {name}: a key is shorter than 16 characters, or no sha256 hash; make a longer one"
            )
        found.append(bytes.fromhex(hashed[1]) if hashed else hashlib.sha256(key.encode()).digest())
    return tuple(found)


def _for(tenant: TenantSettings, keys: tuple[bytes, ...], settings: Settings) -> Settings:
    """The settings with the tenant's own model server, if any, and the salt under which a server keeps its prompts apart."""
    own: dict[str, Any] = {name: value for name in _MODEL if (value := getattr(tenant, name)) is not None}
    if tenant.base_url and not tenant.api_key:
        own["api_key"] = "EMPTY"  # the common key belongs to the common server
    # A model embedded for one tenant alone has nobody else's prompts.
    if len(settings.tenants) > 1 or tenant.base_url or settings.base_url:
        own["cache_salt"] = hashlib.blake2b(keys[0], digest_size=16, person=b"evoke-salt").hexdigest()
    return settings.model_copy(update=own)


def _apart(named: dict[str, TenantSettings], hashes: dict[str, tuple[bytes, ...]]) -> None:
    """Raises EvokeError where two tenants have a key, a store or a database in common."""
    owners: dict[Any, str] = {}
    for name, tenant in named.items():
        folder = tenant.store.expanduser()
        # An address may be written in more than one way: compared is where it leads to.
        _, where, collection = paths.located(folder, None)
        for what, value in [
            *(("key", key) for key in hashes[name]),
            ("store", folder.resolve()),
            ("database", identity(database_of(folder))),
            *([] if isinstance(where, Path) else [("vectors", (_server(where), collection))]),
        ]:
            if (other := owners.setdefault((what, value), name)) != name:
                raise EvokeError(f"tenants {other} and {name} have a {what} in common; give each its own in evoke.toml")


def _server(url: str) -> tuple[str | None, int]:
    """The host and port of a Chroma server, as `store.chroma` connects to it."""
    parts = urlsplit(url)
    return parts.hostname, parts.port or (443 if parts.scheme == "https" else 8000)
