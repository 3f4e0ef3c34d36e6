"""A config that records which of its fields are read, so that a stage can say what it was made from."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, cast

T = TypeVar("T")

# These fields decide how a run is computed, not what: no stage depends on them, and they may change between starts.
NON_SEMANTIC_FIELDS = ("mesh.", "checkpoints.", "sandbox.workers", "sandbox.engine", "assumptions")


def flatten(value: Any, name: str = "") -> dict[str, Any]:
    """Every leaf of a config by its dotted name, as a JSON value: {"ppo.kl_coef": 0.1, "seeds": [0, 1], ...}.

    Frozen dataclasses and mappings are sections; all other values, tuples of dataclasses too, are leaves.
    """
    section = _section(value)
    if section is None:
        return {name: json.loads(json.dumps(value, default=dataclasses.asdict))}
    return {
        leaf: leaf_value
        for key, inner in section.items()
        for leaf, leaf_value in flatten(inner, f"{name}.{key}" if name else key).items()
    }


def semantic(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The flat fields that can change the results."""
    return {name: value for name, value in fields.items() if not name.startswith(NON_SEMANTIC_FIELDS)}


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """The names, sorted, that differ between two flat configs, with both values: JSON text, or "(absent)"."""
    pairs = {
        name: tuple(json.dumps(fields[name]) if name in fields else "(absent)" for fields in (before, now))
        for name in sorted(before.keys() | now.keys())
    }
    return {name: cast(tuple[str, str], pair) for name, pair in pairs.items() if pair[0] != pair[1]}


def record(config: T) -> tuple[T, dict[str, Any]]:
    """A view of `config` with the same fields, and a dict that collects the flat fields as the view reads them.

    A section of the view is a view too; `whole` gives the dataclass itself, which counts as reading all its fields.
    """
    fields: dict[str, Any] = {}
    return cast(T, _View(config, "", fields)), fields


def whole(section: T) -> T:
    """The dataclass behind a section of a recording view, or `section` itself if it is not a view."""
    if not isinstance(section, _View):
        return section
    section._record(section._value, section._name)
    return cast(T, section._value)


def _section(value: Any) -> dict[str, Any] | None:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    return dict(value) if isinstance(value, Mapping) else None


class _View:
    __slots__ = ("_fields", "_name", "_value")

    def __init__(self, value: Any, name: str, fields: dict[str, Any]) -> None:
        self._value, self._name, self._fields = value, name, fields

    def __getattr__(self, name: str) -> Any:
        return self[name]

    def __getitem__(self, key: str) -> Any:
        section = _section(self._value) or {}
        if key not in section:  # a property would hide which fields it reads
            raise AttributeError(f"{self._name or 'config'} has no field {key!r}: use whole(...) for its methods")
        name = f"{self._name}.{key}" if self._name else key
        if _section(section[key]) is not None:
            return _View(section[key], name, self._fields)
        self._record(section[key], name)
        return section[key]

    def __iter__(self) -> Iterator[str]:
        return iter(_section(self._value) or {})

    def _record(self, value: Any, name: str) -> None:
        self._fields.update(semantic(flatten(value, name)))
