"""A sweep takes from another run what its config would make alike, and nothing else."""

import json
from pathlib import Path

import pytest

from rerankjax.loop.reuse import reuse
from rerankjax.run.rundir import RunDirectoryError, write_stage

CONFIG = {
    "seeds": [0, 1],
    "problems": {"train": 8},
    "sandbox": {"workers": 2, "cpu_seconds": 5.0},
    "candidates": {"train": 4},
    "reranker": {"pooling": "mean"},
    "mining": {"pairs": 6, "grown_pairs": 5},
    "ppo": {"kl_coef": 0.15},
    "arms": ["hard"],
    "ppo_arms": ["hard"],
}
MADE = ("problems", "tokenizer", "policies/sft")
SAMPLED = ("candidates/sft-train", "candidates/sft-test")
RERANKED = ("rerankers/first", "scores/first/sft-train")
PPO = ("policies/ppo", "candidates/ppo-train", "scores/first/ppo-test")
SECOND = ("rerankers/hard", "scores/hard/ppo-test", "policies/ppo2-hard", "candidates/ppo2-hard-test")


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A run whose stages each hold their name, and one that is at work."""
    root = tmp_path / "other"
    for seed in CONFIG["seeds"]:
        for stage in (*MADE, *SAMPLED, *RERANKED, *PPO, *SECOND, "export"):
            write_stage(root / f"seed{seed}" / stage, lambda d, stage=stage: (d / "file").write_text(stage))
    (root / "seed0" / "policies" / ".ppo2-random.partial").mkdir()
    (root / "seed0" / "policies" / ".ppo2-random.partial" / "stage.json").write_text("{}")
    (root / "config.json").write_text(json.dumps(CONFIG))
    return root


@pytest.mark.parametrize(
    ("changed", "alike"),
    [
        ({"seeds": [1]}, MADE + SAMPLED + RERANKED + PPO + SECOND),
        (
            {"arms": ["hard", "random"], "sandbox": {"workers": 9, "cpu_seconds": 5.0}},
            MADE + SAMPLED + RERANKED + PPO + SECOND,
        ),
        ({"mining": {"pairs": 6, "grown_pairs": 9}}, MADE + SAMPLED + RERANKED + PPO),
        ({"ppo": {"kl_coef": 0.3}}, MADE + SAMPLED + RERANKED),
        ({"mining": {"pairs": 7, "grown_pairs": 5}, "ppo": {"kl_coef": 0.3}}, MADE + SAMPLED),
        ({"reranker": {"pooling": "last"}}, MADE + SAMPLED),
        ({"candidates": {"train": 8}}, MADE),
    ],
)
def test_what_is_alike_is_taken(other: Path, tmp_path: Path, changed: dict, alike: tuple[str, ...]) -> None:
    root, config = tmp_path / "root", CONFIG | changed
    expected = {f"seed{seed}/{stage}" for seed in config["seeds"] for stage in alike}
    assert set(reuse(root, other, config)) == expected
    assert {str(p.parent.relative_to(root)) for p in root.glob("**/stage.json")} == expected
    assert all((root / stage / "file").read_text() == stage.split("/", 1)[1] for stage in expected)
    assert reuse(root, other, config) == []  # again: all is there


def test_what_this_run_has_is_kept(other: Path, tmp_path: Path) -> None:
    write_stage(tmp_path / "root/seed0/policies/sft", lambda d: (d / "file").write_text("own"))
    assert "seed0/policies/sft" not in reuse(tmp_path / "root", other, CONFIG)
    assert (tmp_path / "root/seed0/policies/sft/file").read_text() == "own"


def test_nothing_to_take_is_an_error_that_says_why(other: Path, tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match=r"differ in problems\.train$"):
        reuse(tmp_path / "root", other, CONFIG | {"problems": {"train": 9}, "candidates": {"train": 8}})
    with pytest.raises(RunDirectoryError, match="no run is there"):
        reuse(tmp_path / "root", tmp_path / "nowhere", CONFIG)
