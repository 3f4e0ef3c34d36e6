"""The paper's Table 1 with our figures in it.

    python experiments/table1.py render --cells runs/table1/cells --out runs/table1

Reads the cells that ran (`rerankjax.table.cells`: one JSON file a row and language), prints the table, and with --out
writes it as table1.md, table1.tex (booktabs) and table1.html. A cell that was not run says so.
"""

import argparse
import sys
from pathlib import Path

from rerankjax.problems.jsonl import write_text
from rerankjax.table import paper_table
from rerankjax.table.cells import CellError, load_all


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    rendering = commands.add_parser("render", help="the table of the cells that ran")
    rendering.add_argument("--cells", type=Path, required=True, help="directory of ROW/LANGUAGE.json")
    rendering.add_argument("--out", type=Path, help="directory for table1.md, table1.tex and table1.html")
    arguments = parser.parse_args()
    try:
        render(arguments.cells, arguments.out)
    except CellError as error:
        sys.exit(f"table1: {error}")


if __name__ == "__main__":
    main()
