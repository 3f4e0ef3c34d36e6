"""`rerankjax train-reranker` compared with TRL's RewardTrainer: same base, pairs, batch size, steps and learning rate.

    rerankjax export --config=configs/mini.py --workdir=runs/mini --policy=sft --output=sft
    python benchmarks/train_reranker.py sft --steps 180 --batch-size 64 --learning-rate 2e-3

Both sides train all parameters in float32 from the policy that was exported, on pairs of its labelled samples, and are
measured on its test samples: held-out AUC, accuracy on pairs of one problem and best of n, with 95% intervals over
problems, and their paired difference. Seconds are those of the whole training, with compilation, data and, for
train-reranker, its measurement on the dev samples and its checkpoint; TRL neither evaluates nor saves. train-reranker
reads a prompt and its candidates once for up to eight of their pairs in a batch. Needs torch and TRL (1.16).
"""

import argparse
import copy
import json
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("NPROC", "16")  # XLA's threads: more than devices; otherwise collectives of two programs block

import datasets
import torch
import transformers
import trl
from reranking import PLAIN
from rich.console import Console
from rich.table import Table

from rerankjax import Reranker, train_reranker
from rerankjax.pairs.data import DataSource, TextPair, make_pairs, read_data
from rerankjax.prompts.tokenizer import load_tokenizer
from rerankjax.reranker.padding import give_padding
from rerankjax.results.statistics import Estimate
from rerankjax.run.rundir import stage_seconds
from rerankjax.standalone.measure import compare, score

OURS, THEIRS = "train-reranker", "TRL"
SPLITS = {"data": "train", "dev": "dev", "test": "test"}
PAIRS_PER_PROBLEM, SEED, WARM_UP = 16, 0, 10


def train_ours(args: argparse.Namespace, workdir: Path) -> tuple[Path, float]:
    """The reranker's folder, and the seconds of its training."""
    config = {
        "base": str(args.base),
        **{name: [str(args.base / "samples" / f"{split}.jsonl")] for name, split in SPLITS.items()},
        "max_length": args.max_length,
        "pairs_per_problem": PAIRS_PER_PROBLEM,
        "seed": SEED,
        "compute_dtype": args.compute_dtype,
        "remat": args.remat,
        "batch_size": args.batch_size,
        "optimizer": {
            "learning_rate": args.learning_rate,
            "steps": args.steps,
            "warmup_steps": WARM_UP,
            "microbatches": args.microbatches,
        },
        "early_stopping": {"every": args.steps, "patience": 0},
        "checkpoints": {"steps": args.steps},
        "lora": {"rank": 0},
    }
    folder = train_reranker(config, workdir)
    return folder, stage_seconds(workdir / "training")


def train_theirs(args: argparse.Namespace, pairs: list[TextPair], folder: Path) -> float:
    """The seconds of TRL's training; `folder` gets the reranker."""
    tokenizer = copy.deepcopy(load_tokenizer(args.base))
    give_padding(tokenizer)  # a padding token of its own: transformers scores the last token that is no padding
    torch.manual_seed(SEED)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        args.base, num_labels=1, dtype=torch.float32, pad_token_id=tokenizer.pad_token_id
    )
    settings = trl.RewardConfig(
        str(folder.parent / "trl"),
        max_steps=args.steps,
        per_device_train_batch_size=args.batch_size // args.their_accumulation,
        gradient_accumulation_steps=args.their_accumulation,
        learning_rate=args.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=WARM_UP,
        max_length=args.max_length,
        seed=SEED,
        **PLAIN,
    )
    rows = datasets.Dataset.from_list([pair._asdict() for pair in pairs])
    trainer = trl.RewardTrainer(model=model, args=settings, train_dataset=rows, processing_class=tokenizer)
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    trainer.save_model(str(folder))
    tokenizer.save_pretrained(folder)
    return seconds


def figure(estimate: Estimate | None) -> str:
    return "" if estimate is None else f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, help="a policy with its samples, as `rerankjax export` writes them")
    parser.add_argument("--steps", type=int, default=180)
    parser.add_argument("--batch-size", type=int, default=64, help="pairs per step")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--max-length", type=int, default=1024, help="tokens of prompt and candidate together")
    parser.add_argument("--microbatches", type=int, default=4, help="of train-reranker; for 135M parameters: 16")
    parser.add_argument("--their-accumulation", type=int, default=1, help="TRL's gradient_accumulation_steps")
    parser.add_argument("--compute-dtype", default="", help="of train-reranker's products, such as bfloat16")
    parser.add_argument("--remat", default="none", help="of train-reranker; for 135M parameters on a CPU: full")
    parser.add_argument("--json", type=Path, help="also write seconds, steps and batch size to this file")
    args = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    train, test = (read_data([DataSource(str(args.base / "samples" / f"{s}.jsonl"))]) for s in ("train", "test"))
    pairs = make_pairs(train, PAIRS_PER_PROBLEM, SEED)
    with tempfile.TemporaryDirectory() as place:
        theirs = Path(place, "theirs")
        ours, seconds = train_ours(args, Path(place, "ours"))
        times = {OURS: seconds, THEIRS: train_theirs(args, pairs, theirs)}
        folders = {OURS: ours, THEIRS: theirs}
        scored = [score(name, Reranker.from_pretrained(path), test) for name, path in folders.items()]
    comparison = compare(test, scored)
    names = ("side", "seconds", "pairs/s", "AUC", "pair accuracy", f"best of {comparison.samples_most}")
    title = f"{len(pairs)} pairs, {args.steps} steps of {args.batch_size}; {len(test)} test problems"
    table = Table(*names, title=title)
    for name, seconds in times.items():
        measures = [comparison.measure(name, measure) for measure in ("auc", "pairwise_accuracy")]
        solved = comparison.find("reranker", name)
        rate = args.steps * args.batch_size / seconds
        table.add_row(name, f"{seconds:.0f}", f"{rate:.1f}", *map(figure, (*measures, solved)))
    console = Console(width=140)
    console.print(table)
    console.print(f"{OURS} is {times[THEIRS] / times[OURS]:.2f} times as fast (target: 1.5)")
    between = next(d for d in comparison.differences if {d.reranker, d.baseline} == {OURS, THEIRS})
    console.print(f"solved by {between.reranker} minus {between.baseline}: {figure(between)}, p {between.p_value:.2g}")
    if args.json:
        args.json.write_text(json.dumps({"seconds": times, "steps": args.steps, "batch_size": args.batch_size}) + "\n")


if __name__ == "__main__":
    main()
