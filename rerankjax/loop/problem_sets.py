"""The problems of a seed: loaded, checked against benchmarks, decontaminated, split and written once."""

import dataclasses
import hashlib
import itertools
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

from rerankjax.loop.config import ConfigError, EvaluationConfig, ExperimentConfig, SyntheticConfig
from rerankjax.problems.corpus import make_corpus
from rerankjax.problems.decontamination import decontaminate
from rerankjax.problems.family import Family, make_family
from rerankjax.problems.jsonl import write_records
from rerankjax.problems.problem import (
    Problem,
    Solution,
    read_problems,
    read_solutions,
    require_trainable,
    unique,
    write_problems,
    write_solutions,
)
from rerankjax.problems.sources import HELD_OUT, SYNTHETIC, SourceConfig
from rerankjax.run.reads import whole
from rerankjax.run.rundir import write_stage
from rerankjax.sandbox.multipl_e import REPAIRED, repair_csharp_lists

TRAIN, DEV = "train", "dev"


@dataclasses.dataclass(frozen=True)
class Problems:
    """Problems and shots by split: TRAIN, DEV and each evaluation set. corpus: the synthetic family's."""

    splits: dict[str, tuple[Problem, ...]]
    shots: dict[str, tuple[Problem, ...]]
    corpus: tuple[Solution, ...]


def open_problems(config: ExperimentConfig, seed: int, root: Path) -> Problems:
    """The problems of the seed, loaded or read. problems/removed.jsonl lists the removed ones with the reason.

    Raises:
        ConfigError: a source cannot be read (the message names file, row and field); a training problem is in a
            benchmark; two problems have the same name; there are too few problems.
    """

    def fill(directory: Path, config: ExperimentConfig) -> None:
        _write(directory, config, seed)

    facts = {str(path): _digest(path) for path in sorted(_files(config))}
    facts["evaluation"] = ", ".join(config.evaluation)
    path = write_stage(root, f"seed{seed}/problems", config, [], fill, facts=facts)
    names = (TRAIN, DEV, *config.evaluation)
    return Problems(
        {name: read_problems(path / f"{name}.jsonl") for name in names},
        {name: read_problems(path / f"{name}-shots.jsonl") for name in names},
        read_solutions(path / "corpus.jsonl"),
    )


def _write(directory: Path, config: ExperimentConfig, seed: int) -> None:
    wanted = whole(config.problems)
    synthetic = wanted.synthetic
    family = _family(seed, synthetic) if synthetic else None
    sets = {name: whole(config.evaluation[name]) for name in config.evaluation}
    training = _load("problems.train", wanted.train, family.train if family else ())
    dev = _load("problems.dev", wanted.dev, family.dev if family else ())
    named = _with_own_names([*training, *dev])
    training, dev = named[: len(training)], named[len(training) :]
    try:
        require_trainable(named, train_on_benchmarks=wanted.train_on_benchmarks)
        unique(("train and dev", problem) for problem in named)
    except ValueError as error:
        raise ConfigError(f"config.problems.train, config.problems.dev: {error}") from error
    synthetic_ids = {id(problem) for problem in (*family.train, *family.dev, *family.test)} if family else set()
    if any(id(problem) not in synthetic_ids for problem in training):
        training = random.Random(seed).sample(training, len(training))
    held_out: list[Problem] = []
    if any(source.source == HELD_OUT for settings in sets.values() for source in settings.sources):
        held_out, training = training[: wanted.test_problems], training[wanted.test_problems :]
    evaluation = {name: _evaluation_set(name, settings, family, held_out) for name, settings in sets.items()}
    tested = list(itertools.chain(*evaluation.values()))
    kept, removed = _decontaminated(training, tested, synthetic_ids, wanted.decontamination_ngram)
    kept_dev, removed_dev = _decontaminated(dev, tested, synthetic_ids, wanted.decontamination_ngram)
    if not dev:
        kept_dev, kept = kept[: wanted.dev_problems], kept[wanted.dev_problems :]
    kept = kept[: wanted.max_train or None]

    corpus: Sequence[Solution] = ()
    if synthetic and family and any(source.source == SYNTHETIC for source in wanted.train):
        written = make_corpus(
            seed,
            family,
            synthetic.corpus,
            fault_probability=synthetic.fault_probability,
            slip_probability=synthetic.slip_probability,
        )
        left = {problem.name for problem in kept}
        corpus = [solution for solution in written if solution.problem in left]
    cases = wanted.max_test_cases or None
    splits = {TRAIN: _with_cases(kept, cases), DEV: _with_cases(kept_dev, cases)} | evaluation
    prompts = {TRAIN: config.prompts, DEV: config.prompts} | {
        name: settings.prompts or config.prompts for name, settings in sets.items()
    }
    for name, problems in splits.items():
        write_problems(directory / f"{name}.jsonl", problems)
        asked = whole(prompts[name])
        write_problems(directory / f"{name}-shots.jsonl", _shots(name, asked.shots, asked.shot_names))
    write_solutions(directory / "corpus.jsonl", corpus)
    write_records(directory / "removed.jsonl", [*removed, *removed_dev])
    if removed or removed_dev:
        print(
            f"{len(removed) + len(removed_dev)} training and dev problems overlap evaluation problems and are removed"
        )


def _family(seed: int, sizes: SyntheticConfig) -> Family:
    return make_family(seed, sizes.train, sizes.dev, sizes.test, lengths=sizes.steps, languages=sizes.languages)


def _load(field: str, sources: Sequence[SourceConfig], synthetic: Sequence[Problem]) -> list[Problem]:
    problems: list[Problem] = []
    for source in sources:
        if source.source == SYNTHETIC:
            problems += synthetic
            continue
        try:
            problems += source.load()
        except (OSError, ValueError) as error:
            raise ConfigError(f"config.{field}: {error}") from error
    return problems


def _evaluation_set(
    name: str, config: EvaluationConfig, family: Family | None, held_out: Sequence[Problem]
) -> list[Problem]:
    """The problems of an evaluation set: the first `max_problems` of each source and language."""
    problems: list[Problem] = []
    for source in config.sources:
        of_source = held_out
        if source.source != HELD_OUT:
            of_source = _load(f"evaluation.{name}.sources", [source], family.test if family else ())
        languages = dict.fromkeys(problem.language for problem in of_source)
        for language in languages if config.max_problems else ():
            problems += [problem for problem in of_source if problem.language == language][: config.max_problems]
        problems += of_source if not config.max_problems else ()
    problems = _with_own_names(problems)
    try:
        unique((f"config.evaluation.{name}.sources", problem) for problem in problems)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if config.csharp_lists == REPAIRED:
        problems = [
            dataclasses.replace(p, tests=repair_csharp_lists(p.tests)) if p.language == "cs" and p.benchmark else p
            for p in problems
        ]
    return problems


def _with_own_names(problems: Sequence[Problem]) -> list[Problem]:
    """The problems; if several languages share a name, as in MultiPL-E's translations, the name gets the language."""
    languages_of: dict[str, set[str]] = {}
    for p in problems:
        languages_of.setdefault(p.name, set()).add(p.language)
    shared = {name for name, languages in languages_of.items() if len(languages) > 1}
    return [dataclasses.replace(p, name=f"{p.name}-{p.language}") if p.name in shared else p for p in problems]


def _decontaminated(
    training: Sequence[Problem], evaluation: Sequence[Problem], synthetic: set[int], n: int
) -> tuple[list[Problem], list[object]]:
    """The problems that share no `n` consecutive words with an evaluation problem, and records of the removed ones.

    Synthetic problems are not compared with each other: they share words, and their compositions differ by split.
    """
    if not n:
        return list(training), []
    others = [problem for problem in evaluation if id(problem) not in synthetic]
    made, given = ([p for p in training if (id(p) in synthetic) is of_family] for of_family in (True, False))
    kept_made, removed_made = decontaminate(made, others, n=n)
    kept_given, removed_given = decontaminate(given, evaluation, n=n)
    left = {id(problem) for problem in (*kept_made, *kept_given)}
    return [problem for problem in training if id(problem) in left], [*removed_made, *removed_given]


def _with_cases(problems: Iterable[Problem], most: int | None) -> list[Problem]:
    return [dataclasses.replace(p, cases=p.cases[:most]) if p.cases else p for p in problems]


def _shots(split: str, sources: Sequence[SourceConfig], names: Sequence[str]) -> list[Problem]:
    problems = _load(f"prompts.shots, for {split}", sources, ())
    missing = set(names) - {problem.name for problem in problems}
    if missing:
        raise ConfigError(
            f"config.prompts.shot_names: {', '.join(sorted(missing))} not found in prompts.shots; correct the names"
        )
    return [problem for problem in problems if problem.name in names or not names]


def _files(config: ExperimentConfig) -> set[Path]:
    """The local files that problems are read from."""
    sources = [*config.problems.train, *config.problems.dev, *config.prompts.shots]
    for evaluation in config.evaluation.values():
        sources += [*evaluation.sources, *(evaluation.prompts.shots if evaluation.prompts else ())]
    paths = {Path(s.source.replace("{language}", language)) for s in sources for language in s.languages}
    return {path for path in paths if path.is_file()}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
