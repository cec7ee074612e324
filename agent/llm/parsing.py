"""Reading what a model wrote: JSON out of chatty or cut-off text, validated, and repaired where a part of it is wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Container, Iterable, Sequence
from itertools import islice
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, from_json

from agent.errors import BadAnswer

M = TypeVar("M", bound=BaseModel)
REPAIRS = 100  # things removed or cut, before an answer is given up
STARTS = 20  # braces to try in a chatty text


def form(schema: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema that a server is to hold the model to: that of `schema`, with every field required.

    Servers let a model leave out what is not required, and small ones leave out all of it. A default in `schema` is for
    answers that break off.
    """
    return dict(_all_required(schema.model_json_schema()))


def _all_required(part: Any) -> Any:
    if isinstance(part, list):
        return [_all_required(entry) for entry in part]
    if not isinstance(part, dict):
        return part
    whole = {name: _all_required(value) for name, value in part.items()}
    return whole | {"required": list(whole["properties"])} if isinstance(whole.get("properties"), dict) else whole


def parse(text: str, schema: type[M]) -> tuple[M, bool]:
    """What `text` holds, as `schema`, and whether it had to be salvaged.

    Chatty text and fences around the JSON are passed over, a truncated answer is completed, list entries and fields that
    do not validate are removed, strings and lists that are too long are cut. Raises BadAnswer where nothing is left.
    """
    value, partial = _object(text, schema.model_fields)
    for _ in range(REPAIRS):
        try:
            return schema.model_validate(value), partial
        except ValidationError as error:
            partial = True
            # One at a time, the last first: removing an entry moves those behind it.
            if not _repaired(value, error.errors(include_url=False)[-1]):
                break
    raise BadAnswer("the model's answer does not have the wanted form")


def _object(text: str, names: Container[str]) -> tuple[dict[str, Any], bool]:
    """The first JSON object in the text, whole or cut off, that has one of these names; and whether it was cut off."""
    for start in islice((i for i, char in enumerate(text) if char == "{"), STARTS):
        value, partial = _read(text[start:])
        if isinstance(value, dict) and any(name in names for name in value):
            return value, partial
    raise BadAnswer("the model answered without the JSON asked for")


def _read(text: str) -> tuple[Any, bool]:
    try:
        return json.JSONDecoder(strict=False).raw_decode(text)[0], False
    except (ValueError, RecursionError):
        pass
    try:
        return from_json(text, allow_partial=True), True
    except ValueError:
        return None, True


def _repaired(root: Any, detail: ErrorDetails) -> bool:
    """Cuts or removes the one thing that is wrong; False where that cannot help (it is the whole, or it is missing)."""
    if not detail["loc"]:
        return False
    *above, last = detail["loc"]
    holder = _at(root, above)
    if holder is None:
        return False
    if detail["type"] == "missing":
        return _remove(root, above)
    limit = detail.get("ctx", {}).get("max_length")
    try:
        if limit is not None:
            holder[last] = holder[last][:limit]
        else:
            del holder[last]
    except (KeyError, IndexError, TypeError):
        return _remove(root, above)
    return True


def _remove(root: Any, path: Sequence[Any]) -> bool:
    """Removes what stands at `path`; what is wrong at the very top cannot be removed."""
    if not path:
        return False
    holder = _at(root, path[:-1])
    try:
        del holder[path[-1]]
    except (KeyError, IndexError, TypeError):
        return False
    return True


def _at(root: Any, path: Iterable[Any]) -> Any:
    """The part of a JSON value at `path`, or None."""
    for step in path:
        try:
            root = root[step]
        except (KeyError, IndexError, TypeError):
            return None
    return root


def label_scores(tokens: Iterable[tuple[str, float]], labels: Sequence[str]) -> dict[str, float]:
    """Log-probability per label from (token, log-probability) pairs; variants of a label (" A", "A") add up.

    Labels that no token stands for are absent.
    """
    scores: dict[str, float] = {}
    for token, logprob in tokens:
        # SentencePiece and byte-level vocabularies mark a leading space by these two letters.
        label = token.strip(" ▁Ġ\t\n")
        if label in labels and math.isfinite(logprob):
            scores[label] = _add(scores[label], logprob) if label in scores else logprob
    return scores


def _add(a: float, b: float) -> float:
    """log(exp(a) + exp(b))."""
    return max(a, b) + math.log1p(math.exp(-abs(a - b)))


def chunk(line: str) -> dict[str, Any]:
    """The chunk of an answer that a line of the event stream holds; empty for every other line.

    Raises BadAnswer for an error that the server tells in mid-stream, and for what is no chunk.
    """
    if not line.startswith("data:") or (data := line[5:].strip()) == "[DONE]":
        return {}
    found = json.loads(data)
    if not isinstance(found, dict) or "error" in found:
        raise BadAnswer("the server broke off its answer with an error")
    return found
