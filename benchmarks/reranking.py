"""Candidates scored and pairs trained on per second, compared with transformers and TRL on the same weights.

    python benchmarks/reranking.py                 # CPU, 5M parameters, float32; 15 minutes on two cores
    python benchmarks/reranking.py --parts scoring --devices 1

Scoring: 16 candidates of 64 tokens for each of 8 prompts of 512 tokens. Our rows that share a prompt, which is read
once, are compared with transformers' sequence classification and with our plain rows (prompt and candidate). These two
have the fastest of three batch sizes, measured first. All scores agree within 1e-4.

Training: optimisation steps on 16 pairs, compared with TRL's RewardTrainer without gradient checkpointing, evaluation,
logging or saving, and without its time to fetch and pad the pairs. Pairs share prompts of 512 tokens before completions
of 64 tokens, or have 256 tokens and share only the first. The losses of all steps agree within 1e-4: both sides take
the same steps of Adam, with clipped gradients and cosine decay.

torch runs on one thread or on one thread per core, whichever is faster, because threads wait for one another on busy
cores. The two sides alternate after a warm-up; ratios are medians. Needs torch and TRL (1.16): pip install torch trl.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

os.environ.setdefault("NPROC", "16")  # XLA's threads: more than devices; otherwise collectives of two programs block

import jax
import numpy as np
import torch
import transformers
from jax.sharding import Mesh
from rich.console import Console
from rich.table import Table

from rerankjax.model.attention import skips
from rerankjax.model.likelihood import SequenceBatch
from rerankjax.model.packing import PackConfig
from rerankjax.model.sharding import by_row, make_mesh, replicated, row_shards
from rerankjax.model.training import OptimizerConfig, init_state, make_optimizer
from rerankjax.model.weights import load_reranker
from rerankjax.prompts.tokenizer import train_tokenizer
from rerankjax.reranker.bradley_terry import RerankerConfig, make_reranker_step, score_rows
from rerankjax.reranker.pair_batches import pair_batch
from rerankjax.reranker.rerank import batches, make_scorer

SHAPE = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 5, "num_attention_heads": 4}
VOCABULARY, PAD = 4096, 0  # no token of the data is PAD: transformers finds padding by its id
CANDIDATES, BATCH_SIZES = 16, (8, 16, 32)
CORES = len(os.sched_getaffinity(0))
THREADS = sorted({1, CORES})  # of torch
LEARNING_RATE, TOLERANCE = 1e-5, 1e-4
# TRL's settings: float32 on a CPU, and nothing beside the steps.
PLAIN: dict[str, Any] = {
    "bf16": False,
    "use_cpu": True,
    "gradient_checkpointing": False,
    "dataloader_pin_memory": False,
    "logging_strategy": "no",
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}


def write_model(folder: str) -> None:
    """Writes a random reward model in transformers' format."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        num_key_value_heads=SHAPE["num_attention_heads"],
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        eos_token_id=None,
        bos_token_id=None,
        num_labels=1,
        **SHAPE,
    )
    transformers.LlamaForSequenceClassification(config).save_pretrained(folder)


def read_model(folder: str) -> transformers.PreTrainedModel:
    return transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)


def random_tokens(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(PAD + 1, VOCABULARY, shape, np.int32)


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    out = run()
    return time.perf_counter() - start, out


def fastest(run: Callable[..., Any], settings: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    """The arguments with which `run` is fastest; each is timed twice after a warm-up."""

    def seconds(arguments: tuple[int, ...]) -> float:
        return min([timed(lambda: run(*arguments))[0] for _ in range(3)][1:])

    return min(settings, key=seconds)


def compare_scoring(
    folder: str, mesh: Mesh, rounds: int, prompts: int, prompt_length: int, length: int
) -> dict[str, Any]:
    config, params, _ = load_reranker(folder, sharding=replicated(mesh))
    model = read_model(folder).eval()
    shared = random_tokens(prompts, prompt_length, seed=0)
    completions = random_tokens(prompts * CANDIDATES, length, seed=1)
    rows = np.concatenate([np.repeat(shared, CANDIDATES, axis=0), completions], axis=1)
    plain = jax.jit(
        lambda params, rows: score_rows(config, "last", params, rows, prompt_length),
        in_shardings=(replicated(mesh), by_row(mesh)),
        out_shardings=by_row(mesh),
    )
    items = list(zip(shared.tolist(), completions.reshape(prompts, CANDIDATES, -1).tolist(), strict=True))
    packed = batches(items, row_shards(mesh), skips("auto"))
    parts = [(jax.device_put(part, by_row(mesh)), places) for part, places in packed]
    scorer = make_scorer(config, "last", mesh)

    @torch.inference_mode()
    def theirs(rows: np.ndarray, size: int, threads: int) -> np.ndarray:
        torch.set_num_threads(threads)
        parts = torch.from_numpy(rows).long().split(size)
        return torch.cat([model(part, use_cache=False).logits[:, 0] for part in parts]).numpy()

    def ours_plain(rows: np.ndarray, size: int) -> np.ndarray:
        parts = [rows[i : i + size] for i in range(0, len(rows), size)]
        return np.concatenate([plain(params, SequenceBatch(part, np.ones(part.shape, bool))) for part in parts])

    def ours_shared() -> np.ndarray:
        scores = np.zeros((prompts, CANDIDATES), np.float32)
        for part, places in parts:
            scores[places.problem, places.candidate] = np.asarray(scorer(params, part))[places.row, places.column]
        return scores.reshape(-1)

    some = rows[: max(BATCH_SIZES)]
    size, threads = fastest(functools.partial(theirs, some), itertools.product(BATCH_SIZES, THREADS))
    (own_size,) = fastest(functools.partial(ours_plain, some), zip(BATCH_SIZES))
    runs = (lambda: theirs(rows, size, threads)), (lambda: ours_plain(rows, own_size)), ours_shared
    scores = [run() for run in runs]
    for score in scores[:2]:
        np.testing.assert_allclose(score, scores[2], atol=TOLERANCE, rtol=0)
    times = [[timed(run)[0] for run in runs] for _ in range(rounds)]

    def beside(side: int, target: float, **more: int) -> dict[str, Any]:
        theirs, ours = (len(rows) / statistics.median(row[i] for row in times) for i in (side, 2))
        ratio = statistics.median(row[side] / row[2] for row in times)
        return {"unit": "candidates/s", "theirs": theirs, "ours": ours, "ratio": ratio, "target": target, **more}

    return {
        "scoring: transformers": beside(0, 4.0, batch=size, threads=threads),
        "scoring: our plain rows": beside(1, 3.0, batch=own_size),
    }


def by_turns(
    trainer: type[transformers.Trainer],
    settings: Callable[..., transformers.TrainingArguments],
    model: transformers.PreTrainedModel,
    data: dict[str, Any],
    ours: Callable[[], float],
    steps: int,
    size: int,
    *,
    tokenizer: transformers.PreTrainedTokenizerBase | None = None,
    each_threads: Sequence[int] = THREADS,
    tolerance: float = TOLERANCE,
    bf16: bool = False,
) -> dict[str, Any]:
    """Alternates one step of TRL's `trainer` and one of `ours`, which returns its loss, on the same batch each time.

    TRL's steps take each number of threads in turn. The first step on each, and ours after it, are not counted.
    tokenizer: gives TRL the padding token; by default one whose padding token is `PAD`.
    bf16: TRL trains in mixed precision, with bfloat16 products.
    """
    import datasets

    theirs, our_seconds, losses, their_losses = [], [], [], []

    class Turns(transformers.TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            torch.set_num_threads(each_threads[len(theirs) % len(each_threads)])
            self.start = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            theirs.append(time.perf_counter() - self.start)
            seconds, loss = timed(ours)
            our_seconds.append(seconds)
            losses.append(loss)

    if tokenizer is None:
        tokenizer = train_tokenizer(["some text"], 300)
        assert tokenizer.pad_token_id == PAD
    with tempfile.TemporaryDirectory() as output:
        theirs_trains = trainer(
            model=model,
            args=settings(
                output,
                max_steps=steps,
                per_device_train_batch_size=size,
                learning_rate=LEARNING_RATE,
                lr_scheduler_type="cosine",
                max_length=None,
                **PLAIN | {"bf16": bf16},
            ),
            train_dataset=datasets.Dataset.from_dict(data),
            processing_class=tokenizer,
            callbacks=[Turns()],
        )
        theirs_trains.remove_callback(transformers.PrinterCallback)
        compute_loss = theirs_trains.compute_loss

        def kept(*arguments: Any, **options: Any) -> torch.Tensor:
            loss = compute_loss(*arguments, **options)
            their_losses.append(loss.detach())
            return loss

        theirs_trains.compute_loss = kept
        theirs_trains.train()
    np.testing.assert_allclose(losses, [float(loss) for loss in their_losses], atol=tolerance, rtol=0)
    turns = list(zip(theirs, our_seconds, strict=True))
    of_threads = {threads: turns[i :: len(each_threads)][1:] for i, threads in enumerate(each_threads)}
    threads, turns = min(of_threads.items(), key=lambda item: statistics.median(a for a, _ in item[1]))
    return {
        "theirs": size / statistics.median(a for a, _ in turns),
        "ours": size / statistics.median(b for _, b in turns),
        "ratio": statistics.median(a / b for a, b in turns),
        "batch": size,
        "threads": threads,
        "losses": losses,
    }


def compare_training(
    folder: str, mesh: Mesh, steps: int, pairs: int, prompt_length: int, length: int, target: float
) -> dict[str, Any]:
    import trl

    prompts, completions = random_tokens(pairs, prompt_length, seed=2), random_tokens(2 * pairs, length, seed=3)
    chosen, rejected = (np.concatenate([prompts, completions[i::2]], axis=1).tolist() for i in (0, 1))
    config, params, _ = load_reranker(folder, sharding=replicated(mesh))
    config = dataclasses.replace(config, unroll=config.num_hidden_layers)
    optimizer = OptimizerConfig(LEARNING_RATE, steps=steps)
    state = jax.jit(lambda p: init_state(p, make_optimizer(optimizer)), out_shardings=replicated(mesh))(params)
    step = make_reranker_step(config, RerankerConfig("last", 0.0), optimizer, mesh)
    items = [(prompt, completions[2 * i : 2 * i + 2]) for i, prompt in enumerate(prompts.tolist())]
    sizes = PackConfig.from_batch_size(pairs, 1, prompt_length, length, 2, row_shards(mesh), skips("auto"))
    batch = pair_batch(items, sizes)

    def ours() -> float:
        nonlocal state
        state, metrics = jax.block_until_ready(step(state, None, *batch))
        return float(metrics["loss"])

    data = {"chosen_ids": chosen, "rejected_ids": rejected}
    turns = by_turns(trl.RewardTrainer, trl.RewardConfig, read_model(folder), data, ours, steps, pairs)
    return {"unit": "pairs/s", "target": target, **turns}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="scoring,training")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of scoring")
    parser.add_argument(
        "--steps", type=int, default=12, help="training steps, including the first few, which do not count"
    )
    parser.add_argument("--prompts", type=int, default=8, help="prompts scored at a time")
    parser.add_argument("--pairs", type=int, default=16, help="pairs in a training step")
    parser.add_argument("--prompt-length", type=int, default=512)
    parser.add_argument("--completion-length", type=int, default=64)
    parser.add_argument("--row-length", type=int, default=256, help="tokens of a row of pairs that share nothing")
    parser.add_argument("--devices", type=int, default=CORES, help="number of JAX devices; default: one per core")
    parser.add_argument("--json", type=pathlib.Path, help="also write the figures to this file")
    args = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    jax.config.update("jax_num_cpu_devices", args.devices)
    console, figures, mesh, load = Console(), {}, make_mesh(), os.getloadavg()[0]
    lengths = args.prompt_length, args.completion_length
    with tempfile.TemporaryDirectory() as folder:
        write_model(folder)
        if "scoring" in args.parts:
            figures |= compare_scoring(folder, mesh, args.rounds, args.prompts, *lengths)
        if "training" in args.parts:
            train = functools.partial(compare_training, folder, mesh, args.steps, args.pairs)
            figures["training: TRL, shared prompts"] = train(*lengths, 1.4)
            figures["training: TRL, nothing shared"] = train(1, args.row_length - 1, 1.0)
    table = Table("part: compared with", "unit", "batch", "threads", "theirs", "ours", "ratio", "target", box=None)
    for name, row in figures.items():
        values = (f"{row['theirs']:,.1f}", f"{row['ours']:,.1f}", f"{row['ratio']:.2f}", f"{row['target']}")
        table.add_row(name, row["unit"], f"{row['batch']}", f"{row.get('threads', '')}", *values)
    console.print(f"JAX {jax.__version__} on {args.devices} devices, torch {torch.__version__}, {CORES} cores")
    console.print(f"load average before: {load:.1f}", table)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
