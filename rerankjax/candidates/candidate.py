"""A sampled solution with its verdict, and its Parquet file."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One sample of one problem. The sandbox gives `verdict`, and `detail`: the end of a failing run's stderr."""

    problem: str
    sample: int
    completion: str
    log_probability: float  # mean over the completion's tokens, nats, under the policy at temperature 1
    length: int  # tokens, the end-of-text token included
    finished: bool
    verdict: str = ""
    detail: str = ""

    @property
    def passed(self) -> bool:
        return self.verdict == "passed"


def write_candidates(path: Path, candidates: Iterable[Candidate]) -> None:
    import datasets  # slow to import, and a bare accelerator machine may lack it

    datasets.disable_progress_bars()  # the caller shows its own
    datasets.Dataset.from_list([dataclasses.asdict(c) for c in candidates]).to_parquet(path)


def read_candidates(path: Path) -> list[Candidate]:
    import pyarrow.parquet

    return [Candidate(**row) for row in pyarrow.parquet.read_table(path).to_pylist()]
