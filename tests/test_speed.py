"""The speed claim: its roofline by hand and at its limits, and the measured mode at sizes that run here."""

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path

import pytest

from rerankjax.capacity import speed
from rerankjax.capacity.roofline import CHIPS, Chip, cache_bytes, parameter_count, sampling_seconds, score_cost, seconds
from rerankjax.model.config import ModelConfig
from rerankjax.model.deepseek import DEEPSEEK_CODER

ROOT = Path(__file__).parent.parent
NAMES = ("33B", "6.7B", "6.7B")


def test_sampling_by_hand():
    # 236 parameters, two tables of 40 among them; a token's keys and values are 8 bytes (see test_roofline).
    config = ModelConfig(10, 4, 8, 1, 2, 1, 2, 32, tie_word_embeddings=False)
    memory_alone = Chip("made up", flops_per_second=1e12, bytes_per_second=1.0, memory_bytes=1.0, source="")
    # Two prompts of 5 tokens are read, then two steps of 2 * 3 samples with 1 and 2 tokens of their own.
    reading = 2 * (196 + 10 * 4) + 8 * 10
    steps = [2 * (196 + 6 * 4) + 8 * (2 * 5 + 6 * own) + 8 * 6 for own in (1, 2)]
    assert sampling_seconds(config, memory_alone, 2, 5, 3, 3) == reading + sum(steps)
    assert sampling_seconds(config, memory_alone, 2, 5, 3, 3, chips=4) == (reading + sum(steps)) / 4


def compare(problems, samples, chip="h100", chips=1, **lengths) -> speed.Comparison:
    lengths = {"prompt_length": 256, "completion_length": 256} | lengths
    return speed.roofline(CHIPS[chip], chips, DEEPSEEK_CODER, NAMES, problems=problems, samples=samples, **lengths)


def test_one_problem_costs_what_its_parameters_take_to_read():
    """While memory binds, samples share the reading: the ratio is of the sizes, whatever the hardware."""
    sizes = parameter_count(DEEPSEEK_CODER["33B"]) / parameter_count(DEEPSEEK_CODER["6.7B"])
    for chip in CHIPS:
        found = compare([1], [2], chip, 8).timing(1, 2)
        assert found.large_seconds / found.drawing_seconds == pytest.approx(sizes, rel=0.05)
        assert 0.9 * sizes < found.ratio < sizes


def test_many_problems_cost_what_they_compute():
    """While compute binds, n samples drawn and scored are 2 n readings by 6.7B: the claim is turned round."""
    chip = dataclasses.replace(CHIPS["h100"], bytes_per_second=1e18, memory_bytes=1e18)
    found = speed.roofline(chip, 1, DEEPSEEK_CODER, NAMES, 1, 256, [512], [8]).timing(512, 8)
    sizes = parameter_count(DEEPSEEK_CODER["33B"]) / parameter_count(DEEPSEEK_CODER["6.7B"])
    assert found.ratio == pytest.approx(sizes / 16, rel=0.05)


def test_more_samples_and_more_problems_make_the_small_models_less_worth_it():
    found = compare([1, 8, 64], [2, 8, 32])
    for problems in (1, 8, 64):
        ratios = [found.timing(problems, n).ratio for n in (2, 8, 32)]
        assert ratios == sorted(ratios, reverse=True)
    assert found.timing(1, 8).ratio > found.timing(8, 8).ratio > found.timing(64, 8).ratio


def test_a_problem_is_timed_among_as_many_as_memory_holds():
    config = DEEPSEEK_CODER["6.7B"]
    of_problem = cache_bytes(config, 256 + 64 * 256)
    room = int((80e9 - 4 * parameter_count(config)) // of_problem)
    assert room == 6
    found = compare([1, room, room + 1, 64], [64])
    assert found.timing(64, 64).drawing_seconds == found.timing(room, 64).drawing_seconds
    assert found.timing(room + 1, 64).scoring_seconds == found.timing(room, 64).scoring_seconds
    drawing = sampling_seconds(config, CHIPS["h100"], room, 256, 64, 256) / room
    assert found.timing(room, 64).drawing_seconds == drawing
    assert found.timing(1, 64).scoring_seconds == seconds(score_cost(config, 1, 256, 64, 256), CHIPS["h100"])


def test_what_does_not_fit_says_so():
    needed = speed.sampling_bytes(DEEPSEEK_CODER["33B"], 1, 256, 1, 256)
    assert needed == 2 * parameter_count(DEEPSEEK_CODER["33B"]) + cache_bytes(DEEPSEEK_CODER["33B"], 512)
    assert [speed.chips_for(CHIPS[name], needed) for name in CHIPS] == [1, 1, 8, 1, 4]
    found = compare([1], [2], "v5e", 1)
    assert found.timing(1, 2) == speed.Timing(1, 2, None, None, None)
    assert found.timing(1, 2).ratio is None
    assert "| does not fit |" in speed.markdown(found)
    json.loads(speed.to_json(found))


def test_the_table_has_each_time_and_the_caption_the_largest_n():
    found = speed.Comparison(
        "measured (random weights)",
        "1 x abacus",
        "float32",
        *("large", "small", "judge"),
        10,
        20,
        timings=(
            speed.Timing(1, 2, 12.0, 1.0, 1.0),
            speed.Timing(1, 4, 12.0, 3.0, 1.0),
            speed.Timing(8, 2, 6.0, 4.0, 0.5),
            speed.Timing(8, 4, 6.0, 8.0, 1.0),
        ),
    )
    assert speed.table_of(found) == (
        ["", "tokens drawn", "1 at a time, s", "faster", "8 at a time, s", "faster"],
        [
            ["large, one sample", "20", "12", "", "6", ""],
            ["small x 2 + judge", "40", "2", "6", "4.5", "1.3"],
            ["small x 4 + judge", "80", "4", "3", "9", "0.67"],
        ],
    )
    assert speed.caption(found).endswith(
        "3 times faster, with 1 at a time: up to n = 4; 8 at a time: at no n in the table."
    )
    assert json.loads(speed.to_json(found))["timings"][3] == {
        "problems": 8,
        "n": 4,
        "large_seconds": 6.0,
        "drawing_seconds": 8.0,
        "scoring_seconds": 1.0,
        "ratio": 6 / 9,
    }


@pytest.fixture(scope="module")
def experiment():
    spec = importlib.util.spec_from_file_location("speed_experiment", ROOT / "experiments" / "speed.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_measuring_runs_the_engine_and_the_reranker(experiment, monkeypatch):
    shallow = ModelConfig(32, 8, 16, 1, 1, 1, 8, 128, tie_word_embeddings=False)
    monkeypatch.setattr(experiment, "MODELS", {"shallow": shallow})
    found = experiment.measure(("shallow",) * 3, 8, 4, [1], [2], 1)
    (timing,) = found.timings
    assert min(timing.large_seconds, timing.drawing_seconds, timing.scoring_seconds) > 0
    assert "random weights" in found.how
    assert found.precision == "float32"


def test_the_texts_that_are_scored_are_the_tokens_that_were_drawn(experiment):
    tokenizer = experiment.word_tokenizer(50)
    assert len(tokenizer) == 50
    tokens = [0, 48, 7, 7, 13]
    assert tokenizer(experiment._words(tokens), add_special_tokens=False)["input_ids"] == tokens


def test_the_command_writes_the_roofline(experiment, monkeypatch, capsys, tmp_path):
    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["speed.py", "--chip", "h100", "v5e", "--out", str(tmp_path), *arguments])
        experiment.main()
        return capsys.readouterr().out

    assert "33B, one sample" in run("--samples", "2", "16")
    assert {p.name for p in tmp_path.iterdir()} == {f"speed-{c}.{s}" for c in ("h100", "v5e") for s in ("json", "md")}
    assert json.loads((tmp_path / "speed-v5e.json").read_text())["hardware"] == "8 x TPU v5e"
    with pytest.raises(SystemExit, match=r"--samples \[0\]: use 1 or more"):
        run("--samples", "0")
