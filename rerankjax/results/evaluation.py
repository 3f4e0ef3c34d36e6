"""One arm's samples of the test split with all that selection rules may look at, as host arrays."""

import dataclasses
from dataclasses import dataclass

import numpy as np

from rerankjax.results.calibration import Platt

# Every arm the loop may run, with the words people read. A smaller config leaves some out.
ARMS = {
    "sft": "SFT, reranker 1",
    "ppo": "PPO, reranker 1",
    "control": "PPO, reranker 2 (same data)",
    "random": "PPO, reranker 2 (random negatives)",
    "hard": "PPO, reranker 2 (hard negatives)",
    "self_training": "PPO, reranker 2 (self-training)",
    "control+ppo": "PPO 2, reranker 2 (same data)",
    "random+ppo": "PPO 2, reranker 2 (random negatives)",
    "hard+ppo": "PPO 2, reranker 2 (hard negatives)",
    "self_training+ppo": "PPO 2, reranker 2 (self-training)",
}


@dataclass(frozen=True, eq=False)
class Evaluation:
    """n samples for each of P problems, executed, scored by one reranker; one seed and one arm.

    Attributes:
      seed: the run's seed.
      arm: a key of `ARMS`.
      policy: whose samples: "sft", "ppo" or "ppo2/<arm>". Evaluations of one seed and policy hold the same samples.
      reranker: which reranker scored.
      problems: P problem names.
      programs: P x n completions.
      passed: bool [P, n], whether all tests passed.
      scores: float [P, n], the reranker's.
      log_probabilities: float [P, n], mean per token in nats, under the policy that wrote the completion.
      lengths: int [P, n], tokens.
      lam: lambda of reranker + lambda * log-probability, chosen on the dev split.
      platt: what makes probabilities of the scores, fitted on the dev split.
      languages: of each problem, by MultiPL-E's short names.
      sampling_seconds: what it took to draw and execute all samples, 0 where nobody measured.
      scoring_seconds: what it took to score them, likewise.

    Raises:
      ValueError: the arm is unknown, an array has another shape or type than stated, or a number is not finite.
    """

    seed: int
    arm: str
    policy: str
    reranker: str
    problems: tuple[str, ...]
    programs: tuple[tuple[str, ...], ...]
    passed: np.ndarray
    scores: np.ndarray
    log_probabilities: np.ndarray
    lengths: np.ndarray
    lam: float
    platt: Platt
    languages: tuple[str, ...]
    sampling_seconds: float = 0.0
    scoring_seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.arm not in ARMS:
            raise ValueError(f"arm is {self.arm!r}; choose one of {', '.join(ARMS)}, or name a new one in ARMS")
        where = f"evaluation of seed {self.seed}, arm {self.arm!r}"
        if self.passed.ndim != 2 or self.passed.dtype != bool or self.passed.size == 0:
            raise ValueError(
                f"{where}: passed is {self.passed.dtype} {self.passed.shape}; give bool [problems, samples], not empty"
            )
        shape = self.passed.shape
        for field in ("scores", "log_probabilities", "lengths"):
            array = getattr(self, field)
            if array.shape != shape:
                raise ValueError(f"{where}: {field} has shape {array.shape}; give one for every sample, {shape}")
            if not np.isfinite(array).all():
                problem, sample = np.argwhere(~np.isfinite(array))[0]
                raise ValueError(
                    f"{where}: {field}[{problem}, {sample}] is {array[problem, sample]}, which has no rank; "
                    "score every sample with a finite number"
                )
        if len(self.problems) != shape[0] or len(set(self.problems)) != shape[0]:
            raise ValueError(f"{where}: problems are {len(self.problems)} names; give {shape[0]} different ones")
        if {len(row) for row in self.programs} != {shape[1]} or len(self.programs) != shape[0]:
            raise ValueError(f"{where}: programs are not {shape[0]} x {shape[1]}; give one for every sample")
        if len(self.languages) != shape[0]:
            raise ValueError(f"{where}: languages are {len(self.languages)}; give one for each of {shape[0]} problems")
        if not np.isfinite(self.lam):
            raise ValueError(f"{where}: lam is {self.lam}; choose a finite one on the dev split")
        if not np.isfinite([self.platt.slope, self.platt.intercept]).all():
            raise ValueError(f"{where}: platt is {self.platt}; fit it to finite scores of the dev split")
        for field in ("sampling_seconds", "scoring_seconds"):
            if not 0 <= getattr(self, field) < np.inf:
                raise ValueError(f"{where}: {field} is {getattr(self, field)}; give the seconds it took, or 0")

    @property
    def probabilities(self) -> np.ndarray:
        """That each sample passes, as its score says: float [P, n]."""
        return self.platt.probabilities(self.scores)

    def of_language(self, language: str) -> "Evaluation":
        """The part of it whose problems are in `language`; its seconds are not known."""
        rows = [i for i, name in enumerate(self.languages) if name == language]
        return dataclasses.replace(
            self,
            problems=tuple(self.problems[i] for i in rows),
            programs=tuple(self.programs[i] for i in rows),
            **{name: getattr(self, name)[rows] for name in ("passed", "scores", "log_probabilities", "lengths")},
            languages=(language,) * len(rows),
            sampling_seconds=0.0,
            scoring_seconds=0.0,
        )
