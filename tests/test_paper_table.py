"""The paper's table with ours in it: the paper's figures, cell files, averages and four renderings."""

import dataclasses
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from rerankjax.results import paper_table
from rerankjax.results.cells import Cell, CellError, average, load, load_all, path_of, save
from rerankjax.results.paper import LANGUAGES, ROWS, RUNS

ROOT = Path(__file__).parent.parent


def cell(row: str = "6.7b+6.7b", language: str = "py", passing: int = 3, problems: int = 4, **changes) -> Cell:
    outcomes = {f"HumanEval_{i}": float(i < passing) for i in range(problems)}
    made = Cell(row, language, "random weights, 0.1M", 16, outcomes, 2.0, 800)
    return dataclasses.replace(made, **changes)


def test_the_papers_averages_are_those_of_its_languages():
    for row in ROWS.values():
        assert len(row.percent) == len(LANGUAGES) == 8
        # Languages are rounded to .1, and so is the average.
        assert np.mean(row.percent) == pytest.approx(row.average, abs=0.1)


def test_the_papers_claims_follow_from_its_table():
    cpp = list(LANGUAGES).index("cpp")
    assert ROWS["self-training"].percent[cpp] == 79.2 > ROWS["gpt-4"].percent[cpp] == 76.4
    assert ROWS["self-training"].average == 70.9 > ROWS["33b"].average == 69.2 > ROWS["6.7b"].average == 66.1
    assert set(RUNS.values()) == ROWS.keys() - {"gpt-3.5-turbo", "gpt-4"}


def test_a_cell_survives_its_file(tmp_path):
    written = cell(seconds=None, solved={"a": 0.25, "b": 1.0})
    path = save(written, tmp_path)
    assert path == tmp_path / "6.7b+6.7b" / "py.json"
    assert load(path) == written
    record = json.loads(path.read_text())
    assert (record["problems"], record["share"]["value"]) == (2, 0.625)
    save(cell("33b-greedy", "cs"), tmp_path)
    assert [(c.row, c.language) for c in load_all(tmp_path)] == [("33b-greedy", "cs"), ("6.7b+6.7b", "py")]
    assert load_all(tmp_path / "nothing") == ()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r.update(version=9), "version = 9, this code reads 1"),
        (lambda r: r.pop("tokens"), "tokens is missing; the file has"),
        (lambda r: r.pop("share"), "share is missing"),
        (lambda r: r.update(accuracy=1), "accuracy is unknown; a cell has row"),
        (lambda r: r.update(row="7b"), "row = '7b': use one of 1.3b-greedy"),
        (lambda r: r.update(language="rust"), "language = 'rust': use one of py, cpp"),
        (lambda r: r.update(model=" "), "model = ' ': say what was run"),
        (lambda r: r.update(model=3), "model = 3: give a text"),
        (lambda r: r.update(n=0), "n = 0: a problem has 1 sample or more"),
        (lambda r: r.update(n=True), "n = True: give a whole number"),
        (lambda r: r.update(n=1.5), "n = 1.5: give a whole number"),
        (lambda r: r.update(tokens=-1), "tokens = -1: give 0 or more"),
        (lambda r: r.update(seconds="2"), "seconds = '2': give a number, or null"),
        (lambda r: r.update(seconds=-1), "seconds = -1: give 0 or more"),
        (lambda r: r.update(solved={}), "solved = {}: give at least one problem"),
        (lambda r: r.update(solved=[1, 0]), "solved = [1, 0]: give an object"),
        (lambda r: r["solved"].update(HumanEval_0=None), "'HumanEval_0': None"),
        (lambda r: r["solved"].update(HumanEval_0=1.5), "solved['HumanEval_0'] = 1.5: a probability lies in [0, 1]"),
        (lambda r: r["solved"].update(HumanEval_0=0.0), "share = {'value': 0.75"),
        (lambda r: r.update(share=0.75), "share = 0.75, but solved makes it"),
        (lambda r: r.update(problems=164), "problems = 164, but solved has 4"),
    ],
)
def test_a_wrong_cell_is_refused_with_file_field_and_value(tmp_path, change, said):
    path = save(cell(), tmp_path)
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    with pytest.raises(CellError, match=re.escape(f"{path}: ") + ".*" + re.escape(said)):
        load(path)


def test_a_broken_or_misplaced_file_is_refused(tmp_path):
    path = save(cell(), tmp_path)
    text = path.read_text()
    path.write_text(text[:-20])
    with pytest.raises(CellError, match=r"py\.json: not JSON .*[Rr]un the cell again"):
        load_all(tmp_path)
    path.write_text("[]")
    with pytest.raises(CellError, match=r"py\.json: list instead of an object"):
        load(path)
    path.unlink()
    wrong = path_of(tmp_path, "6.7b+6.7b", "js")
    wrong.write_text(text)
    with pytest.raises(CellError, match=r"js\.json: row = '6\.7b\+6\.7b', language = 'py' belong into .*py\.json"):
        load_all(tmp_path)
    with pytest.raises(CellError, match="are given twice"):
        paper_table.lines([cell(), cell()])


def test_the_average_weighs_languages_the_same_whatever_their_problems():
    assert average([cell(passing=3, problems=4), cell(language="js", passing=1, problems=10)]).value == 0.425


def test_translations_of_a_problem_are_resampled_together():
    """The same outcomes in every language add no certainty; independent ones do."""
    rng = np.random.default_rng(0)
    draws = [rng.random(164) < 0.6 for _ in LANGUAGES]

    def cells(of, prefix=""):
        return [
            cell(language=name, solved={f"{prefix and name}{i}": float(x) for i, x in enumerate(of(k))})
            for k, name in enumerate(LANGUAGES)
        ]

    def width(estimate):
        return estimate.high - estimate.low

    alone = width(cells(lambda _: draws[0])[0].share)
    assert width(average(cells(lambda _: draws[0]))) == pytest.approx(alone, abs=2 / 164)  # shares go by 1/164
    for prefix in ("", "separate"):
        independent = width(average(cells(lambda k: draws[k], prefix)))
        assert independent == pytest.approx(alone / np.sqrt(8), rel=0.15)


@pytest.fixture(scope="module")
def cells() -> list[Cell]:
    """One whole row, and two cells of another that is run in two ways."""
    whole = [cell("6.7b+6.7b", language, 1 + i) for i, language in enumerate(LANGUAGES) if i < 4]
    whole += [cell("6.7b+6.7b", language, 2) for i, language in enumerate(LANGUAGES) if i >= 4]
    hostile = "<b>&\\_%</b>|$"
    return [*whole, cell("33b-greedy", "py", 4, n=1, model=hostile, seconds=None), cell("33b-greedy", "js", 0, n=1)]


def test_lines_say_what_ran_by_hand(cells):
    table = paper_table.lines(cells)
    assert [(line.size, line.decoding) for line in table] == [
        ("", ""),
        ("", ""),
        *((size, way) for size in ("1.3B", "6.7B", "33B") for way in ("greedy", "sampled")),
        ("8B", ""),
        ("13.4B", ""),
        ("13.4B", ""),
        ("13.4B", ""),
    ]
    greedy, sampled, ranker = table[6], table[7], table[9]
    assert greedy.paper == sampled.paper == (79.3, 68.9, 73.4, 72.7, 67.9, 74.1, 43.0, 73.9, 69.2)
    assert [h.value if h else None for h in greedy.here] == [1.0, *[None] * 6, 0.0, None]
    assert sampled.here == (None,) * 9
    assert [h.value for h in ranker.here] == [0.25, 0.5, 0.75, 1.0, 0.5, 0.5, 0.5, 0.5, 0.5625]


def test_costs_are_of_a_problem_and_of_what_ran(cells):
    (first, greedy), (second, ranker) = paper_table.costs(cells)
    assert (first, second) == ("33b-greedy", "6.7b+6.7b")
    assert greedy == ["2 of 8", "8", "1", "200", "not measured", "<b>&\\_%</b>|$; random weights, 0.1M"]
    assert ranker == ["8 of 8", "32", "16", "200", "0.5", "random weights, 0.1M"]


def test_the_terminal_has_each_figure_in_eighty_columns(cells):
    text = io.StringIO()
    paper_table.print_table(cells, Console(file=text, width=80, color_system=None))
    shown = text.getvalue()
    assert max(map(len, shown.splitlines())) <= 80
    for row in ROWS.values():
        for percent in (*row.percent, row.average):
            assert f"{percent:.1f}" in shown
    # GPT's two rows and 1.3B's, 6.7B's, 33B's other way, 8B's and two of 13.4B's: ten whole rows, and 7 of 33B's cells.
    assert len(re.findall(r"\bnot\b(?! measured)", shown)) == 10 * 9 + 7
    assert "56.2" in shown  # the average, 56.25


def test_markdown_has_ours_and_the_papers_or_says_not_run(cells):
    table, below = (part.splitlines() for part in paper_table.markdown(cells).split("\n\n| run"))
    rows = [line for line in table if line.startswith("|")]
    assert {line.count("|") for line in rows} == {13}
    assert rows[0] == "| model | size | decoding | Python | C++ | Java | PHP | TS | C# | Bash | JS | avg |"
    share = cells[3].share
    assert share.text() == "1.000 [1.000, 1.000]"
    (ranker,) = [line for line in rows if "(6.7B + 6.7B)" in line]
    assert ranker.split(" | ")[6] == "100.0 [100.0, 100.0] / 72.1"
    low, high = 100 * cells[0].share.low, 100 * cells[0].share.high
    assert ranker.split(" | ")[3] == f"25.0 [{low:.1f}, {high:.1f}] / 78.9"
    (gpt4,) = [line for line in rows if "GPT-4" in line]
    assert gpt4.count("not run / ") == 9
    assert len([line for line in below if "<b>&\\_%</b>\\|$" in line]) == 1


def test_latex_is_balanced_and_escaped(cells):
    text = paper_table.latex(cells)
    assert re.sub(r"\\[{}]", "", text).count("{") == re.sub(r"\\[{}]", "", text).count("}")
    opened = []
    for kind, name in re.findall(r"\\(begin|end)\{([^}]*)\}", text):
        if kind == "begin":
            opened.append(name)
        else:
            assert opened.pop() == name
    assert opened == []
    assert [text.count(rule) for rule in ("\\toprule", "\\midrule", "\\bottomrule")] == [1, 1, 1]
    assert "\\begin{tabular}{lllrrrrrrrrr}" in text
    rows = [line for line in text.splitlines() if line.endswith("\\\\")]
    # Twelve lines of ours and twelve of the paper's, an interval for the two that ran, and the header.
    assert len(rows) == 12 + 12 + 2 + 1
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {11}
    assert "C\\#" in text
    assert "\\textbackslash{}\\_\\%" in text
    assert not re.search(r"(?<!\\)[%#]", text)


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


def test_html_parses_and_has_every_cell(cells):
    found = Page(paper_table.page(cells))
    assert found.links == []
    table, below = found.rows[:13], found.rows[13:]
    assert {len(row) for row in table} == {12}
    (ranker,) = [row for row in table if "(6.7B + 6.7B)" in row[0]]
    assert ranker[6].split() == ["100.0", "100.0", "to", "100.0", "paper", "72.1"]
    assert [row[3].split() for row in table if "GPT-4" in row[0]] == [["not", "run", "paper", "84.1"]]
    assert below[1][-1].startswith("<b>&\\_%</b>|$")


def test_the_command_renders_what_there_is_and_names_what_is_wrong(tmp_path, cells):
    for one in cells:
        save(one, tmp_path / "cells")
    command = [sys.executable, ROOT / "experiments" / "table1.py", "render", "--cells", tmp_path / "cells"]
    done = subprocess.run([*command, "--out", tmp_path], capture_output=True, text=True, cwd=ROOT, check=True)
    assert "6.7b+6.7b" in done.stdout
    assert {p.name for p in tmp_path.glob("table1.*")} == {"table1.md", "table1.tex", "table1.html"}
    assert (tmp_path / "table1.md").read_text() == paper_table.markdown(load_all(tmp_path / "cells"))
    (tmp_path / "cells" / "33b-greedy" / "js.json").write_text("{}")
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode != 0
    assert "js.json: version = None" in done.stderr
    assert "Traceback" not in done.stderr
