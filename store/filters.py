"""Filters over metadata: check them against the catalog's own fields, and convert them to the form that Chroma takes.

The language is Chroma's: `{"year": {"$gte": 1980}, "genre": "Drama"}`, with `$and`, `$or`, `$eq`, `$ne`, `$gt`, `$gte`, `$lt`,
`$lte`, `$in`, `$nin`, `$contains`, `$not_contains`. On a field of lists, equality and `$in` ask for an element; an item with a
single value there counts as a list of one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal

from store.errors import StoreError
from store.records import Item, is_number, text_fault

FieldType = Literal["str", "int", "float", "bool", "list"]
_TYPES: tuple[FieldType, ...] = ("list", "str", "float", "int")
_ORDER = {"$gt", "$gte", "$lt", "$lte"}
_ELEMENT = {"$contains", "$not_contains"}
_EQUAL = {"$eq", "$ne"}
_MEMBER = {"$in", "$nin"}
_NEGATIVE = {"$ne", "$nin", "$not_contains"}
_TOP_VALUES = 100
# Chroma refuses filters of more than 60 levels. SQLite refuses conditions nested 1000 deep (each element of a list is one, and
# those of an $or or $and nest), and statements of more than 32766 values.
_DEEPEST, _MOST_CONDITIONS, _MOST_ELEMENTS, _MOST_VALUES = 50, 800, 500, 10_000


@dataclass(frozen=True, slots=True)
class Field:
    """A metadata field of the catalog; `count` items have it.

    `values` maps its most frequent texts (elements, if it holds lists) to the number of items that have them; `low` and `high`
    bound its numbers. `elements` is the type of a list's elements: text if they differ.
    """

    type: FieldType
    count: int
    values: Mapping[str, int] = field(default_factory=dict)
    low: float | None = None
    high: float | None = None
    elements: Literal["str", "number"] | None = None


def fields_of(items: Iterable[Item]) -> dict[str, Field]:
    """Return the metadata fields of the items, most frequent first."""
    found: dict[str, _Tally] = {}
    for item in items:
        for name, value in item.metadata.items():
            found.setdefault(name, _Tally()).add(value)
    return {name: tally.field() for name, tally in sorted(found.items(), key=lambda entry: (-entry[1].count, entry[0]))}


class _Tally:
    def __init__(self) -> None:
        self.count = 0
        self.types: set[str] = set()
        self.strings: Counter[str] = Counter()
        self.low = float("inf")
        self.high = float("-inf")

    def add(self, value: Any) -> None:
        self.count += 1
        self.types.add(type(value).__name__)
        for element in value if isinstance(value, list) else [value]:
            if isinstance(element, str):
                self.strings[element] += 1
            elif not isinstance(element, bool):
                self.low, self.high = min(self.low, element), max(self.high, element)

    def field(self) -> Field:
        numbers = self.low <= self.high
        return Field(
            type=next((name for name in _TYPES if name in self.types), "bool"),
            count=self.count,
            values=dict(self.strings.most_common(_TOP_VALUES)),
            low=self.low if numbers else None,
            high=self.high if numbers else None,
            elements=("number" if numbers and not self.strings else "str") if "list" in self.types else None,
        )


def normalise_filter(where: Mapping[str, Any] | None, schema: Mapping[str, Field]) -> dict[str, Any] | None:
    """Return the filter in the form that Chroma takes, or None if it excludes nothing. Raises StoreError, naming the fault."""
    clause = _filter(where, schema, 1)
    if clause is not None:
        _check_size(clause)
    return clause


def _filter(where: Any, schema: Mapping[str, Field], level: int) -> dict[str, Any] | None:
    if where is None:
        return None
    if not isinstance(where, Mapping):
        raise StoreError('a filter is an object such as {"year": {"$gte": 1980}}')
    _check_depth(level)
    return _combine(
        "$and", [clause for name, value in where.items() for clause in _clauses(name, value, schema, level)]
    )


def _check_depth(level: int) -> None:
    if level > _DEEPEST:
        raise StoreError(f"the filter is nested too deep, and {_DEEPEST} levels are the most; make it flatter")


def _check_size(clause: dict[str, Any]) -> None:
    parts, level, conditions, values = [clause], 0, 0, 0
    while parts:
        level += 1
        _check_depth(level)
        below: list[dict[str, Any]] = []
        for part in parts:
            ((name, held),) = part.items()
            if name in ("$and", "$or"):
                below += held
                continue
            conditions += 1
            values += sum(len(operand) if isinstance(operand, list) else 1 for operand in held.values())
        parts = below
    if conditions > _MOST_CONDITIONS or values > _MOST_VALUES:
        raise StoreError(
            f"the filter has {conditions} conditions and {values} values, and {_MOST_CONDITIONS} and {_MOST_VALUES} are the "
            "most; ask for less at once"
        )


def _clauses(name: str, value: Any, schema: Mapping[str, Field], level: int) -> list[dict[str, Any]]:
    if name in ("$and", "$or"):
        if not isinstance(value, list | tuple) or not value:
            raise StoreError(f"the filter's {name} needs a list of at least one filter")
        parts = [_filter(part, schema, level + 1) for part in value]
        if name == "$or" and None in parts:
            return []
        joined = _combine(name, [part for part in parts if part is not None])
        return [] if joined is None else [joined]
    if name not in schema:
        raise StoreError(_unknown_field(name, schema))
    operators = value if isinstance(value, Mapping) else {"$eq": value}
    if not operators:
        raise StoreError(f'the filter on "{name}" is empty: give a value, or an operator such as {{"$eq": value}}')
    return [_clause(name, operator, operand, schema[name]) for operator, operand in operators.items()]


def _clause(name: str, operator: str, operand: Any, field: Field) -> dict[str, Any]:
    if operator in _MEMBER:
        if not isinstance(operand, list | tuple | set | frozenset) or not operand:
            raise StoreError(f'{operator} on "{name}" needs a list of at least one value')
        most = _MOST_ELEMENTS if field.type == "list" else _MOST_VALUES
        if len(operand) > most:
            raise StoreError(f'{operator} on "{name}" got {len(operand)} values, and {most} are the most; give fewer')
        values = [_convert_operand(name, operator, value, field) for value in operand]
        return _list_clause(name, operator, values) if field.type == "list" else {name: {operator: values}}
    if operator not in _ORDER | _EQUAL | _ELEMENT:
        raise StoreError(
            f'"{operator}" is no filter operator: use {", ".join(sorted(_ORDER | _EQUAL | _ELEMENT | _MEMBER))}'
        )
    if operator in _ORDER and field.type not in ("int", "float"):
        raise StoreError(f'{operator} needs a field of numbers, and "{name}" holds {_type_in_words(field)}')
    if operator in _ELEMENT and field.type != "list":
        raise StoreError(
            f'{operator} needs a field of lists, and "{name}" holds {_type_in_words(field)}: use $eq or $in'
        )
    value = _convert_operand(name, operator, operand, field)
    return _list_clause(name, operator, [value]) if field.type == "list" else {name: {operator: value}}


def _list_clause(name: str, operator: str, values: list[Any]) -> dict[str, Any]:
    """Ask a field of lists for any of the values, or for none; also as single values, which Chroma's `$contains` does not match."""
    element, one, join = ("$not_contains", "$nin", "$and") if operator in _NEGATIVE else ("$contains", "$in", "$or")
    return {join: [*({name: {element: value}} for value in values), {name: {one: values}}]}


def _convert_operand(name: str, operator: str, value: Any, field: Field) -> Any:
    """Return the operand in the type that the field is stored in: all numbers are stored as floats."""
    wanted = field.elements if field.type == "list" else field.type
    # No item can have such a value; the message does not repeat it, since it may be long or unprintable.
    if isinstance(value, int | float) and not isinstance(value, bool) and not is_number(value):
        raise StoreError(f'{operator} on "{name}" got a number that is not finite or beyond 64 bits; give another')
    if isinstance(value, str) and (problem := text_fault(value)):
        raise StoreError(f'{operator} on "{name}" got a text that {problem}; correct it')
    if wanted == "bool" and isinstance(value, bool):
        return value
    if wanted == "str" and isinstance(value, str):
        return value
    if wanted in ("int", "float", "number") and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    given = repr(value)[:80] if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"
    raise StoreError(f'{operator} on "{name}" got {given}, and the field holds {_type_in_words(field)}')


def _type_in_words(field: Field) -> str:
    one = {"str": "text", "int": "numbers", "float": "numbers", "bool": "true or false", "number": "numbers"}
    return f"lists of {one[field.elements or 'str']}" if field.type == "list" else one[field.type]


def _combine(operator: str, clauses: list[dict[str, Any]]) -> dict[str, Any] | None:
    if len(clauses) < 2:
        return clauses[0] if clauses else None
    return {operator: clauses}


def _unknown_field(name: str, schema: Mapping[str, Field]) -> str:
    if not schema:
        return f'the filter asks for "{name}", and no item of this catalog has metadata'
    known = get_close_matches(str(name), schema, n=1) + [
        field for field in schema if not get_close_matches(str(name), [field])
    ]
    return f'the filter asks for "{name}", and no item has that field: there are {", ".join(known[:20])}'
