"""A run's results file: every figure, paired difference, reranker measure and cost, one per line of JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rerankjax.problems.jsonl import write_text
from rerankjax.results.calibration import Bin
from rerankjax.results.statistics import Estimate

VERSION = 4
MEAN = "mean"  # the language of a figure that is the mean of the languages' fractions
MEASURES = {
    "auc": "AUC",
    "pairwise_accuracy": "pairwise accuracy",
    "expected_calibration_error": "calibration error",
}


CONTROLS = ("same_data", "random")  # iterations that add nothing to the pairs, or what the paper does not add


@dataclass(frozen=True, kw_only=True)
class System:
    """The policy that sampled and the reranker that scored ("" without one). The tuples have one value per seed.

    `log_prob_weight` is lambda; `slope` and `intercept` turn scores into probabilities; all three are empty without a
    reranker. `sandbox_errors` and `caught` count programs, as in `Evaluation`. `with_inputs` counts problems whose
    prompt has inputs on which programs were run; it is empty if none was run.
    """

    system: str
    label: str
    policy: str
    policy_label: str
    reranker: str
    log_prob_weight: tuple[float, ...]
    slope: tuple[float, ...]
    intercept: tuple[float, ...]
    sandbox_errors: tuple[int, ...]
    caught: tuple[int, ...]
    with_inputs: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class DevFigure:
    """The fraction of the dev split's problems that `rule` solves for a system, the mean over seeds."""

    system: str
    rule: str
    value: float


@dataclass(frozen=True, kw_only=True)
class Figure(Estimate):
    """The fraction of problems solved when `rule` chooses among n samples; for the rule "oracle", unbiased pass@n.

    Seed None is the mean over seeds, language None all problems, language `MEAN` the mean of the languages' fractions.
    """

    seed: int | None
    system: str
    rule: str
    n: int
    language: str | None = None


@dataclass(frozen=True, kw_only=True)
class Difference(Estimate):
    """The figure of (system, rule) minus that of (baseline_system, baseline_rule), on the same problems, all samples.

    `alone` counts the problems that only the first one's answer solves, `baseline_alone` those that only the second's
    solves. `p_value` is McNemar's for these counts; None where seeds share problems, which are then not independent.
    """

    seed: int | None
    system: str
    rule: str
    baseline_system: str
    baseline_rule: str
    alone: int
    baseline_alone: int
    p_value: float | None


@dataclass(frozen=True, kw_only=True)
class Discrimination(Estimate):
    """How well a system's reranker tells correct from incorrect: `measure` is a key of `MEASURES`."""

    seed: int | None
    system: str
    measure: str
    language: str | None = None


@dataclass(frozen=True, kw_only=True)
class Reliability(Bin):
    """One bin of a system's reliability plot, over all seeds."""

    system: str


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a system's answers cost per problem: all samples are drawn, executed and scored, one is chosen.

    `tokens` is the mean length of a sample, `chosen_tokens` that of the sample the reranker chooses, `greedy_tokens`
    that of the greedy answer. Seconds are those of the run and include compilation and execution. `output_runs` counts
    the programs that execution-aware rules ran on the prompts' inputs, except those that an earlier system had run.
    None: unmeasured, or no reranker.
    """

    seed: int | None
    system: str
    tokens: float
    chosen_tokens: float | None
    greedy_tokens: float | None
    sampling_seconds: float | None
    scoring_seconds: float | None
    greedy_seconds: float | None
    output_runs: float | None
    output_seconds: float | None


@dataclass(frozen=True, kw_only=True)
class Divergence(Estimate):
    """KL to the SFT model, nats per completion, of one of a system's samples (rule "random"), or of the sample that its
    reranker chooses among n (rule "reranker"). Estimated on the set's samples."""

    seed: int | None
    system: str
    rule: str


@dataclass(frozen=True, kw_only=True)
class Results:
    """One evaluation set of a run: everything that its table and its part of the report show.

    `problems` has one count per seed; `samples` is n per problem. Systems are in the order of their evaluations.
    Figures and AUCs by language are means over seeds, with all samples; they exist if the set has several languages.
    """

    config_digest: str
    seeds: tuple[int, ...]
    evaluation_set: str
    problems: tuple[int, ...]
    samples: int
    languages: tuple[str, ...]
    systems: tuple[System, ...]
    figures: tuple[Figure, ...]
    differences: tuple[Difference, ...]
    discriminations: tuple[Discrimination, ...]
    reliabilities: tuple[Reliability, ...]
    costs: tuple[Cost, ...]
    dev: tuple[DevFigure, ...]
    divergences: tuple[Divergence, ...]

    @property
    def best_answer(self) -> tuple[str, str] | None:
        """The (system, rule) that solves most of the dev split; the paper's wins ties. None if no rule was tried."""
        fractions = {(row.system, row.rule): row.value for row in self.dev}
        return max(fractions, key=lambda answer: (fractions[answer], answer == self.paper_answer), default=None)

    @property
    def paper_answer(self) -> tuple[str, str] | None:
        """The paper's answer: what the reranker alone chooses among samples of the last policy trained against it."""
        last = [s.system for s in self.systems if s.system == "ppo" or s.system.endswith("+ppo")]
        return (last[-1], "reranker") if last else None

    @property
    def second_iteration(self) -> str | None:
        """Of the systems with a later iteration's reranker, without controls, the one whose reranker alone solves most
        of the dev split; None if there is none."""
        fractions = {
            row.system: row.value
            for row in self.dev
            if row.rule == "reranker" and row.system.removesuffix("+ppo") not in ("sft", "ppo", *CONTROLS)
        }
        return max((s for s in fractions if "/" not in s), key=fractions.__getitem__, default=None)

    def find(
        self, system: str, rule: str, n: int | None = None, seed: int | None = None, language: str | None = None
    ) -> Figure | None:
        """The requested figure; n None: all samples, seed None: the mean over seeds, language None: all languages.

        Returns None if the set lacks the system, or if the rule needs a reranker and the system has none.
        """
        asked = (system, rule, self.samples if n is None else n, seed, language)
        for row in self.figures:
            if (row.system, row.rule, row.n, row.seed, row.language) == asked:
                return row
        return None

    def figure(
        self, system: str, rule: str, n: int | None = None, seed: int | None = None, language: str | None = None
    ) -> Figure:
        """As `find`, but raises ValueError where there is no such figure."""
        row = self.find(system, rule, n, seed, language)
        if row is None:
            raise ValueError(
                f"no figure of system {system!r}, rule {rule!r}, n {n}, seed {seed}, language {language!r}; set "
                f"{self.evaluation_set!r} has the systems {', '.join(s.system for s in self.systems)}, the languages "
                f"{', '.join(self.languages)}"
            )
        return row

    def discrimination(
        self, system: str, measure: str, seed: int | None = None, language: str | None = None
    ) -> Discrimination | None:
        """The requested measure, or None where it is undefined: no reranker, or samples that all pass or all fail."""
        asked = (system, measure, seed, language)
        rows = [r for r in self.discriminations if (r.system, r.measure, r.seed, r.language) == asked]
        return rows[0] if rows else None

    def divergence(self, system: str, rule: str, seed: int | None = None) -> Divergence | None:
        """A system's KL by that rule; None without the SFT model's log-probabilities or the reranker that it needs."""
        asked = (system, rule, seed)
        return next((row for row in self.divergences if (row.system, row.rule, row.seed) == asked), None)

    def cost(self, system: str, seed: int | None = None) -> Cost:
        """A system's cost, the mean over seeds or one seed's."""
        return next(row for row in self.costs if (row.system, row.seed) == (system, seed))


_ROWS = {
    "systems": System,
    "figures": Figure,
    "differences": Difference,
    "discriminations": Discrimination,
    "reliabilities": Reliability,
    "costs": Cost,
    "dev": DevFigure,
    "divergences": Divergence,
}
_OF_RUN = ("config_digest", "seeds")  # identical in all of a run's evaluation sets


def save(results: Sequence[Results], path: Path) -> None:
    """Writes a run's evaluation sets, one row per line, and replaces an older file as a whole."""
    head = {"version": VERSION, **{name: getattr(results[0], name) for name in _OF_RUN}}
    lines = [f'  "{name}": {json.dumps(value)}' for name, value in head.items()]
    sets = ",\n".join(_set_text(of_set) for of_set in results)
    write_text(path, "{\n" + ",\n".join([*lines, f'  "evaluations": [\n{sets}\n  ]']) + "\n}\n")


def _set_text(results: Results) -> str:
    entries = []
    for name, value in asdict(results).items():
        if name in _ROWS:
            rows = ",\n".join("        " + json.dumps(row, allow_nan=False) for row in value)
            entries.append(f'      "{name}": [\n{rows}\n      ]' if rows else f'      "{name}": []')
        elif name not in _OF_RUN:
            entries.append(f'      "{name}": {json.dumps(value)}')
    return "    {\n" + ",\n".join(entries) + "\n    }"


def load(path: Path) -> tuple[Results, ...]:
    """Reads what `save` wrote.

    Raises:
      ValueError: the file is not JSON, has another version, or lacks or adds a field.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        version = fields.pop("version")
        if version != VERSION:
            raise ValueError(f"version is {version!r}, but this code reads {VERSION}")
        sets = fields.pop("evaluations")
        if set(fields) != set(_OF_RUN):
            raise ValueError(f"its fields are {', '.join(sorted(fields))}; it should have {', '.join(_OF_RUN)}")
        return tuple(_set_of(fields | of_set) for of_set in sets)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a results file: {error}; write it again from the run's evaluations") from error


def _set_of(fields: dict[str, Any]) -> Results:
    rows = {name: tuple(kind(**_tuples(row)) for row in fields[name]) for name, kind in _ROWS.items()}
    return Results(**_tuples(fields | rows))


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
