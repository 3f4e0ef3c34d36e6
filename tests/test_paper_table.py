"""The paper's table with ours in it: the paper's figures, which of our figures stand beside them, three renderings."""

import dataclasses
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from evaluations import evaluation
from rich.console import Console

from rerankjax.results import paper_table
from rerankjax.results.evaluation import Evaluation
from rerankjax.results.paper import LANGUAGE_TITLES, ROWS, RUNS
from rerankjax.results.results import Results
from rerankjax.results.summary import summarise

WORDS = {"sampling.top_p": "<b>&|$</b>"}


def test_the_papers_averages_are_those_of_its_languages() -> None:
    for row in ROWS:
        assert len(row.percent) == len(LANGUAGE_TITLES) == 8
        # Languages are rounded to .1, and so is the average.
        assert np.mean(row.percent) == pytest.approx(row.average, abs=0.1)


def test_the_papers_claims_follow_from_its_table() -> None:
    cpp = list(LANGUAGE_TITLES).index("cpp")
    of = {f"{row.model} {row.size}".strip(): row for row in ROWS}
    trained = of["RewardRanker, 2 iter., self-training 13.4B"]
    assert trained.percent[cpp] == 79.2 > of["GPT-4"].percent[cpp] == 76.4
    generators = [of[f"DeepSeek-Coder-Instruct {size}"].average for size in ("33B", "6.7B", "1.3B")]
    assert trained.average == 70.9 > generators[0] == 69.2 > generators[1] == 66.1 > generators[2]


def test_rows_are_systems_of_three_runs() -> None:
    """The rows that the project promises, by name."""
    ours = [(a.run, a.system, a.rule) for row in ROWS for a in row.ours]
    assert ours == [
        *((run, "base", rule) for run in ("1.3b", "6.7b", "33b") for rule in ("greedy", "random")),
        ("1.3b", "ppo", "reranker"),
        ("6.7b", "ppo", "reranker"),
        ("6.7b", "hard+ppo", "reranker"),
        ("6.7b", "self_training+ppo", "reranker"),
    ]


def multipl_e(system: str, languages: tuple[str, ...] = tuple(LANGUAGE_TITLES), passing: int = 3) -> Evaluation:
    """Four problems in each language, of two samples each; in the i-th language i + 1 of them are solved greedily."""
    count = len(languages)
    made = evaluation(system=system, problems=4 * count, n=2, languages=languages, evaluation_set="multipl_e")
    problem, language = np.divmod(np.arange(4 * count), count)
    return dataclasses.replace(
        made,
        problems=tuple(f"HumanEval_{i}" for i in problem),
        greedy=problem < language % 4 + 1,
        passed=np.stack([problem < passing, problem < passing], 1),
        lengths=np.full((4 * count, 2), 100),
        greedy_lengths=np.full(4 * count, 70),
        greedy_seconds=2.0 * count,
        sampling_seconds=8.0 * count,
        scoring_seconds=2.0 * count,
    )


@pytest.fixture(scope="module")
def runs() -> dict[str, tuple[Results, ...]]:
    """6.7B with one iteration, also on MBPP, and 33B in two languages; 1.3B was not run."""
    mbpp = [
        dataclasses.replace(evaluation(system=s, problems=10, n=4, evaluation_set="mbpp"), sampling_seconds=0.0)
        for s in ("base", "ppo")
    ]
    middle = [multipl_e("base"), multipl_e("sft"), multipl_e("ppo", passing=2), *mbpp]
    return {
        "33b": summarise([multipl_e("base", ("js", "py"))], "feedbeef"),
        "6.7b": summarise(middle, "0123abcd"),
    }


def test_lines_say_what_ran_by_hand(runs: dict[str, tuple[Results, ...]]) -> None:
    table = paper_table.lines(runs)
    assert [(line.size, line.decoding) for line in table] == [
        ("", ""),
        ("", ""),
        *((size, way) for size in ("1.3B", "6.7B", "33B") for way in ("greedy", "sampled")),
        ("8B", ""),
        ("13.4B", ""),
        ("13.4B", ""),
        ("13.4B", ""),
    ]
    values = [[figure.value if figure else None for figure in line.here] for line in table]
    nothing = [None] * 9
    assert values[0] == values[1] == values[2] == values[3] == values[8] == values[10] == values[11] == nothing
    assert values[4] == [0.25, 0.5, 0.75, 1.0, 0.25, 0.5, 0.75, 1.0, 0.625]
    assert values[5] == [0.75] * 9
    # js is the first of 33B's two languages, and no average is of two.
    assert values[6] == [0.5, *[None] * 6, 0.25, None]
    assert values[9] == [0.5] * 9
    assert table[4].paper == table[5].paper == (78.9, 63.4, 68.4, 68.9, 67.2, 72.8, 36.7, 72.7, 66.1)


def test_a_run_in_one_language_fills_that_column_alone() -> None:
    line = paper_table.lines({"1.3b": summarise([multipl_e("base", ("sh",))], "")})[2]
    assert [figure.value if figure else None for figure in line.here] == [*[None] * 6, 0.25, None, None]


def test_an_unknown_run_is_refused() -> None:
    with pytest.raises(ValueError, match=r"runs has '7b'; use some of 1\.3b, 6\.7b, 33b"):
        paper_table.lines({"7b": ()})


def test_costs_are_per_problem_and_of_what_ran(runs: dict[str, tuple[Results, ...]]) -> None:
    assert paper_table.cost_rows(runs) == [
        ["6.7B greedy", "1", "32", "70", "0.5"],
        ["6.7B sampled", "1", "32", "100", "1"],
        ["33B greedy", "1", "8", "70", "0.5"],
        ["33B sampled", "1", "8", "100", "1"],
        ["RewardRanker (6.7B + 6.7B)", "2", "32", "200", "2.5"],
    ]
    of_mbpp = {name: cells for name, *cells in paper_table.mbpp_rows(runs)}
    assert len(of_mbpp) == 10
    solved = runs["6.7b"][1].figure("ppo", "reranker")
    assert of_mbpp["RewardRanker (6.7B + 6.7B)"][0].startswith(f"{100 * solved.value:.1f} [")
    assert of_mbpp["RewardRanker (6.7B + 6.7B)"][1:3] == ["4", "10"]
    assert of_mbpp["RewardRanker (6.7B + 6.7B)"][4] == "not measured"
    assert of_mbpp["33B greedy"] == ["not run", "", "", "", ""]


def test_the_terminal_has_each_figure_in_eighty_columns(runs: dict[str, tuple[Results, ...]]) -> None:
    text = io.StringIO()
    paper_table.print_table(runs, Console(file=text, width=80, color_system=None))
    shown = text.getvalue()
    assert max(map(len, shown.splitlines())) <= 80
    for row in ROWS:
        for percent in (*row.percent, row.average):
            assert f"{percent:.1f}" in shown
    table = shown.split("Percentage of MultiPL-E")[0]
    # GPT's two rows, 1.3B's two, 8B's and two of 13.4B's: seven whole rows; of 33B's two seven cells each.
    assert len(re.findall(r"\bnot\b", table)) == 7 * 9 + 2 * 7
    assert "62.5" in table  # the average of the first line that ran
    assert "config 0123abcd" in " ".join(shown.split())


def test_markdown_has_ours_and_the_papers_or_says_not_run(runs: dict[str, tuple[Results, ...]]) -> None:
    page = paper_table.markdown(runs, WORDS)
    rows = list(page.split("\n\n")[0].splitlines())
    assert {line.count("|") for line in rows} == {13}
    assert rows[0] == "| model | size | decoding | Python | C++ | Java | PHP | TS | C# | Bash | JS | avg |"
    (ranker,) = [line for line in rows if "(6.7B + 6.7B)" in line]
    figure = runs["6.7b"][0].figure("ppo", "reranker", language="php")
    shown = f"50.0 [{100 * figure.low:.1f}, {100 * figure.high:.1f}] / 72.1"
    assert ranker.split(" | ")[6] == shown
    (gpt4,) = [line for line in rows if "GPT-4" in line]
    assert gpt4.count("not run / ") == 9
    assert "1.3b: not run; 6.7b: config 0123abcd, seeds 0; 33b: config feedbeef, seeds 0." in page
    assert page.endswith("## Assumptions\n\n- `sampling.top_p`: <b>&|$</b>\n")
    assert "Assumptions" not in paper_table.markdown(runs)


def test_nothing_run_makes_a_table_that_says_so() -> None:
    page = paper_table.markdown({})
    assert page.count("not run / ") == 12 * 9
    assert "MBPP" not in page
    assert all(f"{run}: not run" in page for run in RUNS)
    assert "not run" in paper_table.page({})


class Page(HTMLParser):
    """Checks that what opens closes, and keeps the words of every cell."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.links: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [name for name, _ in attrs if name in ("src", "href")]
        if tag not in ("meta",):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if any(tag in self.open for tag in ("td", "th")):
            self.rows[-1][-1] += f"{data} "


def test_html_parses_and_has_every_cell(runs: dict[str, tuple[Results, ...]]) -> None:
    found = Page(paper_table.page(runs, WORDS))
    assert found.links == []
    table, costs, mbpp, reasons = found.rows[:13], found.rows[13:19], found.rows[19:30], found.rows[30:]
    assert {len(row) for row in table} == {12}
    (ranker,) = [row for row in table if "(6.7B + 6.7B)" in row[0]]
    assert ranker[6].split()[0] == "50.0"
    assert ranker[6].split()[-2:] == ["paper", "72.1"]
    assert [row[3].split() for row in table if "GPT-4" in row[0]] == [["not", "run", "paper", "84.1"]]
    assert [[cell.strip() for cell in row] for row in costs[1:]] == paper_table.cost_rows(runs)
    assert [[cell.strip() for cell in row] for row in mbpp[1:]] == paper_table.mbpp_rows(runs)
    assert [cell.strip() for cell in reasons[1]] == ["sampling.top_p", "<b>&|$</b>"]
