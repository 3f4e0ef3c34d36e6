"""Builds a checked config from an ml-collections tree: every field is present, known, and of its type."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from rerankjax.loop.checks import check
from rerankjax.loop.config import ConfigError, ExperimentConfig
from rerankjax.pairs.data import DataSource
from rerankjax.problems.sources import SourceConfig

RENAMED = {
    "model": "generator.shape",
    "arms": "iterations",
    "ppo_arms": "iterations.NAME.ppo",
    "lambdas": "log_prob_weights",
    "candidates.batch_size": "candidates.prompts_in_flight",
    "candidates.test": "evaluation.NAME.samples",
    "mining.grown_pairs": "mining.later_pairs",
    "mining.new_share": "mining.new_fraction",
    "mining.hard_share": "mining.hard_fraction",
    "problems.languages": "problems.synthetic.languages",
    "problems.corpus": "problems.synthetic.corpus",
    "problems.test": "problems.synthetic.test",
}


def resolve(config: Mapping[str, Any] | ConfigDict, devices: int) -> ExperimentConfig:
    """The checked config, for a mesh of `devices` devices.

    Raises:
        ConfigError: a field is missing, unknown, mistyped or impossible.
    """
    built: ExperimentConfig = build(ExperimentConfig, config, "config")
    check(built, devices)
    return built


def build(kind: type, section: Any, path: str) -> Any:
    """A section of a config as the dataclass `kind`. Raises ConfigError, which calls the section `path`."""
    if kind in (SourceConfig, DataSource) and isinstance(section, str):
        section = {"source": section}
    if not isinstance(section, Mapping) and not hasattr(section, "items"):
        raise ConfigError(f"{path} = {section!r} is not a section: give the fields of {kind.__name__}")
    hints = typing.get_type_hints(kind)
    given = dict(section.items())
    fields = dataclasses.fields(kind)
    optional = {f.name for f in fields if f.default is not dataclasses.MISSING}
    for name in given.keys() - hints.keys():
        old = f"{path}.{name}".removeprefix("config.")
        remedy = f"is now called {RENAMED[old]}" if old in RENAMED else f"is unknown: {path} has {_listed(hints)}"
        raise ConfigError(f"{path}.{name} {remedy}")
    for name in sorted(hints.keys() - given.keys() - optional):
        raise ConfigError(f"{path}.{name} is missing: give it a value")
    values = {name: _convert(hints[name], value, f"{path}.{name}") for name, value in given.items()}
    try:
        return kind(**values)
    except ValueError as error:
        raise ConfigError(f"{path}.{error}") from error


def _listed(hints: Mapping[str, Any]) -> str:
    return ", ".join(sorted(hints))


def _convert(hint: Any, value: Any, path: str) -> Any:
    arguments = typing.get_args(hint)
    if types.NoneType in arguments:
        return None if value is None else _convert(arguments[0], value, path)
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, path)
    if typing.get_origin(hint) is Mapping:
        if not hasattr(value, "items"):
            raise ConfigError(f"{path} = {value!r} is not a section: give one section per name")
        return {str(name): _convert(arguments[1], item, f"{path}.{name}") for name, item in value.items()}
    if isinstance(hint, types.GenericAlias):  # tuple[item, ...]
        if not isinstance(value, (tuple, list)):
            raise ConfigError(f"{path} = {value!r} is not a tuple: write it as (a, b)")
        return tuple(_convert(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ConfigError(f"{path} = {value!r} has type {type(value).__name__}: give a value of type {hint.__name__}")
    return value
