"""A sweep takes from other runs what its config would make the same, and nothing else."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from rerankjax.run.reuse import reuse
from rerankjax.run.rundir import RunDirectoryError, digest_of, open_run, write_stage

CONFIG: dict[str, Any] = {
    "problems": {"train": 8},
    "sandbox": {"workers": 2, "cpu_seconds": 5.0},
    "candidates": {"train": 4},
    "mining": {"pairs": 6, "later_pairs": 5},
    "ppo": {"kl_coef": 0.15},
    "never_read": 1,
}
# In a run's order: what a stage reads of the config, and which stages.
STAGES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "problems": (("problems.train",), ()),
    "policies/sft": ((), ("problems",)),
    "candidates/sft-train": (("candidates.train", "sandbox.cpu_seconds", "sandbox.workers"), ("policies/sft",)),
    "rerankers/first": (("mining.pairs",), ("policies/sft", "candidates/sft-train")),
    "policies/ppo": (("ppo.kl_coef",), ("policies/sft", "rerankers/first")),
    "candidates/ppo-train": (("candidates.train", "sandbox.cpu_seconds"), ("policies/ppo",)),
    "rerankers/hard": (("mining.later_pairs",), ("rerankers/first", "candidates/ppo-train")),
}
SAMPLED = {"problems", "policies/sft", "candidates/sft-train"}
RERANKED = SAMPLED | {"rerankers/first"}
PPO = RERANKED | {"policies/ppo", "candidates/ppo-train"}


def run_of(root: Path, config: dict[str, Any] = CONFIG, seeds: tuple[int, ...] = (0, 1), mark: str = "") -> Path:
    """A run whose stages each hold the mark of their run and their name."""

    def fill(directory: Path, view: Any, stage: str) -> None:
        for field in STAGES[stage][0]:
            section, name = field.split(".")
            _ = view[section][name]
        (directory / "file").write_text(f"{mark}{stage}")

    with open_run(root, config):
        for seed in seeds:
            for stage, (_, inputs) in STAGES.items():
                of_seed = [f"seed{seed}/{name}" for name in inputs]
                write_stage(root, f"seed{seed}/{stage}", config, of_seed, lambda d, c, s=stage: fill(d, c, s))
    return root


def stages_of(root: Path) -> set[str]:
    return {str(path.parent.relative_to(root)) for path in root.glob("**/stage.json")}


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        ({"never_read": 2, "sandbox": {"workers": 9, "cpu_seconds": 5.0}, "new": {"field": 1}}, set(STAGES)),
        ({"mining": {"pairs": 6, "later_pairs": 9}}, PPO),
        ({"ppo": {"kl_coef": 0.3}}, RERANKED),
        ({"mining": {"pairs": 7, "later_pairs": 5}}, SAMPLED),
        ({"candidates": {"train": 8}}, SAMPLED - {"candidates/sft-train"}),
        ({"ppo": {}}, RERANKED),
    ],
)
def test_what_is_the_same_is_taken(tmp_path: Path, changed: dict, same: set[str]) -> None:
    """By its own fields and by those of all that it was made from: no hard-negative reranker of another PPO."""
    other, root, config = run_of(tmp_path / "other"), tmp_path / "root", CONFIG | changed
    assert (
        set(reuse(root, [other], config, [0, 1])) == stages_of(root) == {f"seed{i}/{s}" for i in (0, 1) for s in same}
    )
    assert all((root / stage / "file").read_text() == stage.split("/", 1)[1] for stage in stages_of(root))
    assert reuse(root, [other], config, [0, 1]) == []  # again: all is there
    if "ppo" not in changed or changed["ppo"]:
        run_of(root, config, mark="own ")  # and the run goes on behind it
        for stage in STAGES:
            assert (root / "seed0" / stage / "file").read_text() == ("" if stage in same else "own ") + stage


def test_only_the_seeds_of_this_run_are_taken_and_no_stage_at_work(tmp_path: Path) -> None:
    other = run_of(tmp_path / "other")
    (other / "seed1/policies/.ppo2.partial").mkdir()
    (other / "seed1/policies/.ppo2.partial/stage.json").write_text((other / "seed1/problems/stage.json").read_text())
    assert set(reuse(tmp_path / "root", [other], CONFIG, [1, 2])) == {f"seed1/{stage}" for stage in STAGES}


def test_the_first_run_that_has_a_stage_gives_it(tmp_path: Path) -> None:
    ppo = run_of(tmp_path / "ppo", CONFIG | {"ppo": {"kl_coef": 0.3}}, (0,), "ppo ")
    mining = run_of(tmp_path / "mining", CONFIG | {"mining": {"pairs": 6, "later_pairs": 9}}, (0,), "mining ")
    taken = reuse(tmp_path / "root", [ppo, mining], CONFIG, [0])
    assert {s.removeprefix("seed0/") for s in taken} == PPO
    for stage in PPO:
        mark = "ppo " if stage in RERANKED else "mining "
        assert (tmp_path / "root/seed0" / stage / "file").read_text() == mark + stage


def test_what_this_run_has_is_kept(tmp_path: Path) -> None:
    root = run_of(tmp_path / "root", mark="own ")
    assert reuse(root, [run_of(tmp_path / "other")], CONFIG, [0, 1]) == []
    assert (root / "seed0/policies/sft/file").read_text() == "own policies/sft"


def test_stages_are_taken_whatever_the_age_of_their_files(tmp_path: Path) -> None:
    """A copied run has all times anew, in any order."""
    other = run_of(tmp_path / "other")
    for age, stage in enumerate(STAGES):
        os.utime(other / "seed0" / stage / "stage.json", (1e9 - age, 1e9 - age))
    assert len(reuse(tmp_path / "root", [other], CONFIG, [0])) == len(STAGES)


def test_a_stage_of_an_input_that_this_run_made_otherwise_is_not_taken(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write_stage(root, "seed0/problems", CONFIG, [], lambda d, c: c.problems.train, facts={"p.jsonl": "changed"})
    with pytest.raises(RunDirectoryError, match="the stages in this run were made from other stages or files"):
        reuse(root, [run_of(tmp_path / "other")], CONFIG, [0])
    assert stages_of(root) == {"seed0/problems"}


def test_nothing_to_take_is_an_error_that_says_why(tmp_path: Path) -> None:
    other, root = run_of(tmp_path / "other"), tmp_path / "root"
    changed = CONFIG | {"problems": {"train": 9}, "candidates": {"train": 8}}
    with pytest.raises(RunDirectoryError, match=rf"--reuse={other}: .* differ in candidates.train, problems.train$"):
        reuse(root, [other], changed, [0])
    for nothing in (tmp_path / "nowhere", root):
        with pytest.raises(RunDirectoryError, match=rf"--reuse={nothing}: this is not a run \(no config.json\)"):
            reuse(root, [other, nothing], CONFIG, [0])


def test_a_run_of_the_old_layout_has_nothing_to_take(tmp_path: Path) -> None:
    (tmp_path / "old/seed0/problems").mkdir(parents=True)
    (tmp_path / "old/seed0/problems/stage.json").write_text('{"seconds": 1.0}')
    (tmp_path / "old/config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(
        RunDirectoryError, match="no stage can be reused: it has no stages, or an older version made them"
    ):
        reuse(tmp_path / "root", [tmp_path / "old"], CONFIG, [0])


def test_a_taken_stage_has_the_digest_it_had(tmp_path: Path) -> None:
    """So that a third run can take it from the second."""
    other = run_of(tmp_path / "other")
    second = run_of(tmp_path / "second", CONFIG | {"ppo": {"kl_coef": 0.3}})
    root = tmp_path / "root"
    reuse(root, [other], CONFIG, [0])
    assert digest_of(root / "seed0/policies/ppo") == digest_of(other / "seed0/policies/ppo")
    assert digest_of(root / "seed0/policies/ppo") != digest_of(second / "seed0/policies/ppo")
