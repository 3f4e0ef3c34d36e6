"""What selection rules may look at: one system's samples of one evaluation set, as host arrays."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rerankjax.results.calibration import Platt
from rerankjax.results.clusters import Executed

_PER_PROBLEM = ("passed", "greedy", "scores", "log_probabilities", "lengths", "greedy_lengths")


@dataclass(frozen=True, eq=False)
class Likelihood:
    """Log-probabilities of a policy's samples under the SFT model, from which PPO starts: float [P, n] each.

    sft: log-probability under the SFT model, mean per token in nats. log_ratio: log-probability of the whole completion
    under the policy minus that under the SFT model, in nats; its mean estimates the policy's KL to the SFT model.
    """

    sft: np.ndarray
    log_ratio: np.ndarray


@dataclass(frozen=True, eq=False)
class Evaluation:
    """n executed samples and one greedy answer for each of P problems, of one seed and one system.

    A system is a policy and the reranker that scores its samples, or a policy alone.

    Attributes:
      seed: the run's seed.
      evaluation_set: the name of the set that the problems are from.
      system: its name: "base", "sft", "ppo", an iteration's name, or that name with "+ppo".
      label: the system's name in tables and figures.
      policy: the policy that sampled. Evaluations of one seed, set and policy hold the same samples.
      policy_label: the policy's name in tables and figures.
      reranker: the reranker that scored; "" without one.
      problems: P problem names, unique within a language.
      programs: P x n completions.
      passed: bool [P, n], whether all tests passed.
      greedy: bool [P], whether the policy's greedy answer passed all tests.
      scores: float [P, n], the reranker's; None without a reranker.
      log_probabilities: float [P, n], mean per token in nats, under the policy that wrote the completion.
      lengths: int [P, n], tokens.
      log_prob_weight: lambda of reranker + lambda * log-probability, chosen on the dev split.
      platt: turns scores into probabilities; fitted on the dev split. None without a reranker.
      languages: the language of each problem, by MultiPL-E's short name.
      sampling_seconds: time to draw and execute all samples, 0 if unmeasured.
      scoring_seconds: time to score all samples, 0 if unmeasured.
      sandbox_errors: programs that the sandbox could not judge; they count as failing.
      caught: programs that passed their tests and were caught by a control; they count as failing.
      greedy_lengths: int [P], tokens of the greedy answers, None if unknown.
      greedy_seconds: time to draw and execute the greedy answers, 0 if unmeasured.
      executed: the programs' outputs on the prompts' inputs; None if they were not run on inputs.
      likelihood: the samples' log-probabilities under the SFT model; None if they were not computed.
      sft_log_prob_weight: lambda of reranker + lambda * log-probability under the SFT model, chosen on the dev split.
      dev: the fraction of the dev split's problems that each rule solves, by which rules are chosen.

    Raises:
      ValueError: an array has another shape or type than stated, a number is not finite, or a reranker has no scores.
    """

    seed: int
    evaluation_set: str
    system: str
    label: str
    policy: str
    policy_label: str
    reranker: str
    problems: tuple[str, ...]
    programs: tuple[tuple[str, ...], ...]
    passed: np.ndarray
    greedy: np.ndarray
    scores: np.ndarray | None
    log_probabilities: np.ndarray
    lengths: np.ndarray
    log_prob_weight: float
    platt: Platt | None
    languages: tuple[str, ...]
    sampling_seconds: float = 0.0
    scoring_seconds: float = 0.0
    sandbox_errors: int = 0
    caught: int = 0
    greedy_lengths: np.ndarray | None = None
    greedy_seconds: float = 0.0
    executed: Executed | None = None
    likelihood: Likelihood | None = None
    sft_log_prob_weight: float = 0.0
    dev: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        where = f"evaluation of seed {self.seed}, set {self.evaluation_set!r}, system {self.system!r}"
        for field in ("evaluation_set", "system", "label", "policy", "policy_label"):
            if not getattr(self, field):
                raise ValueError(f"{where}: {field} is empty; name it")
        if self.passed.ndim != 2 or self.passed.dtype != bool or self.passed.size == 0:
            raise ValueError(
                f"{where}: passed is {self.passed.dtype} {self.passed.shape}; give bool [problems, samples], not empty"
            )
        shape = self.passed.shape
        if self.greedy.dtype != bool or self.greedy.shape != shape[:1]:
            raise ValueError(f"{where}: greedy is {self.greedy.dtype} {self.greedy.shape}; give bool [{shape[0]}]")
        for field in ("scores", "platt"):
            if (getattr(self, field) is None) != (not self.reranker):
                raise ValueError(
                    f"{where}: reranker is {self.reranker!r} and {field} is {type(getattr(self, field)).__name__}; "
                    f"give {field} if there is a reranker, otherwise None"
                )
        for field in ("scores", "log_probabilities", "lengths"):
            array = getattr(self, field)
            if array is None:
                continue
            if array.shape != shape:
                raise ValueError(f"{where}: {field} has shape {array.shape}; give one for every sample: {shape}")
            if not np.isfinite(array).all():
                problem, sample = np.argwhere(~np.isfinite(array))[0]
                raise ValueError(
                    f"{where}: {field}[{problem}, {sample}] is {array[problem, sample]}, which cannot be ranked; "
                    "score every sample with a finite number"
                )
        for field in ("reproduces", "clusters") if self.executed else ():
            if getattr(self.executed, field).shape != shape:
                raise ValueError(f"{where}: executed.{field} differs from passed in shape; give one for every sample")
        for field in ("sft", "log_ratio") if self.likelihood else ():
            array = getattr(self.likelihood, field)
            if array.shape != shape or not np.isfinite(array).all():
                raise ValueError(f"{where}: likelihood.{field} is not a finite {shape}; give a number for every sample")
        if self.greedy_lengths is not None and self.greedy_lengths.shape != shape[:1]:
            raise ValueError(f"{where}: greedy_lengths has shape {self.greedy_lengths.shape}; give {shape[:1]}")
        if len(self.languages) != shape[0]:
            raise ValueError(
                f"{where}: there are {len(self.languages)} languages; give one for each of {shape[0]} problems"
            )
        if len(self.problems) != shape[0] or len(set(self.keys)) != shape[0]:
            raise ValueError(
                f"{where}: problems has {len(self.problems)} names; give {shape[0]}, each once within a language"
            )
        if {len(row) for row in self.programs} != {shape[1]} or len(self.programs) != shape[0]:
            raise ValueError(f"{where}: programs are not {shape[0]} x {shape[1]}; give one for every sample")
        if not np.isfinite(self.log_prob_weight):
            raise ValueError(
                f"{where}: log_prob_weight is {self.log_prob_weight}; choose a finite one on the dev split"
            )
        if self.platt and not np.isfinite([self.platt.slope, self.platt.intercept]).all():
            raise ValueError(f"{where}: platt is {self.platt}; fit it to finite scores of the dev split")
        for field in ("sampling_seconds", "scoring_seconds", "greedy_seconds", "sandbox_errors", "caught"):
            if not 0 <= getattr(self, field) < np.inf:
                raise ValueError(f"{where}: {field} is {getattr(self, field)}; give the measured value, or 0")

    @property
    def keys(self) -> tuple[tuple[str, str], ...]:
        """Language and name of each problem: translations of one problem may share its name."""
        return tuple(zip(self.languages, self.problems, strict=False))

    @property
    def probabilities(self) -> np.ndarray:
        """The probability that each sample passes, according to its score: float [P, n]."""
        assert self.platt is not None
        return self.platt.probabilities(self.reranker_scores)

    @property
    def reranker_scores(self) -> np.ndarray:
        """`scores`, float [P, n], of a system that has a reranker."""
        if self.scores is None:
            raise ValueError(f"system {self.system!r} has no reranker, so its samples have no scores")
        return self.scores

    def of_language(self, language: str) -> "Evaluation":
        """The part whose problems are in `language`; the part's seconds and counts of programs are unknown: 0."""
        rows = [i for i, name in enumerate(self.languages) if name == language]
        arrays = {name: getattr(self, name) for name in _PER_PROBLEM}
        return dataclasses.replace(
            self,
            problems=tuple(self.problems[i] for i in rows),
            programs=tuple(self.programs[i] for i in rows),
            **{name: array[rows] for name, array in arrays.items() if array is not None},
            languages=(language,) * len(rows),
            likelihood=Likelihood(self.likelihood.sft[rows], self.likelihood.log_ratio[rows])
            if self.likelihood
            else None,
            executed=self.executed.of_problems(rows) if self.executed else None,
            sampling_seconds=0.0,
            scoring_seconds=0.0,
            greedy_seconds=0.0,
            sandbox_errors=0,
            caught=0,
        )
