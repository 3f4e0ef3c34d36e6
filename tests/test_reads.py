"""A config notes exactly what is read of it, as it is read."""

import dataclasses
from collections.abc import Mapping

import pytest

from rerankjax.run.reads import differing, flatten, record, semantic, whole


@dataclasses.dataclass(frozen=True)
class Leaf:
    rate: float = 0.1
    names: tuple[str, ...] = ("a", "b")

    @property
    def twice(self) -> float:
        return 2 * self.rate


@dataclasses.dataclass(frozen=True)
class Sandbox:
    workers: int = 2
    cpu_seconds: float = 5.0


@dataclasses.dataclass(frozen=True)
class Config:
    seeds: tuple[int, ...]
    leaf: Leaf
    sets: Mapping[str, Leaf]
    sources: tuple[Leaf, ...]
    sandbox: Sandbox = Sandbox()
    mesh: Mapping[str, int] = dataclasses.field(default_factory=lambda: {"data": 8})
    other: Leaf | None = None


CONFIG = Config((0, 1), Leaf(), {"test": Leaf(0.2), "mbpp": Leaf(0.3)}, (Leaf(0.4, ()),))
FLAT = {
    "seeds": [0, 1],
    "leaf.rate": 0.1,
    "leaf.names": ["a", "b"],
    "sets.test.rate": 0.2,
    "sets.test.names": ["a", "b"],
    "sets.mbpp.rate": 0.3,
    "sets.mbpp.names": ["a", "b"],
    "sources": [{"rate": 0.4, "names": []}],
    "sandbox.workers": 2,
    "sandbox.cpu_seconds": 5.0,
    "mesh.data": 8,
    "other": None,
}


def test_every_leaf_has_a_name_and_a_json_value() -> None:
    assert flatten(CONFIG) == FLAT
    assert flatten(flatten(CONFIG)) == FLAT
    assert semantic(FLAT).keys() == FLAT.keys() - {"sandbox.workers", "mesh.data"}


def test_what_is_read_is_noted_when_it_is_read_and_nothing_else() -> None:
    view, fields = record(CONFIG)
    section, sets = view.leaf, view.sets
    assert list(sets) == ["test", "mbpp"]
    assert fields == {}  # sections alone, and the names of a mapping
    assert section.rate == 0.1
    assert fields == {"leaf.rate": 0.1}
    assert (sets["mbpp"].names, view.seeds, view.other) == (("a", "b"), (0, 1), None)
    assert fields == {name: FLAT[name] for name in ("leaf.rate", "sets.mbpp.names", "seeds", "other")}
    assert view.sources == CONFIG.sources
    assert fields["sources"] == FLAT["sources"]


def test_a_whole_section_is_read_whole_and_is_the_dataclass_itself() -> None:
    view, fields = record(CONFIG)
    assert whole(view.sets["test"]) is CONFIG.sets["test"]
    assert fields == {"sets.test.rate": 0.2, "sets.test.names": ["a", "b"]}
    assert whole(view.sets) is CONFIG.sets
    assert fields == {name: value for name, value in FLAT.items() if name.startswith("sets.")}
    assert whole(CONFIG.leaf) is CONFIG.leaf  # no view: as it is


def test_how_it_is_computed_is_not_noted() -> None:
    view, fields = record(CONFIG)
    assert (view.mesh["data"], view.sandbox.workers) == (8, 2)
    assert fields == {}
    assert whole(view.sandbox) is CONFIG.sandbox
    assert fields == {"sandbox.cpu_seconds": 5.0}


def test_a_method_and_an_unknown_field_are_refused() -> None:
    """A property would read fields behind the view's back."""
    view, _ = record(CONFIG)
    for name in ("twice", "tiwce"):
        with pytest.raises(AttributeError, match=rf"leaf has no field '{name}': use whole\(...\) for its methods"):
            getattr(view.leaf, name)
    with pytest.raises(AttributeError, match="config has no field 'laef'"):
        _ = view.laef  # type: ignore[attr-defined]
    assert whole(view.leaf).twice == 0.2


def test_differences_show_both_values() -> None:
    before = {"a": [1], "b": None, "c": "x", "same": 0.5}
    assert differing(before, {"same": 0.5, "b": False, "a": [1, 2], "d": True}) == {
        "a": ("[1]", "[1, 2]"),
        "b": ("null", "false"),
        "c": ('"x"', "(absent)"),
        "d": ("(absent)", "true"),
    }
    assert differing(before, dict(reversed(before.items()))) == {}
