"""Write a small store with the code of an older version, for `tests/test_older_stores.py`.

Usage, from the root of this repository, with a checkout of the older version (PostgreSQL must be installed):

    git worktree add ../evoke-0.1.0 ba6697b
    python -m tests.older_stores.make ../evoke-0.1.0 0.1.0

It writes two files into `tests/older_stores/VERSION/`: `store.tar.gz`, a store folder with Chroma, SQLite, derived data and a
tuning result; and `history.sql`, a PostgreSQL dump of the same events, profiles and sessions. `write` and the functions after it
use the names of 0.1.0; a later version that stores something new needs its own.
"""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SESSION = "an-older-session"
MODEL = "http://localhost:8000/v1 a-model"
"""The model that the profile is kept for: its server and its name."""
YEAR = 365 * 86_400.0
NOVELS = [
    ("salt-ledger", "The Salt Ledger", 1994, ["Crime"], "A harbour clerk finds a second set of books."),
    ("night-ferry", "Night Ferry to Orsk", 2003, ["Crime", "Thriller"], "A detective shares a cabin with a suspect."),
    ("glass-orchard", "The Glass Orchard", 1987, ["Fantasy"], "Two sisters inherit trees that remember."),
    ("ninth-valve", "The Ninth Valve", 2011, ["Science Fiction"], "A crew hears knocking outside the hull."),
    ("brass-alibi", "The Brass Alibi", 1997, ["Crime"], "A trumpeter was on stage when the judge died."),
    ("lamp-oath", "The Lamplighter's Oath", 1978, ["Crime"], "A street loses its lights, then its mayor."),
    ("quiet-vault", "A Quiet Vault", 2008, ["Crime", "Thriller"], "Four retired locksmiths plan one last job."),
    ("tin-comet", "Tin Comet", 2016, ["Science Fiction", "Romance"], "A radio amateur answers a voice from orbit."),
    ("withdrawn", "A Withdrawn Book", 2001, ["Crime"], "It is no longer sold."),
]
HISTORIES = {
    "ann": ["salt-ledger", "night-ferry"],
    "eve": ["lamp-oath", "salt-ledger", "brass-alibi"],
    "bob": ["salt-ledger", "night-ferry", "quiet-vault", "tin-comet"],
    "cem": ["glass-orchard", "ninth-valve", "tin-comet"],
    "dot": ["night-ferry", "quiet-vault", "brass-alibi"],
}


def main(checkout: Path, version: str) -> None:
    """Make the fixture of this version, whose code is in the folder `checkout`."""
    from tests.helpers.services import empty_database, postgres

    folder = HERE / version
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as made, postgres() as server:
        store, url = Path(made, "store"), empty_database(server)
        environment = {**os.environ, "PYTHONPATH": str(checkout), "XDG_DATA_HOME": made, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(Path(__file__).resolve()), "--write", str(store), url]
        subprocess.run(command, check=True, cwd=checkout, env=environment)
        (folder / "store.tar.gz").write_bytes(packed(store))
        (folder / "history.sql").write_text(dumped(url), encoding="utf-8")


def packed(store: Path) -> bytes:
    """Return the folder as a .tar.gz that names neither its owner nor the time it was made."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for path in sorted(store.rglob("*")):
            info = archive.gettarinfo(path, str(path.relative_to(store)))
            info.uid = info.gid = info.mtime = 0
            info.uname = info.gname = ""
            with path.open("rb") if path.is_file() else io.BytesIO() as content:
                archive.addfile(info, content if path.is_file() else None)
    return gzip.compress(raw.getvalue(), 9, mtime=0)


def dumped(url: str) -> str:
    """Return the database as SQL statements; without what `pg_dump` adds for `psql` and for its own version alone."""
    command = ["pg_dump", "--inserts", "--no-owner", "--no-privileges", url]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    lines = (line for line in done.stdout.splitlines() if line and not line.startswith(("--", "\\", "SET ")))
    return "\n".join(lines) + "\n"


def write(store: Path, database: str) -> None:
    """Fill the store folder, and the PostgreSQL database with the same histories. Runs the older version's code."""
    from agent import Recommender
    from store import Catalog, Event, History, Item
    from store.index import refresh

    events = [
        Event(user, item, 1.5e9 + YEAR * at, rating=5.0 if user == "bob" else None, split="train" if at == 0 else None)
        for user, items in HISTORIES.items()
        for at, item in enumerate(items)
    ]
    events += [Event("ann", "glass-orchard", 1.7e9, kind="dislike"), Event("ann", "ninth-valve", 1.7e9 + 1, rating=2.0)]
    with Catalog.open(store) as catalog:
        catalog.upsert(
            Item(id, title, text, {"year": year, "genres": genres}, hidden=id == "withdrawn")
            for id, title, year, genres, text in NOVELS
        )
        for place in (str(store), database):
            with History.open(place) as history:
                history.add(events)
                history.add_once("a-post", "its-digest", [], {"accepted": 0})
                _save_profile(history)
                recommender = Recommender(catalog, history, base_url="http://127.0.0.1:9/v1", deadline=1)
                session = recommender.session("ann", SESSION)
                session._core.n = 1
                session.send("a crime novel from 1990 on")
                session.feedback("quiet-vault", "seen")
                recommender.close()
                refresh(catalog, history)
        with History.open(store) as history:
            _describe(store, catalog, history)
            _tune(store, catalog, history)


def _save_profile(history: Any) -> None:
    from agent.results import Interest, Interests, Named, Profile
    from prompts import Prompts

    profile = Profile("Likes crimes at sea.", [Interest("ships", 0.8, ["night-ferry"])], ["magic"])
    said = Interests(profile, ["a crime aboard a ship"], [Named("Night Ferry to Orsk", 2003)])
    history.save_profile("ann", HISTORIES["ann"], MODEL, Prompts().fingerprint("interests", "refresh"), said.as_json())


def _describe(store: Path, catalog: Any, history: Any) -> None:
    """Write what `evoke index` writes at its end."""
    from store import place
    from store.index import _facts

    place.describe(store, {"dataset": "novels"} | _facts(catalog, history))


def _tune(store: Path, catalog: Any, history: Any) -> None:
    """Write what `evoke tune` writes, with trees that learned from these few events."""
    import numpy as np
    from agent.features import candidates
    from agent.joined import Joined, beside, log_odds, stacked
    from agent.learned import Learned
    from agent.signals import Signals
    from agent.tuned import JOINED, JUDGED, Tuned

    from store import Cooccurrence

    snapshot = catalog.snapshot()
    signals = Signals.of(catalog, history, Cooccurrence.of(history, snapshot, store))
    rows = [np.array([snapshot.rows[item] for item in items]) for items in HISTORIES.values()]
    table = candidates(signals, [items[:-1] for items in rows], repeats=False)
    chosen = table.item == np.array([items[-1] for items in rows])[table.case]
    trees = {"seeds": (0, 1), "rounds": 4, "min_data_in_leaf": 1, "num_threads": 1}
    first = Learned.fit(table, chosen, **trees)
    named = {"named": [[int(items[-1])] for items in rows]}
    table = candidates(signals, [items[:-1] for items in rows], repeats=False, beside=beside(named))
    chosen = table.item == np.array([items[-1] for items in rows])[table.case]
    start = log_odds(first.scores(table))
    second = Learned.fit(stacked(table, start, named), chosen, start=start, **trees)
    for folder in (store / "tuned", store / "tuned" / JUDGED):
        first.save(folder)
    Joined(second, ("named",)).second.save(store / "tuned" / JOINED)
    weights = {"queries": 0.0, "named": 0.3, "dense": 0.5, "collaborative": 1.0, "lexical": 0.2, "popular": 0.1}
    Tuned(
        settings={
            "decay": 0.7,
            "budget": 150,
            "rank_shuffles": 1,
            "n_queries": 8,
            "diversity": 0.1,
            "weights": weights,
        },
        baselines={"dense": {"decay": 0.7}},
        learned=True,
        evidence={"on": "valid", "seen": "", "seed": 0, "cases": 5, "users": 5, "repeats": False, "measure": "nDCG@10"},
        joined=["named"],
    ).save(store)


if __name__ == "__main__":
    if sys.argv[1] == "--write":
        write(Path(sys.argv[2]), sys.argv[3])
    else:
        main(Path(sys.argv[1]).resolve(), sys.argv[2])
