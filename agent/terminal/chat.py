"""`evoke chat`: a conversation in the terminal. Items appear at once, then the text as it is written; plain text if piped."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from agent.dialogue.events import Done, Items, Understanding, Words
from agent.dialogue.session import FeedbackKind
from agent.dialogue.templates import title_with_year
from agent.errors import EvokeError
from agent.item_text import facts
from agent.results import Recommendation
from agent.sync import Session
from agent.terminal.console import strip_controls
from prompts import PromptError
from store import Catalog, Item
from store.errors import StoreError
from store.paths import typed_lines

HELP = """\
Write what you would like in your own words. Then refine it: "newer", "less violent", "more like the second".
  /like 2, /dislike 1, /seen 3    rate an item; the next answer takes it into account
  /why 1                          show why an item was recommended
  /compare 1 2                    compare two items
  /constraints, /drop 1           list the constraints of all answers; remove one
  /save                           save the conversation, and show how to continue it
  /help, /quit                    show this text; leave (also Ctrl-D; Ctrl-C stops an answer)"""
_NUMBERED = re.compile(r"^\d+\. ", re.MULTILINE)


def chat(session: Session, catalog: Catalog) -> None:
    """Answer messages from stdin until it ends. Bytes that are not text are read as `\ufffd`.

    If an answer fails, a terminal shows the error and goes on; piped input ends with EvokeError, StoreError or PromptError.
    """
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    talk = Talk(session, catalog, interactive)
    if not interactive:
        for line in sys.stdin:
            if not talk.handle(line):
                return
        return
    talk.show("Evoke. Write what you would like to find; /help lists all commands.", "dim")
    with _line_editing():
        while True:
            try:
                if not talk.handle(input("\n\x01\033[1m\x02>\x01\033[0m\x02 ")):
                    break
            except KeyboardInterrupt:
                talk.show("")
            except EOFError:
                talk.show("")
                break
            except (EvokeError, StoreError, PromptError) as error:
                talk.show(str(error), "red")
    if session.state.messages:
        talk.show(f"Continue later with: evoke chat --session {session.id}", "dim")


class Talk:
    """The commands of the chat, and the output of answers."""

    def __init__(self, session: Session, catalog: Catalog, interactive: bool) -> None:
        self._session = session
        self._catalog = catalog
        self._interactive = interactive
        self._commands: dict[str, tuple[Callable[..., None], int]] = {
            "/like": (lambda number: self._rate(number, "like"), 1),
            "/dislike": (lambda number: self._rate(number, "dislike"), 1),
            "/seen": (lambda number: self._rate(number, "seen"), 1),
            "/why": (self._why, 1),
            "/compare": (self._compare, 2),
            "/constraints": (self._constraints, 0),
            "/drop": (self._drop, 1),
            "/save": (self._save, 0),
            "/help": (lambda: self.show(HELP), 0),
        }
        self._out = Console(highlight=False, soft_wrap=not interactive)
        self._err = Console(stderr=True, highlight=False, soft_wrap=not interactive)

    def handle(self, line: str) -> bool:
        """Answer a message or run a command. Return False if the command is /quit."""
        message = line.strip()
        if not message:
            return True
        if not message.startswith("/"):
            self.answer(message)
            return True
        name, *numbers = message.split()
        if name == "/quit":
            return False
        if name not in self._commands:
            self.show(f"There is no command {name}; /help lists all commands.")
            return True
        command, wanted = self._commands[name]
        if len(numbers) != wanted or not all(number.isdecimal() for number in numbers):
            self.show(f"Usage: {name}{' 1 2'[: 2 * wanted]}")
        else:
            command(*map(int, numbers))
        return True

    def _why(self, number: int) -> None:
        if self._listed(number):
            self.answer(f"why {number}?")

    def _compare(self, one: int, other: int) -> None:
        if self._listed(one) and self._listed(other):
            self.answer(f"compare {one} and {other}")

    def answer(self, message: str) -> None:
        """Show the answer to a message as it is written. At a terminal, Ctrl-C stops it."""
        if not self._interactive:
            turn = self._session.send(message)
            self.show(turn.text)
            self._show_degraded(turn.degraded)
            return
        text, waiting, degraded = "", list[Text](), list[dict[str, str]]()
        stream = self._session.stream(message)
        with Live(console=self._out, auto_refresh=False, vertical_overflow="visible") as live:
            live.update(Text("...", "dim"), refresh=True)
            try:
                for event in stream:
                    if isinstance(event, Items):
                        waiting = [_row(item) for item in event.items]
                    elif isinstance(event, Words):
                        # The line of an item in the answer replaces the row of that item.
                        lines = len(_NUMBERED.findall(event.text))
                        text, waiting = text + event.text, waiting[lines:]
                    elif isinstance(event, Done):
                        waiting = []
                        degraded = event.turn.degraded
                    if not isinstance(event, Understanding):
                        live.update(Group(*_styled(text), *waiting), refresh=True)
            except KeyboardInterrupt:
                live.update(Group(*_styled(text), *waiting, Text("(stopped)", "dim")), refresh=True)
            finally:
                stream.close()
        self._show_degraded(degraded)

    def show(self, words: str, style: str = "") -> None:
        """Print text without reading markup in it and without control characters."""
        self._out.print(Text(strip_controls(words), style))

    def _rate(self, number: int, kind: FeedbackKind) -> None:
        if item := self._listed(number):
            self._session.feedback(item.id, kind)
            done = {"like": "Liked", "dislike": "Disliked", "seen": "Seen"}[kind]
            self.show(f"{done}: {title_with_year(item)}. The next answer takes it into account.")

    def _listed(self, number: int) -> Item | None:
        """Return the item of this number in the list shown last. Without one, print a message and return None."""
        last = self._session.state.last
        if not 0 < number <= len(last):
            self.show(f"There is no number {number} in the list." if last else "No items have been shown yet.")
            return None
        return self._catalog.get([last[number - 1]]).get(last[number - 1])

    def _constraints(self) -> None:
        constraints = self._session.state.constraints
        self.show("\n".join(f"{i}. {c.words}" for i, c in enumerate(constraints, 1)) or "There are no constraints.")

    def _drop(self, number: int) -> None:
        constraints = self._session.state.constraints
        if not 0 < number <= len(constraints):
            self.show(f"There is no constraint {number}; /constraints lists them.")
            return
        words = constraints[number - 1].words
        self._session.relax(number - 1)
        self.show(f"Constraint removed: {words}.")

    def _save(self) -> None:
        self._session.save()
        self.show(f"Saved. Continue with: evoke chat --session {self._session.id}")

    def _show_degraded(self, degraded: list[dict[str, str]]) -> None:
        for stage in degraded:
            self._err.print(Text(strip_controls(f"{stage['stage']} degraded: {stage['reason']}"), "yellow"))


def _row(one: Recommendation) -> Text:
    return Text(
        f"{one.rank}. {strip_controls(one.item.title)}  {strip_controls(facts(one.item))}",
        "dim",
        no_wrap=True,
        overflow="ellipsis",
    )


def _styled(text: str) -> list[Text]:
    """Return the answer so far with its numbered titles in bold."""
    styled = Text(strip_controls(text))
    styled.highlight_regex(r"(?m)^\d+\. [^:\n]+", "bold")
    return [styled] if text else []


@contextmanager
def _line_editing() -> Iterator[None]:
    """Provide editing of the input line, with earlier lines in a file that only its owner can read."""
    import readline

    path = typed_lines()
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        readline.read_history_file(path)
    readline.set_history_length(1000)
    try:
        yield
    finally:
        with suppress(OSError):
            readline.write_history_file(path)
            path.chmod(0o600)
