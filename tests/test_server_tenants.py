"""Tenants, API keys and limits."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from agent.errors import EvokeError
from agent.serve.tenants import Tenants
from agent.settings import Settings
from store import Catalog, StoreError, paths
from tests.helpers.faults import Text
from tests.helpers.recommending import modelled
from tests.helpers.serving import served, until

LEFT, RIGHT = "sk-left-0123456789abcdef", "sk-right-0123456789abcdef"
ONLY_LEFT = "heat-1995"


@pytest.fixture
def two(films_store: Path, tmp_path: Path, model_server: Any) -> Iterator[Any]:
    """Two tenants on one model server. The catalog of the right one lacks a film."""
    left, right = (shutil.copytree(films_store, tmp_path / name) for name in ("left", "right"))
    with Catalog.open(right) as catalog:
        catalog.delete([ONLY_LEFT])
    hashed = "sha256:" + hashlib.sha256(RIGHT.encode()).hexdigest()
    tenants = {"left": {"store": left, "keys": [LEFT]}, "right": {"store": right, "keys": [hashed]}}
    model = model_server(modelled())
    with served(base_url=model.base_url, tenants=tenants) as made:
        made.model = model  # type: ignore[attr-defined]
        yield made


def test_tenants_cannot_access_each_others_data(two: Any) -> None:
    left, right = two.http(LEFT), two.http(RIGHT)
    # Items.
    request = {"text": "Heat, Los Angeles crew and a detective", "n": 20}
    ids = [
        {row["id"] for row in http.post("/v1/recommendations", json=request).json()["items"]} for http in (left, right)
    ]
    assert ONLY_LEFT in ids[0]
    assert ONLY_LEFT not in ids[1]
    event = {"events": [{"user": "u1", "item": ONLY_LEFT, "kind": "like", "timestamp": 1}]}
    assert left.post("/v1/events", json=event).json()["accepted"] == 1
    assert right.post("/v1/events", json=event).json()["rejected"][0]["index"] == 0
    # Histories: the right tenant neither sees nor deletes a user of the left one.
    assert left.post("/v1/recommendations", json={"user": "u1"}).json()["profile"] is not None
    assert right.post("/v1/recommendations", json={"user": "u1"}).json()["profile"] is None
    assert right.delete("/v1/users/u1").status_code == 404
    # Idempotency keys: the same key is a different one for the other tenant.
    key = {"Idempotency-Key": "one"}
    assert left.post("/v1/events", json=event, headers=key).status_code == 200
    assert right.post("/v1/events", json={"events": []}, headers=key).json() == {"accepted": 0, "rejected": []}
    # Sessions.
    message = {"model": "evoke", "messages": [{"role": "user", "content": "a heist"}]}
    two.openai(LEFT).chat.completions.create(**message, extra_body={"session": "s1"})
    assert left.get("/v1/sessions/s1").status_code == 200
    assert right.get("/v1/sessions/s1").status_code == 404
    assert right.post("/v1/sessions/s1/feedback", json={"item": "ronin-1998", "kind": "like"}).status_code == 404
    two.openai(RIGHT).chat.completions.create(**message, extra_body={"session": "s1"})
    assert len(left.get("/v1/sessions/s1").json()["turns"]) == 2
    assert left.delete("/v1/users/u1").json()["deleted"]
    # Metrics.
    accepted = 'evoke_events_total{outcome="accepted"} 2.0'
    until(lambda: accepted in left.get("/metrics").text)
    assert accepted not in right.get("/metrics").text
    assert "left" not in right.get("/metrics").text


def test_tenants_share_no_cached_prompt(two: Any) -> None:
    salts = []
    for key in (LEFT, RIGHT, LEFT):
        before = len(two.model.requests)
        two.http(key).post("/v1/recommendations", json={"text": "a heist", "n": 2})
        salts.append({body.get("cache_salt") for body in two.model.requests[before:]})
    assert all(len(found) == 1 and None not in found for found in salts)
    assert salts[0] == salts[2] != salts[1]
    assert not any(key in json.dumps(two.model.requests) for key in (LEFT, RIGHT))


def test_wrong_keys_are_refused_and_never_logged(two: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        for key in ("sk-wrong-0123456789abcdef", LEFT[:-1], hashlib.sha256(RIGHT.encode()).hexdigest(), "\u00e9"):
            answer = two.http().get("/v1/models", headers={b"Authorization": f"Bearer {key}".encode()})
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
        assert two.http().get("/metrics").status_code == 401
        assert two.http().get("/v1/nowhere").status_code == 401
        assert two.http(LEFT).get("/v1/models").status_code == 200
        with pytest.raises(openai.AuthenticationError):
            two.openai("sk-wrong-0123456789abcdef").models.list()
    ours = [record for record in caplog.records if record.name.split(".")[0] not in ("httpx", "httpcore", "openai")]
    assert not any("sk-" in record.getMessage() for record in ours)
    for path in ("/", "/healthz", "/readyz"):
        answer = two.http().get(path)
        assert answer.status_code == 200
        assert "left" not in answer.text


def test_rate_limit_of_a_key(service: Any) -> None:
    http = service(serve={"rate": 20}).http()
    answers = [http.get("/v1/models") for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 429, 429]
    assert 1 <= int(answers[2].headers["Retry-After"]) <= 3
    assert answers[2].json()["error"]["type"] == "rate_limit_error"
    assert http.get("/healthz").status_code == 200


def test_concurrency_limit_of_a_tenant(service: Any) -> None:
    made = service(Text("word " * 400, pause=0.05), serve={"concurrency": 1})
    request = {"model": "evoke", "messages": [{"role": "user", "content": "a heist"}]}
    with made.openai().chat.completions.create(**request, stream=True) as stream:
        next(iter(stream))
        with pytest.raises(openai.RateLimitError, match="already in progress"):
            made.openai().models.list()
    until(lambda: made.http().get("/v1/models").status_code == 200)


def test_only_configured_origins_are_allowed(service: Any) -> None:
    http = service(serve={"origins": ["https://shop.example"]}).http()
    for origin, allowed in (("https://shop.example", "https://shop.example"), ("https://other.example", None)):
        answer = http.get("/v1/models", headers={"Origin": origin})
        assert answer.headers.get("access-control-allow-origin") == allowed


def test_model_server_that_refuses_cache_salt_is_used_without(films_store: Path, model_server: Any) -> None:
    from tests.helpers.faults import Status

    def picky(body: dict[str, Any]) -> Any:
        return Status(400, param="cache_salt") if "cache_salt" in body else Text("1. Fine.")

    model = model_server(picky)
    tenants = {"only": {"store": films_store, "keys": [LEFT], "base_url": model.base_url}}
    with served(tenants=tenants) as made:
        answer = made.http(LEFT).post("/v1/recommendations", json={"text": "a heist", "n": 2}).json()
    assert len(model.requests) == 2
    assert answer["trace"]["degraded"] == []


@pytest.mark.parametrize(
    ("right", "complaint"),
    [
        ({"store": "left"}, "share a store"),
        ({"keys": [LEFT]}, "share a key"),
        ({"keys": ["short"]}, "fewer than 16"),
        ({"keys": ["sha256:nothex"]}, "not a valid sha256 hash"),
        ({"keys": []}, "setting tenants.right.keys"),
    ],
)
def test_tenants_that_share_a_store_or_key_are_refused(tmp_path: Path, right: dict[str, Any], complaint: str) -> None:
    tenants = {
        "left": {"store": tmp_path / "left", "keys": [LEFT]},
        "right": {"store": tmp_path / "right", "keys": [RIGHT]} | right,
    }
    if "store" in right:
        tenants["right"]["store"] = tmp_path / "left" / ".." / "left"
    with pytest.raises(EvokeError, match=complaint) as caught:
        Tenants.open(Settings.load(tenants=tenants), None)
    assert LEFT not in str(caught.value)


@pytest.mark.parametrize(
    ("what", "left", "right"),
    [
        ("database", "postgresql://evoke@127.0.0.1/shared", "postgresql://evoke@127.0.0.1/shared"),
        (
            "database",
            "postgresql://evoke@db.example/shared",
            "postgres://evoke:word@DB.example:5432/shared?sslmode=require",
        ),
        ("database", "postgresql://evoke@/shared?host=db.example", "postgresql+psycopg://other@db.example/shared"),
        ("database", "sqlite:///FOLDER/right/history.db", None),
        ("chroma", "http://h:8000", "http://h:8000/evoke"),
        ("chroma", "http://h", "http://H:8000/"),
    ],
)
def test_tenants_that_share_a_database_are_refused(tmp_path: Path, what: str, left: str, right: str | None) -> None:
    shared = {"database": "database", "chroma": "vector collection"}[what]
    with pytest.raises(EvokeError, match=f"share a {shared}"):
        Tenants.open(_tenants_at(tmp_path, what, left, right), None)


@pytest.mark.parametrize(
    ("what", "left", "right"),
    [
        ("database", "postgresql://evoke@127.0.0.1/left", "postgresql://evoke@127.0.0.1/right"),
        ("database", "postgresql://evoke@127.0.0.1:5432/shared", "postgresql://evoke@127.0.0.1:5433/shared"),
        (
            "database",
            "postgresql://evoke@h/s?options=-csearch_path%3Da",
            "postgresql://evoke@h/s?options=-csearch_path%3Db",
        ),
        ("chroma", "http://h:8000/left", "http://h:8000"),
    ],
)
def test_tenants_with_separate_databases_on_one_server_are_accepted(
    tmp_path: Path, what: str, left: str, right: str
) -> None:
    with pytest.raises(StoreError):  # the check passes, and opening fails because the stores do not exist
        Tenants.open(_tenants_at(tmp_path, what, left, right), None)


def _tenants_at(folder: Path, what: str, left: str, right: str | None) -> Settings:
    tenants = {}
    for name, key, url in (("left", LEFT, left), ("right", RIGHT, right)):
        (folder / name).mkdir()
        paths.update_store_json(folder / name, {what: url.replace("FOLDER", str(folder))} if url else {})
        tenants[name] = {"store": folder / name, "keys": [key]}
    return Settings.load(tenants=tenants)


def test_invalid_configuration_is_reported_in_one_line(films_store: Path, tmp_path: Path) -> None:
    def serve(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "agent.terminal.cli", "serve", "--port", "0", *words]
        root = Path(__file__).parent.parent
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(root)})

    open_to_all = serve("--store", str(films_store), "--host", "0.0.0.0")
    assert open_to_all.returncode == 1
    assert "define tenants with keys in evoke.toml" in open_to_all.stderr
    (tmp_path / "evoke.toml").write_text(f'[tenants.only]\nstore = "{films_store}"\nkeys = ["{LEFT}"]\nstoer = 1\n')
    misspelt = serve()
    assert misspelt.returncode == 1
    assert "tenants.only.stoer" in misspelt.stderr
    assert LEFT not in misspelt.stderr
    for done in (open_to_all, misspelt):
        assert len(done.stderr.splitlines()) == 1
