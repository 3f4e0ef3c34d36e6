"""The rows of the paper's table on MBPP (task ids 11 to 510, three shots, as DeepSeek-Coder's evaluation).

    python experiments/mbpp.py --workdir runs/table1            # all rows, or goes on with them
    python experiments/mbpp.py --workdir runs/table1 --rows 6.7b-greedy 6.7b+6.7b
    python experiments/mbpp.py --smoke                          # on tiny random models

Takes configs/paper/ and the same arguments as experiments/table1.py, and in its directory the models that it trained.
The paper compares with LEVER; its figures are not in our source of it, so ours stand alone. Cells: WORKDIR/mbpp.
"""

import argparse

from rich.console import Console
from rich.table import Table
from table1 import add_run_arguments, guarded, run

from rerankjax.results.cells import load_all
from rerankjax.results.paper import RUNS
from rerankjax.results.paper_table import COST_HEADER, costs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_run_arguments(parser)
    arguments = parser.parse_args()

    def work() -> None:
        cells = load_all(run(arguments, mbpp=True) / "mbpp")
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
        for name in ("run", "solved", "95%", *COST_HEADER[2:]):
            table.add_column(name, no_wrap=name == "run", overflow="fold")
        of_run = {cell.row: cell for cell in cells}
        cost = dict(costs(cells))
        for name in RUNS:
            if name not in of_run:
                table.add_row(name, "not run")
                continue
            share = of_run[name].share
            figures = f"{100 * share.value:.1f}", f"{100 * share.low:.1f}-{100 * share.high:.1f}"
            table.add_row(name, *figures, *cost[name][1:])
        Console().print(table)

    guarded("mbpp", work)


if __name__ == "__main__":
    main()
