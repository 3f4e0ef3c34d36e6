"""The paper's Table 1 with our figures in it.

    python experiments/table1.py run --workdir runs/table1                        # all rows, or goes on with them
    python experiments/table1.py run --workdir runs/table1 --rows 6.7b-greedy     # some; later ones share its stages
    python experiments/table1.py --smoke                                          # every row on tiny random models
    python experiments/table1.py render --cells runs/table1/cells --out runs/table1

`run` takes configs/paper/. `--set` changes a field for all rows: `--set mesh.fsdp=8 evaluation.samples=32`. `--model`
takes a checkpoint from elsewhere, `--problems` HumanEval's translations from a folder with humaneval-LANGUAGE.jsonl in
place of the hub. A run that was cut goes on where it was; a cell that is there is not run again.

`--smoke` runs every config end to end on random models of some 0.1M parameters of the same family, on two problems a
language, executed in all eight: MultiPL-E's from `--problems`, else from ../shared/data/multipl_e, else from the hub,
and where none of these is to be had made-up ones in its shape; which it was, the table says. What a random model solves
is what it solves: nothing.

`render` reads the cells that ran (`rerankjax.results.cells`: one JSON file a row and language). All print the table and
write it, `render` with --out, as table1.md, table1.tex (booktabs) and table1.html. A cell that was not run says so.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it advises to install torch

from absl import logging
from paper_rows import load_row, smoke_inputs

from rerankjax.loop.experiment import ConfigError
from rerankjax.loop.paper import run_row
from rerankjax.problems.jsonl import write_text
from rerankjax.results import paper_table
from rerankjax.results.cells import CellError, load_all
from rerankjax.results.paper import RUNS
from rerankjax.run.recovery import EXIT_PREEMPTED, Preempted
from rerankjax.run.rundir import RunDirectoryError
from rerankjax.sandbox import SandboxError


def render(cells: Path, out: Path | None) -> None:
    """Prints the table of the cells below `cells`, and writes it into the directory `out` in three formats."""
    found = load_all(cells)
    paper_table.print_table(found)
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    for suffix, write in (("md", paper_table.markdown), ("tex", paper_table.latex), ("html", paper_table.page)):
        write_text(out / f"table1.{suffix}", write(found))
    print(f"table: {out / 'table1.md'}, .tex, .html")


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", type=Path, help="the run's directory: made, or gone on with")
    parser.add_argument("--rows", nargs="+", choices=RUNS, default=list(RUNS), metavar="ROW", help=", ".join(RUNS))
    parser.add_argument("--model", nargs="+", default=[], metavar="SIZE=CHECKPOINT", help="as 6.7b=FOLDER")
    parser.add_argument("--problems", type=Path, help="folder with humaneval-LANGUAGE.jsonl")
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE", help="as ppo.kl_coef=0.1")
    parser.add_argument("--smoke", action="store_true", help="tiny random models")


def run(arguments: argparse.Namespace, *, mbpp: bool = False) -> Path:
    """Runs the rows that were asked for, one after another; returns their directory."""
    logging.set_verbosity(logging.WARNING)  # Orbax tells of every file it closes
    workdir = arguments.workdir or Path("runs/table1-smoke" if arguments.smoke else "runs/table1")
    changes = smoke_inputs(workdir, arguments.problems) if arguments.smoke else {}
    for name in arguments.rows:
        config = load_row(
            name, arguments.model, None if arguments.smoke else arguments.problems, arguments.set, changes
        )
        print(f"row {name}", flush=True)
        run_row(config, str(workdir), mbpp=mbpp)
    return workdir


def guarded(name: str, work: Callable[[], object]) -> None:
    """Does the work; what the user can mend ends the program with a line, not a traceback."""
    try:
        work()
    except Preempted:
        print(f"{name}: SIGTERM came; all is saved, start it again", file=sys.stderr)
        sys.exit(EXIT_PREEMPTED)
    except (CellError, ConfigError, RunDirectoryError, SandboxError) as error:
        sys.exit(f"{name}: {error}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "render"), nargs="?", default="run")
    parser.add_argument("--cells", type=Path, help="render: directory of ROW/LANGUAGE.json")
    parser.add_argument("--out", type=Path, help="render: directory for table1.md, table1.tex and table1.html")
    add_run_arguments(parser)
    arguments = parser.parse_args(argv)
    if arguments.command == "render":
        if arguments.cells is None:
            parser.error("render needs --cells")
        guarded("table1", lambda: render(arguments.cells, arguments.out))
        return

    def work() -> None:
        workdir = run(arguments)
        render(workdir / "cells", workdir)

    guarded("table1", work)


if __name__ == "__main__":
    main()
