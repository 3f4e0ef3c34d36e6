"""The arithmetic on the paper's table, and that its document says what the script prints."""

import math
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def script() -> dict:
    return runpy.run_path(str(ROOT / "experiments" / "paper_arithmetic.py"))


def test_gains_and_errors_by_hand(script: dict) -> None:
    greedy, one = script["row"]("DeepSeek-Coder-Instruct", "6.7B"), script["row"](script["ONE"])
    first = script["gains"](one, greedy)
    assert (first["Python"], first["C++"], first["TS"]) == (0.0, 12.3, -0.8)
    # .0 + 12.3 + 6.2 + 3.2 - .8 + 2.3 + 4.7 + 1.8 = 29.7, over 8.
    assert script["mean"](first) == pytest.approx(29.7 / 8)
    assert script["standard_error_shared"](one) == pytest.approx(100 * math.sqrt(0.699 * 0.301 / 164))
    # As if all languages had one rate and one size: 100 sqrt(p q / 1280) = 1.28; unequal rates make it a little less.
    assert script["standard_error"](one) == pytest.approx(1.28, abs=0.06)


def test_the_pairs_a_difference_may_have(script: dict) -> None:
    # +1 point of 1,280 is 13 problems: 25 against 12 is just significant (p .047), 26 against 13 no more (p .053).
    assert script["discordant_needed"](1.0) == 37


def test_the_document_says_what_the_script_prints(script: dict) -> None:
    text = " ".join((ROOT / "docs" / "paper_table.md").read_text(encoding="utf-8").split())
    for sentence in script["sentences"]():
        assert sentence in text
