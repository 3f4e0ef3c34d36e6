"""The paper's Table 1 with our figures in it, from three runs of configs/paper.py.

    python experiments/table1.py --workdir runs/table1                       # starts the missing runs, one by one
    python experiments/table1.py --workdir runs/table1 --only 6.7b -- --config.mesh.fsdp=8
    python experiments/table1.py --workdir runs/table1 --render              # the table of the finished runs
    python experiments/table1.py --smoke                                     # everything, on tiny random models

The runs are WORKDIR/1.3b, 6.7b and 33b. Arguments after `--` are passed to each `rerankjax train`. An interrupted run
resumes. On a cluster, start the runs as tpu/README.md says, then use --render. Prints the table and writes table1.md
and table1.html into WORKDIR. Missing figures are marked "not run".

--smoke reads HumanEval's translations from --problems (a folder with humaneval-LANGUAGE.jsonl), or makes up problems in
the same format. The random models solve nothing.
"""

import argparse
import os
import runpy
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rerankjax.problems.jsonl import write_text
from rerankjax.results import paper_table, results

RUNS = ("1.3b", "6.7b", "33b")
ROOT = Path(__file__).parents[1]


def run(size: str, config: str, workdir: Path, flags: Sequence[str], smoke: bool) -> None:
    """Starts or resumes a run. If the run fails, exits this program with the run's status."""
    command = [sys.executable, "-m", "rerankjax", "train", f"--config={config}", f"--workdir={workdir / size}", *flags]
    print(f"run {size}: {' '.join(command[2:])}", flush=True)
    # Runs share compiled programs.
    environment = {"JAX_COMPILATION_CACHE_DIR": str(workdir.absolute() / "compiled")} | os.environ
    if smoke:  # tiny programs run rarely: optimising them takes many times longer than it saves
        import jax  # takes seconds, which --help and --render do not need

        quick = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
        if jax.__version_info__ < (0, 12):  # the older emitters compile in half the time
            quick += " --xla_cpu_use_fusion_emitters=false"
        environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {quick}"
    status = subprocess.run(command, env=environment, check=False).returncode
    if status:
        sys.exit(status)


SMOKE = "These runs are of tiny models with random weights: their figures say nothing about the paper's."


def render(workdir: Path, smoke: bool) -> None:
    """Prints the table of the runs that have results, and writes it in two formats."""
    found = {
        size: results.load(workdir / size / "results.json")
        for size in RUNS
        if (workdir / size / "results.json").is_file()
    }
    assumptions = runpy.run_path(str(ROOT / "configs" / "paper.py"))["ASSUMPTIONS"]
    if smoke:
        assumptions = {"generator, reranker": SMOKE} | assumptions
    paper_table.print_table(found)
    if smoke:
        print(SMOKE)
    workdir.mkdir(parents=True, exist_ok=True)
    write_text(workdir / "table1.md", paper_table.markdown(found, assumptions))
    write_text(workdir / "table1.html", paper_table.page(found, assumptions))
    print(f"table: {workdir / 'table1.md'}, .html")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--workdir", type=Path, help="directory of the three runs (default: runs/table1, or runs/table1-smoke)"
    )
    parser.add_argument(
        "--only", nargs="+", choices=RUNS, default=RUNS, metavar="SIZE", help=f"runs to start: {', '.join(RUNS)}"
    )
    parser.add_argument("--render", action="store_true", help="only print the table; start no run")
    parser.add_argument("--smoke", action="store_true", help="run everything on tiny random models")
    parser.add_argument("--problems", type=Path, help="for --smoke: a folder with humaneval-LANGUAGE.jsonl")
    parser.add_argument("flags", nargs="*", help="after --: flags for rerankjax train")
    args = parser.parse_args()
    workdir = args.workdir or Path("runs/table1-smoke" if args.smoke else "runs/table1")
    config = "configs/paper.py:{size}"
    if args.smoke and not args.render:
        from paper_smoke import make_inputs

        make_inputs(workdir / "inputs", args.problems)
        config = f"experiments/paper_smoke.py:{{size}},{workdir / 'inputs'}"
    for size in () if args.render else args.only:
        if not (workdir / size / "results.json").is_file():
            run(size, str(ROOT / config.format(size=size)), workdir, args.flags, args.smoke)
    render(workdir, args.smoke)


if __name__ == "__main__":
    main()
