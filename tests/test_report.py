"""What people see of results: the terminal, Markdown, the report, and runs beside each other."""

import dataclasses
import io
import json
import re
import runpy
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from evaluations import LABELS, ONE_ITERATION, evaluation, one_iteration
from rich.console import Console

from rerankjax.results import claims, markup, plots, render, report, results, statistics
from rerankjax.results.comparison import comparison
from rerankjax.results.evaluation import Evaluation
from rerankjax.results.selection import POLICY_RULES, RULES
from rerankjax.results.summary import summarise


@pytest.fixture(scope="module")
def summary() -> results.Results:
    return one_set(one_iteration())


def one_set(evaluations: Sequence[Evaluation]) -> results.Results:
    (of_set,) = summarise(evaluations, "digest")
    return of_set


def estimates(row: Sequence[render.Cell]) -> list[statistics.Estimate]:
    return [cell for cell in row if isinstance(cell, statistics.Estimate)]


def printed(summary: Sequence[results.Results], width: int) -> str:
    text = io.StringIO()
    render.print_results(summary, Console(file=text, width=width, force_terminal=True, color_system=None))
    return text.getvalue()


def test_the_terminal_table_holds_every_figure_in_eighty_columns(summary: results.Results) -> None:
    text = printed([summary], 80)
    assert max(len(line) for line in text.splitlines()) <= 80
    for _, cells, auc in render.table_rows(summary):
        assert all(statistics.decimal(e.value) in text for e in estimates([*cells, auc]))
    assert "Hard against random negatives" in text
    assert "Evaluation set" not in text
    # Systems that did not run are counted, not listed.
    assert "Second iteration" not in text


def test_a_pipe_gets_a_wide_plain_table(summary: results.Results) -> None:
    text = io.StringIO()
    render.print_results([summary], Console(file=text, width=40))
    assert "\x1b" not in text.getvalue()
    assert "PPO, reranker 2 (random negatives) " in text.getvalue()


def test_an_interval_up_to_one_fits_its_column() -> None:
    e = evaluation()
    e = dataclasses.replace(e, passed=np.ones_like(e.passed), greedy=np.ones_like(e.greedy))
    (row,) = [line for line in printed([one_set([e])], 80).splitlines() if "1.0-1.0" in line]
    assert row.count("1.0-1.0") == len(RULES)


def test_markdown_has_one_row_for_each_system_and_repeats_no_figure_of_a_policy(summary: results.Results) -> None:
    page, *others = render.markdown([summary]).split("\n## ")
    assert [part.splitlines()[0] for part in others] == ["pass@k", "Rerankers", "Quality and cost", "Claims"]
    for part in others:
        assert len({line.count("|") for line in part.splitlines() if line.startswith("|")}) == 1
    lines = page.splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert {len(row) for row in rows} == {9}
    assert [row[0] for row in rows[2:]] == [LABELS[system] for system in ONE_ITERATION]
    assert rows[2][1:3] == [summary.figure("sft", rule).text() for rule in ("greedy", "random")]
    # same_data, random, hard and self_training choose among the samples of the row of ppo.
    for column in (1, 2):
        assert [row[column] == '"' for row in rows[2:]] == [False, False, True, True, True, True]


def test_rows_of_a_policy_stand_together() -> None:
    # An ensemble's row on the first policy comes after the second policy's in a run.
    systems = ("ppo", "self_training+ppo", "hard")
    rows = render.table_rows(one_set([evaluation(system=system) for system in systems]))
    assert [label for label, *_ in rows] == [LABELS[system] for system in ("ppo", "hard", "self_training+ppo")]
    assert [cells[1] == render.SAME for _, cells, _ in rows] == [False, True, False]


def test_a_system_without_a_reranker_shows_that(base_and_sft: results.Results) -> None:
    lines = render.markdown([base_and_sft]).splitlines()
    row = next(line for line in lines if line.startswith("| Base model |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    absent = [cell == render.ABSENT for cell in cells[1:]]
    assert absent == [*(rule not in POLICY_RULES for rule in RULES), True]
    assert sum(line.startswith("| Base model |") for line in lines) == 3  # the table, pass@k, costs; no reranker's
    assert render.ABSENT in printed([base_and_sft], 80)


@pytest.fixture(scope="module")
def base_and_sft() -> results.Results:
    return one_set([evaluation(system="base"), evaluation(system="sft")])


def test_a_run_of_the_base_model_alone_makes_every_page() -> None:
    base = one_set([evaluation(system="base")])
    assert "Claims" not in render.markdown([base])
    assert "Claims: none was run" in printed([base], 80)
    words = Page(report.report([base], [evaluation(system="base")], RUN)).words
    assert "none was run" in words
    assert "Telling correct from incorrect" not in words
    assert "Claims that this config did not run" in words


def test_programs_that_were_not_judged_are_shown_once_for_each_policy() -> None:
    of = [
        dataclasses.replace(evaluation(s, system), sandbox_errors=2 + s, caught=0)
        for s in (0, 1)
        for system in ("ppo", "hard")
    ]
    found = one_set([*of, evaluation(0), evaluation(1)])
    assert render.unjudged_rows(found) == [["PPO", "5", "0"]]
    assert "## Programs not judged\n\n| policy | not judged | caught |\n| --- | ---: | ---: |\n| PPO | 5 | 0 |" in (
        render.markdown([found])
    )
    assert render.UNJUDGED in Page(report.report([found], [*of, evaluation(0), evaluation(1)], RUN)).words
    assert "not judged" not in render.markdown([one_set([evaluation(0)])])


def test_markdown_has_pass_at_k_once_a_policy_and_languages_where_there_are_several() -> None:
    found = one_set([evaluation(0, system, languages=("cpp", "py")) for system in ("sft", "ppo", "hard")])
    page = render.markdown([found])
    lines = page.split("## pass@k\n\n")[1].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:4]]
    assert cells[0] == ["policy", "k = 1", "k = 2", "k = 4", "k = 8"]
    for row, name, system in ((cells[2], "SFT", "sft"), (cells[3], "PPO", "ppo")):
        assert row == [name, *(found.figure(system, "oracle", k).text() for k in (1, 2, 4, 8))]
    assert "## By language\n\n| answer | cpp | py | mean |" in page
    for rule in ("greedy", "random"):
        shown = [found.figure("ppo", rule, language=name).text() for name in ("cpp", "py", "mean")]
        assert f"| PPO: {rule} | {' | '.join(shown)} |" in page
    figure, auc = found.figure("hard", "reranker", language="py"), found.discrimination("hard", "auc", language="py")
    mean = found.figure("hard", "reranker", language="mean")
    assert f"{figure.text()}, {statistics.decimal(auc.value)} | {mean.text()} |" in page


def test_markdown_and_terminal_have_each_evaluation_set() -> None:
    sets = summarise([evaluation(), evaluation(evaluation_set="mb|pp", problems=12, n=4)], "")
    page = render.markdown(sets)
    assert page == f"# Evaluation set test\n\n{render.markdown(sets[:1])}\n" + (
        f"# Evaluation set mb|pp\n\n{render.markdown(sets[1:])}"
    )
    text = printed(sets, 80)
    assert text.index("Evaluation set test") < text.index("Evaluation set mb|pp")
    assert "12 problems" in text


def test_words_of_a_config_cannot_break_a_table() -> None:
    e = dataclasses.replace(evaluation(), label="a|b\n| c", policy_label="[red]p|q")
    page = render.markdown([one_set([e])])
    rows = [line for line in page.splitlines() if line.startswith("| a")]
    assert all(line.startswith("| a\\|b \\| c | ") for line in rows)
    assert "a|b" in printed([one_set([e])], 80)


class Page(HTMLParser):
    """What a browser would make of a page: its elements, attributes and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.words += data


HOSTILE = "</pre></style><script>fetch('//evil')</script><img src=x onerror=alert(1)> &lt; \u202e\x1b[31m\ud800\"'"
RUN = report.RunFacts(
    HOSTILE,
    HOSTILE,
    {"sft": report.StageCost(61.4, 0, 0.9), HOSTILE: report.StageCost(1.0, 10**9, None)},
    {"jax": HOSTILE},
    HOSTILE,
    {HOSTILE: HOSTILE},
)


@pytest.fixture(scope="module")
def page(summary: results.Results) -> str:
    rows = [
        {"step": i, "score": i / 9, "kl": 0.1, "length": 9.0, "pass_rate": None if i % 2 else 0.4} for i in range(9)
    ]
    del rows[3]["pass_rate"]
    losses = [
        plots.Curve("SFT", seed, [{"step": i, "loss": 1 / (i + seed + 1)} for i in range(900)]) for seed in (0, 1)
    ]
    negative = report.HardNegative(1, HOSTILE, HOSTILE, HOSTILE, 2.5, HOSTILE)
    ppo = [plots.Curve("ppo", seed, rows[: 9 - seed]) for seed in (0, 1)]
    return report.report([summary], one_iteration(), RUN, ppo, losses, [negative])


def hostile_labels() -> str:
    e = dataclasses.replace(evaluation(), label=HOSTILE, policy_label=HOSTILE, evaluation_set=HOSTILE)
    curves = [plots.Curve(HOSTILE, 0, [{"step": 0, "loss": 1.0, "score": 1.0}])]
    return report.report(summarise([evaluation(), e], HOSTILE), [evaluation(), e], RUN, curves, curves)


@pytest.mark.parametrize("hostile", ["completion", "labels"])
def test_hostile_words_stay_text(page: str, hostile: str) -> None:
    page = page if hostile == "completion" else hostile_labels()
    parsed = Page(page)
    assert not {"script", "img", "iframe", "link", "base", "form", "object"} & set(parsed.tags)
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]
    assert parsed.words.count("<script>fetch('//evil')</script>") >= 6
    assert "\u202e" not in page
    assert "\x1b" not in page
    page.encode("utf-8")


def luminance(colour: str) -> float:
    """https://www.w3.org/TR/WCAG22/#dfn-relative-luminance"""
    values = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_words_and_lines_stand_out(mode: str) -> None:
    """WCAG 2.2, AA: contrast of at least 4.5 for text, and 3 for what figures draw."""
    style = (Path(report.__file__).parent / "report.css").read_text()
    colours = dict(re.findall(r"--(\w+): (#\w{6})", re.findall(r":root \{(.*?)\}", style, re.DOTALL)[mode == "dark"]))
    grounds = [colours.pop(name) for name in ("page", "card", "tint")]
    del colours["grid"]  # says nothing
    for name, colour in colours.items():
        for ground in grounds:
            dark, light = sorted((luminance(colour), luminance(ground)))
            least = 4.5 if name in ("ink", "muted", "blue", "orange", "green") else 3
            assert (light + 0.05) / (dark + 0.05) >= least, (name, colour, ground)


def test_what_scrolls_can_be_reached_by_keys(page: str) -> None:
    assert page.count('class="wide"') == page.count('class="wide" role="region"') > 5
    assert page.count("<pre") == page.count('<pre tabindex="0"') > 0


def test_the_report_fetches_nothing(page: str) -> None:
    fetching = [
        (n, v) for n, v in Page(page).attributes if n in ("src", "href", "xlink:href", "data", "action", "srcset")
    ]
    assert fetching
    assert all(value and value.startswith("#") for _, value in fetching)
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)
    assert "default-src 'none'" in page


def test_the_report_holds_the_table_the_claims_and_every_figure(page: str, summary: results.Results) -> None:
    parsed = Page(page)
    for _, cells, _ in render.table_rows(summary):
        assert all(statistics.decimal(e.value) in parsed.words for e in estimates(cells))
    for finding in claims.findings_of(summary):
        assert finding.claim.sentence in parsed.words
        assert finding.interval() in parsed.words
    labels = [value for name, value in parsed.attributes if name == "aria-label"]
    assert "PPO training curves" in labels
    assert "Reliability: pass rate against predicted probability, for each system" in labels
    for _, row in render.pass_at_k_rows(summary):
        assert all(statistics.decimal(e.value) in parsed.words for e in row)
    for system in ONE_ITERATION:
        assert summary.discrimination(system, "expected_calibration_error").text() in parsed.words
    assert "By language" not in parsed.words
    assert "1 min 01 s" in parsed.words
    assert "nav" not in parsed.tags
    assert parsed.words.count("Assumptions") == 1
    assert "Assumptions" not in report.report([summary], one_iteration(), dataclasses.replace(RUN, assumptions={}))


def test_the_report_leads_to_each_evaluation_set_and_each_part_of_the_run() -> None:
    of = [evaluation(), evaluation(system="base", evaluation_set="mbpp", n=4), evaluation(evaluation_set="mbpp", n=4)]
    curves = [plots.Curve("SFT", 0, [{"step": 0, "loss": 1.0}])]
    sets = summarise(of, "")
    parsed = Page(report.report(sets, of, RUN, losses=curves))
    links = [value for name, value in parsed.attributes if name == "href" and value]
    anchors = {value for name, value in parsed.attributes if name == "id"}
    assert [link for link in links if link.startswith("#set-")] == ["#set-0", "#set-1"]
    assert {link[1:] for link in links} <= anchors
    assert {"#losses", "#run"} < set(links)
    assert "#ppo" not in links
    for title in ("The table", "Calibration of the scores", "Quality and cost"):
        assert parsed.words.count(title) == 2
    for of_set in sets:
        assert render.caption(of_set) in parsed.words


def test_figures_take_their_colours_from_the_page(page: str) -> None:
    assert "#00000" not in page
    style = page[page.index("<style>") : page.index("</style>")]
    for name in set(re.findall(r"var\(--(\w+)\)", page)):
        # Once for light and once for dark.
        assert style.count(f"--{name}:") == 2, name


def test_the_same_run_makes_the_same_report() -> None:
    both = [evaluation(system=system) for system in ("base", "sft")]
    pages = {report.report([one_set(both)], both, RUN) for _ in range(2)}
    assert len(pages) == 1


def test_a_report_of_one_system_that_solves_nothing() -> None:
    e = evaluation()
    nothing = {name: np.zeros_like(getattr(e, name)) for name in ("passed", "scores", "greedy")}
    e = dataclasses.replace(e, **nothing)
    page = report.report([one_set([e])], [e], RUN)
    assert "AUC undefined" in page
    assert "0.0%" in page
    assert "nan" not in Page(page).words.lower()
    assert "| undefined |" in render.markdown([one_set([e])])


def test_a_report_of_several_languages_has_each() -> None:
    of_languages = [evaluation(0, system, languages=("cpp", "py")) for system in ("sft", "ppo")]
    found = one_set(of_languages)
    words = Page(report.report([found], of_languages, RUN)).words
    assert "By language" in words
    for system in ("sft", "ppo"):
        for language in ("cpp", "py", "mean"):
            for rule in ("greedy", "random", "reranker"):
                assert statistics.decimal(found.figure(system, rule, language=language).value) in words


def test_long_blocks_are_cut_where_they_matter_least() -> None:
    assert markup.block("a" * 5_000) == "a" * 3_000 + "\n[2000 characters left out]"
    assert markup.block("a" * 5_000 + "end", keep_end=True).endswith("aend")


# Comparison


def table(page: str, title: str) -> list[str]:
    return page.split(f"## {title}\n\n")[1].split("\n\n")[0].splitlines()


def test_runs_stand_beside_each_other_with_what_differs() -> None:
    one = one_set([evaluation(system=system) for system in ("sft", "ppo")])
    two = one_set([evaluation(system=system, gain=3.0) for system in ("sft", "ppo", "hard")])
    configs = {"ppo.kl_coef": 0.15, "seeds": [0]}, {"ppo.kl_coef": 0.5, "seeds": [0], "lora.rank": "8"}
    page = comparison({"one": (configs[0], [one]), "two": (configs[1], [two])})
    differs, solved, said = (table(page, title) for title in ("What differs", "Solved", "Claims"))
    assert differs[0] == solved[0] == said[0] == "|  | one | two |"
    assert set(differs[2:]) == {"| lora.rank |  | 8 |", "| ppo.kl_coef | 0.15 | 0.5 |"}
    hard = two.figure("hard", "reranker").text()
    assert f"| PPO, reranker 2 (hard negatives): reranker |  | {hard} |" in solved
    assert not any(line.startswith("| PPO, reranker 2 (hard negatives): random") for line in solved)  # PPO's own
    random = one.figure("ppo", "random").text()
    assert f"| PPO, reranker 1: random | {random} | {two.figure('ppo', 'random').text()} |" in solved
    shown = claims.findings_of(two)[0]
    assert next(line for line in said if line.startswith("| Reranking |")).endswith(
        f"{shown.verdict} {shown.interval()} |"
    )
    assert any(line.startswith("| Retraining on hard negatives |  | ") for line in said)  # one lacks that system


def test_runs_are_compared_on_each_evaluation_set() -> None:
    one = summarise([evaluation()], "")
    two = summarise([evaluation(evaluation_set="mbpp", problems=12), evaluation(gain=3.0)], "")
    page = comparison({"one": ({}, one), "two": ({}, two)})
    titles = ["What differs", "Solved on test", "Claims on test", "Solved on mbpp", "Claims on mbpp"]
    assert [line[3:] for line in page.splitlines() if line.startswith("## ")] == titles
    (row,) = [line for line in table(page, "Solved on test") if line.startswith("| SFT, reranker 1: reranker |")]
    figures = [of_set.figure("sft", "reranker").text() for of_set in (one[0], two[1])]
    assert row == f"| SFT, reranker 1: reranker | {' | '.join(figures)} |"
    figure = two[0].figure("sft", "greedy").text()
    assert f"| SFT, reranker 1: greedy |  | {figure} |" in table(page, "Solved on mbpp")


def test_the_command_compares_finished_runs_and_names_what_is_missing(tmp_path, monkeypatch, capsys) -> None:
    program = Path(__file__).parents[1] / "experiments" / "compare.py"
    for name, coefficient in (("one", 0.15), ("two", 0.5)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"ppo.kl_coef": coefficient}))
        results.save(summarise([evaluation()], ""), tmp_path / name / "results.json")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["compare", "one", "two"])
    runpy.run_path(str(program), run_name="__main__")
    assert table(capsys.readouterr().out, "What differs")[2:] == ["| ppo.kl_coef | 0.15 | 0.5 |"]
    (tmp_path / "two" / "results.json").write_text('{"version": 2}')
    with pytest.raises(
        SystemExit, match=r"compare: two/results\.json is not a results file: version is 2, but this code"
    ):
        runpy.run_path(str(program), run_name="__main__")
    (tmp_path / "two" / "results.json").unlink()
    with pytest.raises(SystemExit, match=r"compare: two has no results\.json: give the --workdir of a finished run"):
        runpy.run_path(str(program), run_name="__main__")
