"""`train-reranker`: from a base model and labelled data to a folder that other tools load, with a model card.

workdir/training   a stage: the best parameters' checkpoint, metrics.jsonl, TensorBoard's events
workdir/export     a stage: the model's folder, README.md (its card), results.json
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from rerankjax.loop.config import ConfigError
from rerankjax.loop.models import fingerprint
from rerankjax.model.decoder import Params
from rerankjax.model.lora import FULL, attach_trunk, merge
from rerankjax.model.sharding import make_mesh
from rerankjax.pairs.data import (
    DataSource,
    Splits,
    check_disjoint,
    data_digest,
    make_pairs,
    read_data,
    split_by_problem,
)
from rerankjax.pairs.labelled import Labelled
from rerankjax.problems.jsonl import write_text
from rerankjax.reranker.encoding import check_tokenizer, encode, encode_pairs
from rerankjax.reranker.rerank import Reranker
from rerankjax.reranker.saving import save_for_others
from rerankjax.run import checkpoint
from rerankjax.run.hosts import first_prints, is_first
from rerankjax.run.metrics import read_metrics
from rerankjax.run.reads import whole
from rerankjax.run.recovery import preemptible
from rerankjax.run.rundir import open_run, recovery_of, write_stage
from rerankjax.run.scoring import host_reranker, score_shares
from rerankjax.standalone.base_model import BaseModel, open_base, start_reranker
from rerankjax.standalone.card import Facts, card
from rerankjax.standalone.comparison import write_comparison
from rerankjax.standalone.config import AUTO, CHAT, TEXT, RerankerTrainingConfig, resolve
from rerankjax.standalone.fit import fit
from rerankjax.standalone.measure import compare, dev_accuracy, score
from rerankjax.standalone.tables import print_comparison

RESULTS = "results.json"
THIS = "this reranker"  # the reranker's name in its own results


def train_reranker(config: Mapping[str, Any] | ConfigDict, workdir: str | Path) -> Path:
    """Trains a reranker as the config says, or resumes interrupted training, and returns the reranker's folder.

    config: the fields of `RerankerTrainingConfig`; `base` and `data` are required, and a section may be given in part:
        {"base": "model", "data": ["samples.jsonl"], "optimizer": {"steps": 100}}.
    workdir: a directory, or a bucket's address; created if missing, otherwise resumed.

    Several processes (`hosts.connect`) each call it with the same arguments; the first one prints and writes.

    Raises:
        ConfigError: a field, the data or the base model is invalid: one line, before any work.
        RunDirectoryError: `workdir` is in use, or holds a reranker from another config or other data.
        Preempted: SIGTERM came. Work in progress is saved; another call resumes it.
    """
    with first_prints():
        return _train(resolve(_with_defaults(config), jax.device_count()), workdir)


def _train(resolved: RerankerTrainingConfig, workdir: str | Path) -> Path:
    splits = read_splits(resolved)
    model = open_base(resolved)
    chat = _is_chat(resolved, splits, model)
    mesh = make_mesh(resolved.mesh)
    splits, left_out = _that_fit(resolved, splits, model, chat)
    pairs = make_pairs(splits.train, resolved.pairs_per_problem, resolved.seed)
    encoded = encode_pairs(model.tokenizer, pairs, chat=chat, max_length=resolved.max_length)
    if not encoded:
        raise ConfigError(f"config.max_length = {resolved.max_length}: every pair is longer; use a larger value")
    print(
        f"{len(encoded)} training pairs ({len(pairs) - len(encoded)} longer than max_length are left out); "
        f"{len(splits.dev)} dev and {len(splits.test)} test rows ({left_out} whose prompt is too long are left out)"
    )
    start = functools.cache(lambda: start_reranker(resolved, model, mesh))
    lora = resolved.lora if resolved.lora.rank else FULL

    def reranker(params: Params) -> Reranker:
        trained = attach_trunk(start()[0], params, lora)
        return host_reranker(model.shape, trained, model.tokenizer, resolved.pooling, mesh, chat=chat, whole=True)

    def accuracy(params: Params) -> float:
        scores, _ = score_shares(reranker(params), [(row.prompt, row.candidates) for row in splits.dev])
        return dev_accuracy(splits.dev, scores)

    def train(directory: Path, view: RerankerTrainingConfig) -> None:
        base, params = start()
        recovery = recovery_of(root / "training")
        trained = fit(whole(view), model.shape, base, params, encoded, accuracy, directory, recovery, mesh)
        checkpoint.save(directory / "checkpoint", trained)

    def export(directory: Path, view: RerankerTrainingConfig) -> None:
        trained = checkpoint.restore(root / "training/checkpoint", checkpoint.abstract(start()[1], mesh))
        scorer = reranker(trained)
        scored = score(THIS, scorer, splits.test)
        if not is_first():
            return
        merged = scorer.params | {"decoder": merge(scorer.params["decoder"])}
        save_for_others(directory, model.shape, merged, model.tokenizer, pooling=view.pooling, chat=scorer.chat)
        comparison = compare(splits.test, [scored])
        write_comparison(directory / RESULTS, comparison)
        accuracies = [row["dev_accuracy"] for row in read_metrics(root / "training") if "dev_accuracy" in row]
        rows = {name: len(of_split) for name, of_split in splits._asdict().items()}
        facts = Facts(pairs=len(encoded), rows=rows, chat=chat, dev_accuracy=max(accuracies))
        write_text(directory / "README.md", card(whole(view), facts, comparison))
        print_comparison(comparison)

    with preemptible(), open_run(str(workdir), resolved, primary=is_first()) as root:
        content = {"data": data_digest([row for rows in splits for row in rows]), "base": fingerprint(model.folder)}
        write_stage(root, "training", resolved, [], train, facts=content, everywhere=True)
        return write_stage(root, "export", resolved, ["training"], export, everywhere=True)


def _with_defaults(config: Mapping[str, Any] | ConfigDict) -> dict[str, Any]:
    """The config's fields over those of `RerankerTrainingConfig`, section by section."""
    defaults = dataclasses.asdict(RerankerTrainingConfig(base="", data=()))
    filled = ConfigDict(defaults, type_safe=False, convert_dict=True)
    filled.update(ConfigDict(dict(config.items()), type_safe=False, convert_dict=True))
    return dict(filled.to_dict())


def read_splits(config: RerankerTrainingConfig) -> Splits:
    """The splits of the config's data, each with pairs. Raises ConfigError that names file, row and field."""
    given = {name: getattr(config, name) for name in ("data", "dev", "test") if getattr(config, name)}
    rows = {name: _read(name, sources) for name, sources in given.items()}
    dev_fraction, test_fraction = (
        0.0 if name in rows else getattr(config, f"{name}_fraction") for name in ("dev", "test")
    )
    try:
        splits = split_by_problem(rows["data"], dev_fraction, test_fraction, config.seed)
        splits = splits._replace(**{name: rows[name] for name in ("dev", "test") if name in rows})
        check_disjoint(splits)
    except ValueError as error:
        raise ConfigError(f"config.data: {error}") from error
    for name, of_split in splits._asdict().items():
        try:
            make_pairs(of_split, 1, config.seed)
        except ValueError as error:
            raise ConfigError(f"config.data, {name} split: {error}") from error
    return splits


def _read(name: str, sources: Sequence[DataSource]) -> list[Labelled]:
    try:
        return read_data(sources)
    except (OSError, ValueError) as error:
        raise ConfigError(f"config.{name}: {error}") from error


def _is_chat(config: RerankerTrainingConfig, splits: Splits, model: BaseModel) -> bool:
    """Whether conversations are scored. Raises ConfigError if the data or the tokenizer does not fit the format."""
    first = next((row for rows in splits for row in rows if not isinstance(row.prompt, str)), None)
    if config.format == TEXT and first is not None:
        raise ConfigError(f"config.format = {TEXT!r}: {first.where}: field 'prompt' is a conversation; use {CHAT!r}")
    chat = config.format == CHAT or (config.format == AUTO and first is not None)
    row = first or splits.train[0]
    try:
        check_tokenizer(model.tokenizer, chat)
        encode(model.tokenizer, row.prompt, row.candidates, chat=chat, whole=True)
    except ValueError as error:
        raise ConfigError(f"config.format = {config.format!r}, with the tokenizer of config.base: {error}") from error
    return chat


def _that_fit(config: RerankerTrainingConfig, splits: Splits, model: BaseModel, chat: bool) -> tuple[Splits, int]:
    """The splits without dev and test rows whose prompt leaves no room in `max_length`, and how many rows those are."""

    def fits(row: Labelled) -> bool:
        return len(encode(model.tokenizer, row.prompt, [], chat=chat, whole=True)[0]) < config.max_length

    kept = splits._replace(dev=list(filter(fits, splits.dev)), test=list(filter(fits, splits.test)))
    for name in ("dev", "test"):
        if not any(0 < sum(row.passed) < len(row.passed) for row in getattr(kept, name)):
            raise ConfigError(
                f"config.max_length = {config.max_length}: no {name} row whose prompt fits has a right and a wrong "
                "answer; use a larger value, or give more data"
            )
    return kept, sum(map(len, splits)) - sum(map(len, kept))
