"""Parse answers of a model: find JSON in chatty or truncated text, validate it, and repair the parts that are wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Container, Iterable, Sequence
from contextlib import suppress
from functools import reduce
from itertools import islice
from operator import getitem
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, from_json

from agent.errors import BadAnswer

M = TypeVar("M", bound=BaseModel)
REPAIRS = 100  # number of repairs before an answer is given up
STARTS = 20  # number of opening braces to try in a chatty text


def strict_schema(schema: type[BaseModel]) -> dict[str, Any]:
    """Return the JSON schema of `schema` with every field required, for the server to enforce.

    Servers let a model leave out optional fields, and small models leave out all of them. A default in `schema` is for answers
    that break off.
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
    """Return the `schema` object in `text`, and whether it had to be repaired.

    Text and code fences around the JSON are skipped, a truncated answer is completed, list entries and fields that are not
    valid are removed, and strings and lists that are too long are cut. Raises BadAnswer if nothing is left.
    """
    value, partial = _find_object(text, schema.model_fields)
    for _ in range(REPAIRS):
        try:
            return schema.model_validate(value), partial
        except ValidationError as error:
            partial = True
            # One error at a time, the last first: removing an entry moves those behind it.
            if not _repair(value, error.errors(include_url=False)[-1]):
                break
    raise BadAnswer("the model's answer does not have the required form")


def _find_object(text: str, names: Container[str]) -> tuple[dict[str, Any], bool]:
    """Return the first JSON object in the text that has one of these fields, and whether it was truncated."""
    for start in islice((i for i, char in enumerate(text) if char == "{"), STARTS):
        value, partial = _parse_json(text[start:])
        if isinstance(value, dict) and any(name in names for name in value):
            return value, partial
    raise BadAnswer("the model answered without the required JSON")


def _parse_json(text: str) -> tuple[Any, bool]:
    try:
        return json.JSONDecoder(strict=False).raw_decode(text)[0], False
    except (ValueError, RecursionError):
        pass
    try:
        return from_json(text, allow_partial=True), True
    except ValueError:
        return None, True


def _repair(root: Any, detail: ErrorDetails) -> bool:
    """Cut the part that is too long, or remove the part that is wrong, else the nearest one around it that can be removed.

    Returns False if that is impossible: the whole answer is wrong, or a field that it must have is missing.
    """
    path = list(detail["loc"])
    if detail["type"] == "missing":
        path.pop()
    limit = detail.get("ctx", {}).get("max_length")
    while path:
        *above, last = path
        with suppress(KeyError, IndexError, TypeError):
            parent = reduce(getitem, above, root)
            if limit is None:
                del parent[last]
            else:
                parent[last] = parent[last][:limit]
            return True
        path, limit = above, None
    return False


def label_scores(tokens: Iterable[tuple[str, float]], labels: Sequence[str]) -> dict[str, float]:
    """Return the log-probability of each label from (token, log-probability) pairs.

    The probabilities of variants of a label (" A", "A") are added. Labels without a token are missing in the result.
    """
    scores: dict[str, float] = {}
    for token, logprob in tokens:
        # SentencePiece and byte-level vocabularies mark a leading space with these two characters.
        label = token.strip(" ▁Ġ\t\n")
        if label in labels and math.isfinite(logprob):
            scores[label] = _add(scores[label], logprob) if label in scores else logprob
    return scores


def _add(a: float, b: float) -> float:
    """Return log(exp(a) + exp(b))."""
    return max(a, b) + math.log1p(math.exp(-abs(a - b)))


def parse_event(line: str) -> dict[str, Any]:
    """Return the chunk of an answer in a line of the event stream; an empty dict for other lines.

    Raises BadAnswer if the line is an error message of the server or not a chunk.
    """
    if not line.startswith("data:") or (data := line[5:].strip()) == "[DONE]":
        return {}
    found = json.loads(data)
    if not isinstance(found, dict) or "error" in found:
        raise BadAnswer("the server ended its answer with an error")
    return found
