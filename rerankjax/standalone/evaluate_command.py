"""Compares one or more rerankers on labelled samples or preferences.

    rerankjax evaluate --model runs/reranker/export --data runs/mini/seed0/export/examples.jsonl --output-dir compared
    rerankjax evaluate --model ours=FOLDER --model theirs=OWNER/NAME --data pairs.jsonl --output-dir compared --chat

Data: .jsonl, .jsonl.gz and .parquet files, MultiPL-E's results files or directories of them. A row has
    {"prompt": "...", "candidates": ["...", ...], "passed": [true, ...]}  ("greedy": whether the greedy answer passes)
    {"prompt": "...", "chosen": "...", "rejected": "...", "subset": "..."}   RewardBench; with lists, best of 4

Prints the figures, and writes results.json and report.html to the output directory. For executed samples: the fraction
of problems solved by each rule with best-of-n, AUC, pairwise accuracy and calibration. For preferences: the accuracy by
subset. For both: paired tests between rerankers, and the cost of each reranker.

Exit code: 0 all rerankers are measured; 2 bad input, reported before any model is loaded if possible; 130 interrupted.
"""

import argparse
import os
import shlex
import sys
from pathlib import Path

os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it advises to install torch

PROGRAM = "rerankjax evaluate"


def main(argv: list[str]) -> int:
    """Returns the exit code, see above; argparse itself exits with SystemExit(2)."""
    args = _parse(argv)
    try:
        _evaluate(args, shlex.join([*PROGRAM.split(), *argv]))
    except (ValueError, OSError) as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted; no file was written", file=sys.stderr)
        return 130
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(PROGRAM, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model",
        required=True,
        action="append",
        metavar="[NAME=]FOLDER_OR_ID",
        help="folder or hub id of a reranker (*ForSequenceClassification with one label); repeat it for more rerankers",
    )
    parser.add_argument(
        "--data", required=True, action="append", metavar="FILE_OR_DIR", help="labelled rows; repeat it for more files"
    )
    parser.add_argument("--output-dir", required=True, type=Path, metavar="DIR", help="created if missing")
    parser.add_argument(
        "--chat",
        action="store_true",
        help="score conversations in the tokenizer's chat template: the prompt is the user's message "
        "(default if any row is a conversation)",
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="dtype of the parameters (default: as saved)"
    )
    return parser.parse_args(argv)


def _evaluate(args: argparse.Namespace, command: str) -> None:
    # Importing JAX and transformers takes seconds: help and a wrong flag do not wait for them.
    from rerankjax.model.weights import find_reranker
    from rerankjax.pairs.data import DataSource, read_data
    from rerankjax.problems.jsonl import write_text
    from rerankjax.reranker.rerank import Reranker
    from rerankjax.standalone.comparison import write_comparison
    from rerankjax.standalone.measure import compare, score
    from rerankjax.standalone.report import report
    from rerankjax.standalone.tables import print_comparison

    rows = read_data([DataSource(source) for source in args.data])
    chat = args.chat or any(not isinstance(row.prompt, str) for row in rows)
    models = {}
    for given in args.model:
        name, _, path = given.rpartition("=")
        if (name or path) in models:
            raise ValueError(
                f"--model {given}: the name {name or path!r} is already used; give another: --model NAME={path}"
            )
        models[name or path] = find_reranker(path)
    scored = []
    for name, path in models.items():  # one at a time in memory
        try:
            reranker = Reranker.from_pretrained(path, chat=chat, dtype=args.dtype)
        except ValueError as error:
            raise ValueError(f"--model {name}: {error}") from error
        scored.append(score(name, reranker, rows))
    comparison = compare(rows, scored)
    page = report(comparison, command)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    write_comparison(args.output_dir / "results.json", comparison)
    write_text(args.output_dir / "report.html", page)
    print_comparison(comparison)
    print(f"\nwrote {args.output_dir / 'results.json'} and {args.output_dir / 'report.html'}")
