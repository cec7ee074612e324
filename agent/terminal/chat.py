"""`evoke chat`: a conversation in the terminal. Items appear at once, the words as they are written; plain text when piped."""

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
from agent.dialogue.session import Kind
from agent.dialogue.templates import titled
from agent.errors import EvokeError
from agent.item_text import facts
from agent.results import Recommendation
from agent.sync import Session
from agent.terminal.console import inert
from prompts import PromptError
from store import Catalog, Item
from store.errors import StoreError
from store.paths import typed_lines

HELP = """\
Say what you feel like, in your own words, and then what to change: "newer", "less violent", "more like the second".
  /like 2, /dislike 1, /seen 3    tell of an item; it counts from the next answer on
  /why 1, /compare 1 2            where an item came from; two side by side
  /constraints, /drop 1           what every answer keeps to; take one back
  /save                           keep the conversation, and say how to go on with it
  /help, /quit                    this text; leave (Ctrl-D does too; Ctrl-C stops an answer)"""
_NUMBERED = re.compile(r"^\d+\. ", re.MULTILINE)


def chat(session: Session, catalog: Catalog) -> None:
    """Talk until the end of input. Raises EvokeError, StoreError or PromptError when piped and an answer fails; at a terminal
    it is shown instead. What is not text is read as `\ufffd`."""
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    talk = Talk(session, catalog, interactive)
    if not interactive:
        for line in sys.stdin:
            if not talk.take(line):
                return
        return
    talk.show("Evoke. Say what you feel like; /help tells what else there is.", "dim")
    with _line_editing():
        while True:
            try:
                if not talk.take(input("\n\x01\033[1m\x02>\x01\033[0m\x02 ")):
                    break
            except KeyboardInterrupt:
                talk.show("")
            except EOFError:
                talk.show("")
                break
            except (EvokeError, StoreError, PromptError) as error:
                talk.show(str(error), "red")
    if session.state.messages:
        talk.show(f"Go on another time with: evoke chat --session {session.id}", "dim")


class Talk:
    """What a line does, and how its answer is shown."""

    def __init__(self, session: Session, catalog: Catalog, interactive: bool) -> None:
        self._session = session
        self._catalog = catalog
        self._interactive = interactive
        self._commands: dict[str, tuple[Callable[..., None], int]] = {
            "/like": (lambda number: self._tell(number, "like"), 1),
            "/dislike": (lambda number: self._tell(number, "dislike"), 1),
            "/seen": (lambda number: self._tell(number, "seen"), 1),
            "/why": (self._why, 1),
            "/compare": (self._compare, 2),
            "/constraints": (self._constraints, 0),
            "/drop": (self._drop, 1),
            "/save": (self._save, 0),
            "/help": (lambda: self.show(HELP), 0),
        }
        self._out = Console(highlight=False, soft_wrap=not interactive)
        self._err = Console(stderr=True, highlight=False, soft_wrap=not interactive)

    def take(self, line: str) -> bool:
        """Do what the line says; False where it says to leave."""
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
            self.show(f"There is no {name}; /help lists what there is.")
            return True
        command, wanted = self._commands[name]
        if len(numbers) != wanted or not all(number.isdecimal() for number in numbers):
            self.show(f"Write it as {name}{' 1 2'[: 2 * wanted]}.")
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
        """Show the answer to a message as it comes; at a terminal Ctrl-C ends it there."""
        if not self._interactive:
            turn = self._session.send(message)
            self.show(turn.text)
            self._lapses(turn.degraded)
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
                        # An item's line in the answer takes the place of its row.
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
        self._lapses(degraded)

    def show(self, words: str, style: str = "") -> None:
        """Print words as they are: no markup is read in them, and nothing in them moves the cursor."""
        self._out.print(Text(inert(words), style))

    def _tell(self, number: int, kind: Kind) -> None:
        if item := self._listed(number):
            self._session.feedback(item.id, kind)
            done = {"like": "Liked", "dislike": "Disliked", "seen": "Seen"}[kind]
            self.show(f"{done}: {titled(item)}. The next answer heeds it.")

    def _listed(self, number: int) -> Item | None:
        """The item of this number in the list shown last; None, and a word about it, where there is none."""
        last = self._session.state.last
        if not 0 < number <= len(last):
            self.show(f"There is no number {number} in the list." if last else "Nothing was shown yet.")
            return None
        return self._catalog.get([last[number - 1]]).get(last[number - 1])

    def _constraints(self) -> None:
        kept = self._session.state.constraints
        self.show("\n".join(f"{i}. {c.words}" for i, c in enumerate(kept, 1)) or "Nothing is required.")

    def _drop(self, number: int) -> None:
        kept = self._session.state.constraints
        if not 0 < number <= len(kept):
            self.show(f"There is no number {number}; /constraints lists them.")
            return
        words = kept[number - 1].words
        self._session.relax(number - 1)
        self.show(f"No longer required: {words}.")

    def _save(self) -> None:
        self._session.save()
        self.show(f"Kept. Go on with: evoke chat --session {self._session.id}")

    def _lapses(self, degraded: list[dict[str, str]]) -> None:
        for lapse in degraded:
            said = f"{lapse['stage']} went on without the model: {lapse['reason']}"
            self._err.print(Text(inert(said), "yellow"))


def _row(one: Recommendation) -> Text:
    return Text(
        f"{one.rank}. {inert(one.item.title)}  {inert(facts(one.item))}", "dim", no_wrap=True, overflow="ellipsis"
    )


def _styled(text: str) -> list[Text]:
    """The answer so far, with the numbered titles set off."""
    styled = Text(inert(text))
    styled.highlight_regex(r"(?m)^\d+\. [^:\n]+", "bold")
    return [styled] if text else []


@contextmanager
def _line_editing() -> Iterator[None]:
    """Editing of the input line, with the history of earlier ones kept in a file that only its owner reads."""
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
