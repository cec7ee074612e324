"""`evoke chat` as a command, with piped input and at a terminal."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from agent.terminal.console import strip_controls
from store import Catalog, Item
from tests.helpers.faults import Hang
from tests.helpers.recommending import modelled
from tests.helpers.serving import DEAD, until

PATIENCE = 240


def command(store: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "agent.terminal.cli", "chat", "--store", str(store), *options]


def environment(base_url: str = DEAD) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("EVOKE_", "OPENAI_", "COLUMNS"))}
    return clean | {"EVOKE_BASE_URL": base_url, "TERM": "xterm", "EVOKE_READING": "0"}


def piped(store: Path, text: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(store, *options), input=text, env=environment(), capture_output=True, text=True, timeout=PATIENCE
    )


class Terminal:
    """The command at a pseudo-terminal."""

    def __init__(self, store: Path, *options: str, base_url: str = DEAD) -> None:
        self.seen = ""
        self._pid, self._fd = pty.fork()
        if self._pid == 0:
            # A process in the background of a script inherits an ignored Ctrl-C.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.execve(sys.executable, command(store, *options), environment(base_url))

    def until(self, what: str) -> str:
        """Return the output up to and including `what`, without escape sequences. Fail if it does not come."""
        end = time.monotonic() + PATIENCE
        while what not in (plain := re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.seen)):
            assert time.monotonic() < end, f"{what!r} did not come: {plain[-2000:]!r}"
            if select.select([self._fd], [], [], 0.2)[0]:
                self.seen += os.read(self._fd, 65536).decode(errors="replace")
        self.seen = plain.partition(what)[2]
        return plain.partition(what)[0] + what

    def send(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    def interrupt(self, what: str) -> str:
        """Press Ctrl-C until `what` comes. Python's readline may miss one that arrives while it reads a key."""
        pressed = time.monotonic()
        self.send("\x03")
        while what not in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.seen) and time.monotonic() < pressed + PATIENCE:
            if select.select([self._fd], [], [], 1)[0]:
                self.seen += os.read(self._fd, 65536).decode(errors="replace")
            else:
                self.send("\x03")
        return self.until(what)

    def wait_for_exit(self) -> int:
        """Return the exit status after the end of the command."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if select.select([self._fd], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self._fd, 65536).decode(errors="replace")
                except OSError:
                    break
        else:
            os.kill(self._pid, signal.SIGKILL)
        _, status = os.waitpid(self._pid, 0)
        self._pid = 0
        return os.waitstatus_to_exitcode(status)

    def close(self) -> None:
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        os.close(self._fd)


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    """Return a function that starts the command at a terminal, which is closed after the test."""
    opened: list[Terminal] = []

    def start(*args: Any, **options: Any) -> Terminal:
        opened.append(Terminal(*args, **options))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def titles(answer: str) -> list[str]:
    return re.findall(r"^\d+\. (.+? \(\d{4}\))", answer, re.MULTILINE)


def test_piped_chat_is_plain_text_and_reproducible(films: Path, films_store: Path) -> None:
    script = "films like Heat after 1980, no horror\n\n/why 1\n/constraints\n/drop 1\n/constraints\n/nonsense\n/like\n"
    done = piped(films, script)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout and ">" not in done.stdout
    first = titles(done.stdout)
    assert len(first) >= 5 and f"{first[0]} was number 1" in done.stdout
    assert "1. after 1980\n2. no Horror\n" in done.stdout
    assert "Constraint removed: after 1980.\n1. no Horror\n" in done.stdout
    assert done.stdout.endswith("There is no command /nonsense; /help lists all commands.\nUsage: /like 1\n")
    assert "explain degraded: " in done.stderr
    assert piped(films, script).stdout == done.stdout


def test_rated_and_shown_items_are_not_repeated_and_quit_ends_the_chat(films: Path) -> None:
    done = piped(
        films, "heist films\n/dislike 1\n/seen 2\n/like 3\n/like 99\nmore\n/quit\nheist films\n", "--user", "mara"
    )
    assert done.returncode == 0, done.stderr
    shown = titles(done.stdout)
    assert f"Disliked: {shown[0]}." in done.stdout and f"Seen: {shown[1]}." in done.stdout
    assert f"Liked: {shown[2]}." in done.stdout and "There is no number 99 in the list." in done.stdout
    assert len(shown) == 10 and len(set(shown)) == 10


def test_conversation_continues_by_its_id(films: Path) -> None:
    begun = piped(films, "westerns before 1970\n/save\n", "--session", "mine")
    assert "Saved. Continue with: evoke chat --session mine" in begun.stdout
    further = piped(films, "/constraints\n/why 1\nmore\n", "--session", "mine")
    assert "before 1970" in further.stdout and f"{titles(begun.stdout)[0]} was number 1" in further.stdout
    assert not set(titles(begun.stdout)) & set(titles(further.stdout)[1:])


def test_terminal_chat_has_commands_line_editing_and_history(films: Path, terminal: Any, tmp_path: Path) -> None:
    talk = terminal(films, "--session", "mine")
    talk.until("/help")
    talk.until("> ")
    talk.send("heist films\r")
    assert len(titles(talk.until("> ").replace("\r", "\n"))) >= 5
    talk.send("/like 2\r")
    talk.until("Liked: ")
    talk.until("> ")
    talk.send("/why 1\r")
    assert "was number 1" in talk.until("was number 1")
    talk.until("> ")
    talk.send("half a line")
    talk.until("half a line")  # the line is now being edited
    talk.interrupt("> ")
    talk.send("\x1b[A\r")  # arrow up: the previous line
    talk.until("was number 1")
    talk.until("> ")
    talk.send("\x04")
    talk.until("evoke chat --session mine")
    assert talk.wait_for_exit() == 0
    kept = tmp_path / "data-home" / "evoke" / "chat-history"
    assert "heist films" in kept.read_text() and stat.S_IMODE(kept.stat().st_mode) == 0o600


def test_ctrl_c_stops_the_answer_but_not_the_chat(films: Path, terminal: Any, model_server: Any) -> None:
    server = model_server(lambda body: Hang() if body.get("stream") else modelled()(body))
    talk = terminal(films, "--user", "mara", base_url=server.base_url)
    talk.until("> ")
    talk.send("heist films\r")
    talk.until("5. ")  # items are shown before the text
    until(lambda: any(request.get("stream") for request in server.requests))
    assert not server.left.is_set()
    talk.send("\x03")
    talk.until("(stopped)")
    assert server.left.wait(PATIENCE)
    talk.until("> ")
    talk.send("/like 1\r")
    talk.until("Liked: ")
    talk.until("> ")
    talk.send("/quit\r")
    assert talk.wait_for_exit() == 0


def test_store_error_ends_the_answer_but_not_the_chat(films: Path, terminal: Any) -> None:
    talk = terminal(films, "--session", "mine")
    talk.until("> ")
    with closing(sqlite3.connect(films / "history.db", timeout=60)) as db:
        db.execute("ALTER TABLE evoke_sessions RENAME TO elsewhere")
        talk.send("heist films\r")
        talk.until("no such table")
        talk.until("> ")
        db.execute("ALTER TABLE elsewhere RENAME TO evoke_sessions")
    talk.send("heist films\r")
    talk.until("5. ")
    talk.until("> ")
    talk.send("/quit\r")
    talk.until("evoke chat --session mine")
    assert talk.wait_for_exit() == 0


def test_invalid_utf_8_is_read_with_replacement_characters(films: Path, terminal: Any) -> None:
    script = b"caf\xe9 westerns\n/\xff\n/constraints\n"
    for locale in ({}, {"LC_ALL": "C"}):
        done = subprocess.run(
            command(films), input=script, env=environment() | locale, capture_output=True, timeout=PATIENCE
        )
        assert done.returncode == 0, done.stderr
        assert "There is no command /\ufffd;" in done.stdout.decode() and "1. Western\n" in done.stdout.decode()
    talk = terminal(films)
    talk.until("> ")
    os.write(talk._fd, b"caf\xe9 westerns\r")
    talk.until("5. ")
    talk.until("> ")
    talk.send("/quit\r")
    assert talk.wait_for_exit() == 0


def test_conversation_of_another_user_is_refused_in_one_line(films: Path) -> None:
    piped(films, "heist films\n", "--session", "mine", "--user", "mara")
    done = piped(films, "heist films\n", "--session", "mine", "--user", "zoe")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "another user's" in done.stderr


def test_escape_sequences_in_titles_are_removed(tmp_path: Path, embedder: Any) -> None:
    hostile = "\x1b]0;owned\x07\x1b[2J\x9b31mRed \u202eder [bold]Door[/bold]"
    catalog = Catalog.open(tmp_path / "store", embedder=embedder)
    catalog.upsert([Item("a", hostile, f"A door is painted. {hostile}", {"year": 1999, "genres": ["Drama"]})])
    catalog.close()
    done = piped(tmp_path / "store", "a door\n/like 1\n/why 1\n")
    assert done.returncode == 0, done.stderr
    assert "Red der [bold]Door[/bold]" in done.stdout
    assert not set(done.stdout + done.stderr) & set("\x1b\x07\x9b\u202e")
    assert strip_controls("👩‍🚀 naïve\tم\u200cی\r\n") == "👩‍🚀 naïveم\u200cی\n"
