"""Compares finished runs, as Markdown: python experiments/compare.py runs/mini runs/more-kl

Shows the differences of their configs and, for each evaluation set, what each system solves by each rule, and the
claims.
"""

import argparse
import sys
from pathlib import Path

from rerankjax.results import results
from rerankjax.results.comparison import comparison
from rerankjax.run.rundir import saved_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdirs", nargs="+", type=Path, help="the directories of finished runs")
    runs = {}
    for workdir in parser.parse_args().workdirs:
        missing = [name for name in ("config.json", "results.json") if not (workdir / name).is_file()]
        if missing:
            sys.exit(f"compare: {workdir} has no {missing[0]}: give the --workdir of a finished run")
        try:
            runs[str(workdir)] = saved_config(workdir), results.load(workdir / "results.json")
        except ValueError as error:
            sys.exit(f"compare: {error}")
    print(comparison(runs), end="")


if __name__ == "__main__":
    main()
