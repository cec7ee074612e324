"""The prompts: one Jinja2 template for each task, and the code that loads, checks and renders them.

Each template has a block `system` (the same for all users) and a block `user`, in an order that suits prefix caches: first the
history (which only grows), then the task, then the varying parts. Texts of catalogs and users are inserted with the macro in
`_data.j2`.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import meta

from prompts.cleaning import harmless, listed
from prompts.themes import common, held, recurring

__all__ = ["VARIABLES", "PromptError", "Prompts"]

VARIABLES: dict[str, frozenset[str]] = {
    "interests": frozenset({"history", "parts", "n_queries", "n_named"}),
    "refresh": frozenset({"profile", "history", "parts", "n_queries", "n_named"}),
    "search": frozenset({"history", "others", "parts"}),
    "rank": frozenset({"history", "request", "candidates"}),
    "explain": frozenset({"profile", "history", "request", "items"}),
    "request": frozenset({"fields", "turns", "conditions", "liked", "message", "draft"}),
    "propose": frozenset({"task", "found", "failures", "tried"}),
}
"""Variables of each template."""
SHARED = ("_data", "_person", "_answer")
BLOCKS = ("system", "user")
COMMENT = re.compile(r"\{#.*?#\}\n?", re.DOTALL)


class PromptError(Exception):
    """A template cannot be used. The message names the file and the remedy."""


class Prompts:
    """The templates of this package. A file of the same name in `folder` replaces a template.

    All templates are checked when this object is made. Raises PromptError for an unknown file, a syntax error, a missing block
    or an unknown variable.
    """

    def __init__(self, folder: Path | None = None) -> None:
        ours = Path(__file__).parent
        self._folders = [Path(folder), ours] if folder else [ours]
        if folder:
            _check_folder(Path(folder))
        self._environment = jinja2.Environment(  # noqa: S701  prompts are not HTML; the filter `harmless` escapes text
            loader=jinja2.FileSystemLoader(self._folders),
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self._environment.filters.update(
            harmless=harmless, listed=listed, recurring=recurring, held=held, common=common
        )
        self._sources = {name: self._read(name) for name in (*VARIABLES, *SHARED)}
        self._templates = {name: self._load(name) for name in VARIABLES}

    def render(self, name: str, **variables: Any) -> list[dict[str, str]]:
        """Return the chat messages of a prompt: one with role system, one with role user.

        Raises PromptError if a variable is missing or unknown, or lacks a field that the template reads.
        """
        template = self._templates[name]
        if wrong := sorted(VARIABLES[name] ^ variables.keys()):
            expected = ", ".join(sorted(VARIABLES[name]))
            raise PromptError(f"{self._path(name)}: expected variables {expected}; {wrong[0]!r} is missing or unknown")
        try:
            context = template.new_context(variables)
            return [{"role": role, "content": "".join(template.blocks[role](context)).strip()} for role in BLOCKS]
        except (jinja2.TemplateError, TypeError) as error:
            raise PromptError(f"{self._path(name)}: {error}; fix the template") from error

    def fingerprint(self, *names: str) -> str:
        """Return a short hash that changes when one of these templates, or a file that they import, changes.

        Comments are not part of it, because they do not reach the model.
        """
        sources = "\0".join(COMMENT.sub("", self._sources[name]) for name in (*names, *SHARED))
        return hashlib.blake2b(sources.encode(), digest_size=6).hexdigest()

    def _path(self, name: str) -> Path:
        return next(path for folder in self._folders if (path := folder / f"{name}.j2").is_file())

    def _read(self, name: str) -> str:
        try:
            return self._path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise PromptError(f"{self._path(name)}: cannot be read ({error}); save it as UTF-8 text") from None

    def _load(self, name: str) -> jinja2.Template:
        path = self._path(name)
        try:
            tree = self._environment.parse(self._sources[name])
            template = self._environment.get_template(f"{name}.j2")
            for shared in SHARED:
                self._environment.get_template(f"{shared}.j2")
        except jinja2.TemplateSyntaxError as error:
            where = self._path(Path(error.name).stem) if error.name else path
            raise PromptError(f"{where}:{error.lineno}: {error.message}; fix the template") from None
        except jinja2.TemplateNotFound as error:
            raise PromptError(f"{path}: there is no file {error.name}; fix the import") from None
        if unknown := sorted(meta.find_undeclared_variables(tree) - VARIABLES[name]):
            known = ", ".join(sorted(VARIABLES[name]))
            raise PromptError(f"{path}: unknown variable {unknown[0]!r}; this prompt has {known}")
        if missing := [block for block in BLOCKS if block not in template.blocks]:
            raise PromptError(f"{path}: no block {missing[0]!r}; add {{% block {missing[0]} %}} ... {{% endblock %}}")
        return template


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise PromptError(f"{folder}: no such folder of prompts; create it or unset the setting")
    known = {f"{name}.j2" for name in (*VARIABLES, *SHARED)}
    for path in sorted(folder.glob("*.j2")):
        if path.name not in known:
            raise PromptError(f"{path}: there is no prompt of this name; use one of {', '.join(sorted(known))}")
