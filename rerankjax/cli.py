"""The command `rerankjax`. What needs JAX is imported once the input is found good: help and errors come at once."""

import argparse
import importlib
import importlib.metadata
import json
import math
import os
import signal
import sys
from pathlib import Path

from rerankjax.problems.jsonl import write_text
from rerankjax.reranker.samples import Samples, read_samples
from rerankjax.run.allocation import keep_freed_memory

DESCRIPTION = "Sample many programs from a code model, and learn which one to trust."
# Commands that parse their own arguments: their module, and what they do.
COMMANDS = {
    "train": ("rerankjax.loop.command", "run the loop from a config"),
    "export": ("rerankjax.loop.export_command", "write a run's policy in Hugging Face's format, with its samples"),
    "preflight": ("rerankjax.capacity.command", "check whether a run fits its devices"),
    "execute": ("rerankjax.sandbox.__main__", "run samples against their tests"),
    "train-reranker": ("rerankjax.standalone.train_command", "train a reranker on labelled samples or preferences"),
    "evaluate": ("rerankjax.standalone.evaluate_command", "compare rerankers on labelled samples or preferences"),
}
RANK = """\
Scores the candidates of each problem with a reranker, and ranks them.

    rerankjax rerank --model runs/mini/seed0/export --problems runs/mini/seed0/export/examples.jsonl
    rerankjax rerank --model FOLDER_OR_HUB_ID --problems samples.jsonl --output ranked.jsonl --chat

Input: a .jsonl or .jsonl.gz file with one row per problem,
    {"prompt": "...", "candidates": ["...", ...], "name": "..."}
("candidates" may also be called "completions", as in MultiPL-E, and "name" is optional); a MultiPL-E completions file
(.json, .json.gz); or a directory of such files.

Output: one row per problem, in the input's order,
    {"name": "...", "scores": [0.7, ...], "ranking": [3, ...], "best": "..."}
"scores" are in the candidates' order, "ranking" has the candidates' numbers (from 0) with the best first, and "best" is
the text of the best candidate.

Exit code: 0 all problems are ranked; 2 bad input, reported before the model is loaded if possible; 130 interrupted.
"""


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code, see `RANK`; argparse itself leaves with SystemExit(2)."""
    if argv is None:
        argv = sys.argv[1:]
        if argv and argv[0] in ("train", "train-reranker", "evaluate", "rerank"):  # which compute
            keep_freed_memory()
    if argv and argv[0] in COMMANDS:
        if argv[0] == "execute":  # what a batch system sends first ends it as Ctrl-C does, with its results written
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        module, _ = COMMANDS[argv[0]]
        return int(importlib.import_module(module).main(argv[1:]) or 0)
    args = _parse(argv)
    try:
        samples = read_samples(args.problems)
        text = _rank(args, samples)
        if args.output:
            write_text(args.output, text)
            _say(f"wrote {args.output}")
        else:
            sys.stdout.write(text)
            sys.stdout.flush()
    except BrokenPipeError:  # as of `| head`: whoever read has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it closes it
    except (ValueError, OSError) as error:
        _say(str(error))
        return 2
    except KeyboardInterrupt:
        _say("interrupted; no file was written")
        return 130
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("rerankjax", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=importlib.metadata.version("rerankjax"))
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, (_, what) in COMMANDS.items():
        commands.add_parser(name, help=what, add_help=False)
    rank = commands.add_parser(
        "rerank",
        help="score and rank the candidates of problems",
        description=RANK,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    rank.add_argument(
        "--model",
        required=True,
        metavar="FOLDER_OR_ID",
        help="folder or hub id (owner/name) of a reranker: *ForSequenceClassification with one label",
    )
    rank.add_argument("--problems", required=True, type=Path, metavar="FILE_OR_DIR", help="the input, see above")
    rank.add_argument(
        "--output", type=_new_file, metavar="FILE", help="the output, written atomically (default: stdout)"
    )
    rank.add_argument(
        "--chat",
        action="store_true",
        help="score conversations in the tokenizer's chat template: the prompt is the user's message, a candidate "
        "is the reply",
    )
    rank.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="dtype of the parameters (default: as saved)"
    )
    rank.add_argument("--revision", metavar="NAME", help="a branch, tag or commit of a hub id")
    return parser.parse_args(argv)


def _new_file(text: str) -> Path:
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir() or path.suffix == ".gz":
        raise argparse.ArgumentTypeError(f"must be an uncompressed file in an existing directory, got {text!r}")
    return path


def _rank(args: argparse.Namespace, samples: list[Samples]) -> str:
    """The output's text."""
    _say(f"loading {args.model}")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it advises to install torch
    from rich.console import Console

    from rerankjax.progress import progress
    from rerankjax.reranker.rerank import PromptLengthError, Reranker, best_first

    reranker = Reranker.from_pretrained(args.model, chat=args.chat, dtype=args.dtype, revision=args.revision)
    total = sum(len(set(one.candidates)) for one in samples)
    with progress("rerank", total, "candidates", Console(stderr=True)) as advance:
        try:
            scores = reranker.score_all([(one.prompt, one.candidates) for one in samples], advance)
        except PromptLengthError as error:
            raise ValueError(f"{samples[error.problem].where}: field 'prompt': {error.reason}") from error
    rows = []
    for one, of_problem in zip(samples, scores, strict=True):
        ranking = best_first(of_problem)
        for number, score in enumerate(of_problem.tolist(), start=1):
            if not math.isfinite(score):
                raise ValueError(f"{one.where}: candidate {number} scores {score}; try --dtype float32")
        best = one.candidates[ranking[0]] if ranking else None
        rows.append({"name": one.name, "scores": of_problem.tolist(), "ranking": ranking, "best": best})
    return "".join(json.dumps(row) + "\n" for row in rows)


def _say(text: str) -> None:
    print(f"rerankjax: {text}", file=sys.stderr)
