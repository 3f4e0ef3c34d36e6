"""`training.py`'s figures of our own steps: how their time grows, and how near they come to a GPU's peak.

Every step is one update on one batch of rows of random tokens without padding; half of each row is a prompt. The steps
are those of SFT, PPO (what comes after the rollout), and the reranker on pairs of rows that share only the first token.

The model FLOPs of a step are `roofline.gradient_cost`'s, without recomputation in the backward pass. PPO's step
recomputes its whole forward pass, so three quarters of the FLOPs that it executes are counted.
"""

import dataclasses
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import gpu
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rerankjax.capacity import roofline
from rerankjax.model.attention import skips
from rerankjax.model.config import ModelConfig
from rerankjax.model.decoder import Params, init_decoder
from rerankjax.model.lora import FULL, LoraConfig, init_adapter
from rerankjax.model.packing import PackConfig
from rerankjax.model.sharding import by_row, replicated, row_shards, shardings_of, to_global
from rerankjax.model.training import OptimizerConfig, TrainState, batch_of, start_state
from rerankjax.policy.ppo import PPOBatch, PPOConfig
from rerankjax.policy.ppo_step import make_ppo_programs
from rerankjax.policy.sft import make_sft_step
from rerankjax.reranker.bradley_terry import RerankerConfig, make_reranker_step
from rerankjax.reranker.pair_batches import pair_batch

TRAINERS = ("SFT", "reranker", "PPO")
LEARNING_RATE, UPDATES = 1e-5, 100_000
WARM_UP = 2  # steps: the first compiles, and the second compiles for the arrays that the first returned

CODER = dataclasses.replace(gpu.SIZES["deepseek-coder-6.7b"].model, compute_dtype="bfloat16")
# DeepSeek-Coder's shapes; rows of 1,024 tokens. If all parameters are trained, they are float32.
SHAPES = {
    "1.3B": (
        dataclasses.replace(
            CODER,
            hidden_size=2048,
            intermediate_size=5504,
            num_hidden_layers=24,
            num_attention_heads=16,
            num_key_value_heads=16,
        ),
        FULL,
        16,
        1024,
    ),
    "6.7B LoRA": (CODER, LoraConfig(16), 8, 1024),
    "tiny": (dataclasses.replace(gpu.SIZES["tiny"].model, compute_dtype="bfloat16"), LoraConfig(4), 4, 32),
}
# hidden_size, intermediate_size, layers, heads
MODELS = {"1M": (128, 344, 3, 2), "5M": (256, 688, 5, 4), "20M": (448, 1208, 7, 7), "50M": (640, 1728, 10, 10)}
ROWS, LENGTHS = (4, 8, 16, 32), (64, 128, 256, 512, 1024)
BASE = 8, 256, "5M"  # the values of two of the three while the third varies
UNITS = {"rows": "rows", "length": "tokens per row", "model": "parameters"}
STYLES = {"SFT": ("#0072b2", "o"), "reranker": ("#d55e00", "s"), "PPO": ("#009e73", "^")}  # Okabe and Ito's


def llama(name: str, vocab_size: int = 4096) -> ModelConfig:
    """One of `MODELS`. RoPE's base is the only one that Tunix's Llama supports; Tunix's critic needs an untied head."""
    hidden, intermediate, layers, heads = MODELS[name]
    head_dim = hidden // heads
    shape = ModelConfig(vocab_size, hidden, intermediate, layers, heads, heads, head_dim, max(LENGTHS))
    return dataclasses.replace(shape, rope_theta=1e6, tie_word_embeddings=False)


def make_step(
    trainer: str, config: ModelConfig, lora: LoraConfig, rows: int, length: int, decoder: Params, mesh: Mesh
) -> tuple[Callable[[TrainState], tuple[TrainState, Any]], TrainState, float]:
    """The step on a batch of `rows` rows, its first state, and its model FLOPs. `decoder` is not donated."""
    rng, P = np.random.default_rng(0), length // 2
    base = decoder if lora.rank else None
    trunk = init_adapter(config, lora, jax.random.key(0)) if lora.rank else decoder
    vector = jax.random.normal(jax.random.key(1), (config.hidden_size,)) * config.hidden_size**-0.5
    optimizer = OptimizerConfig(LEARNING_RATE, steps=UPDATES)
    tokens = rng.integers(1, config.vocab_size, (rows, length), np.int32)
    items: list[Any] = [(row[:P], [row[P:]]) for row in tokens]
    packing = {"shards": row_shards(mesh), "long_rows": skips("auto")}
    logits, sizes = length - P, PackConfig.from_batch_size(rows, 1, P, length - P, **packing)
    if trainer == "SFT":
        params, step = trunk, make_sft_step(config, optimizer, mesh, lora)
    elif trainer == "reranker":
        params = {"decoder": {name: part for name, part in trunk.items() if name != "lm_head"}, "score": vector}
        step = make_reranker_step(config, RerankerConfig("last", 0.0), optimizer, mesh, lora)
        items = [(a[:1], [a[1:], b[1:]]) for a, b in zip(tokens[::2], tokens[1::2], strict=True)]
        logits, sizes = 0, PackConfig.from_batch_size(rows // 2, 1, 1, length - 1, 2, **packing)
    else:
        ppo = PPOConfig(UPDATES, rows, LEARNING_RATE, epochs=1, minibatches=1, kl_coef=0.05)
        params, optimizer = {"decoder": trunk, "value": vector}, ppo.optimizer
        step = make_ppo_programs(config, "last", 1.0, ppo, P, length - P, mesh, lora).update
    parts, counts = (pair_batch if trainer == "reranker" else batch_of)(items, sizes)
    if trainer == "PPO":
        figures = rng.normal(size=(4, *parts[0].mask.shape)).astype(np.float32)
        parts = [PPOBatch(part, *figures) for part in parts]
    batch = to_global(parts, by_row(mesh)), to_global(counts, replicated(mesh))
    cost = roofline.gradient_cost(config, rows, length, lora=lora, logits=logits, remat=False)
    return lambda state: step(state, base, *batch), start_state(params, optimizer, mesh), cost.flops


def step_seconds(step: Callable[[TrainState], tuple[TrainState, Any]], state: TrainState, rounds: int) -> float:
    """Median seconds of `rounds` steps, after the steps that warm up."""
    times = []
    for _ in range(WARM_UP + rounds):
        start = time.perf_counter()
        state, metrics = jax.block_until_ready(step(state))
        times.append(time.perf_counter() - start)
    assert np.isfinite(metrics["loss"])
    return statistics.median(times[WARM_UP:])


def measure_scaling(
    mesh: Mesh, rounds: int, rows: tuple[int, ...], lengths: tuple[int, ...], models: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Seconds of every trainer's step as one of batch, length and model varies; float32."""
    of_base = dict(zip(("rows", "length", "model"), BASE, strict=True))
    varied = (("rows", rows), ("length", lengths), ("model", models))
    points = {tuple((of_base | {name: value}).values()) for name, values in varied for value in values}
    figures = []
    for B, L, model in sorted(points, key=str):
        config = llama(model)
        decoder = jax.jit(lambda key, config=config: init_decoder(config, key))(jax.random.key(0))
        decoder = jax.device_put(decoder, shardings_of(decoder, mesh))
        for trainer in TRAINERS:
            step, state, flops = make_step(trainer, config, FULL, B, L, decoder, mesh)
            seconds = step_seconds(step, state, rounds)
            size = roofline.parameter_count(config)
            point = {"rows": B, "length": L, "model": model, "parameters": size}
            figures.append(point | {"trainer": trainer, "seconds": seconds, "GFLOP/s": flops / seconds / 1e9})
            jax.clear_caches()
    return figures


def plot_scaling(figures: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Step time against batch, length and parameters, one line per trainer; the dashed line is proportional growth."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator

    style = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True}
    with matplotlib.rc_context(style | {"grid.color": "#e5e5e5", "axes.axisbelow": True}):
        figure, panels = pyplot.subplots(1, 3, figsize=(10, 3.4), sharey=True, layout="constrained")
        base = dict(zip(("rows", "length", "model"), BASE, strict=True))
        titles = {"rows": "rows in a batch", "length": "tokens in a row", "model": "parameters"}
        for axes, (varied, title) in zip(panels, titles.items(), strict=True):
            axis = "parameters" if varied == "model" else varied
            others = [name for name in base if name != varied]
            rows = [row for row in figures if all(row[name] == base[name] for name in others)]
            for trainer, (colour, marker) in STYLES.items():
                line = sorted((row[axis], row["seconds"]) for row in rows if row["trainer"] == trainer)
                axes.plot(*zip(*line, strict=True), color=colour, marker=marker, markersize=4.5, label=trainer)
            first, last = line[0][0], line[-1][0]
            below = min(row["seconds"] for row in rows if row[axis] == last) / 1.5
            grey = {"color": "#808080", "linestyle": "--", "linewidth": 1, "zorder": 1}
            axes.plot([first, last], [below * first / last, below], **grey, label="proportional")
            axes.set_xscale("log")
            axes.set_yscale("log")
            ticks = sorted({(row[axis], row["model"] if varied == "model" else f"{row[axis]:,}") for row in rows})
            axes.set_xticks(*zip(*ticks, strict=True))
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.minorticks_off()
            axes.set_xlabel(title)
            axes.set_title(", ".join(f"{base[name]} {UNITS[name]}" for name in others), fontsize=9)
        panels[0].set_ylabel("seconds per step")
        handles, labels = panels[0].get_legend_handles_labels()
        labels = [{"PPO": "PPO update"}.get(label, label) for label in labels]
        figure.legend(handles, labels, loc="outside upper left", ncols=len(labels), frameon=False)
        figure.savefig(path, dpi=150)
        pyplot.close(figure)


def peak_flops() -> tuple[float, str]:
    """TFLOP/s of a device in bfloat16 as its maker states it, otherwise of measured matrix products; and the source."""
    kind = jax.devices()[0].device_kind
    for name, chip in roofline.CHIPS.items():
        if name in kind.lower():
            return chip.flops_per_second / 1e12, chip.name
    return gpu.measure_products(1024, 3) / 1e12, f"{kind}, measured"


def measure_utilisation(shape: str, mesh: Mesh, rounds: int) -> list[dict[str, Any]]:
    """The fraction of the peak that each trainer's model FLOPs reach; rows are halved until they fit."""
    config, lora, rows, length = SHAPES[shape]
    decoder = gpu.random_params(config)
    if not lora.rank:
        decoder = jax.tree.map(lambda a: a.astype(jnp.float32), decoder)
    (peak, source), figures = peak_flops(), []
    for trainer in TRAINERS:
        B, seconds = rows, None
        while seconds is None:
            step = state = None  # otherwise those of a batch that did not fit would stay in memory
            try:
                step, state, flops = make_step(trainer, config, lora, B, length, decoder, mesh)
                seconds = step_seconds(step, state, rounds)
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error) or B == 2:
                    raise
                B //= 2
        rate = flops / seconds / 1e12
        setting = {"shape": shape, "trainer": trainer, "rows": B, "length": length, "peak of": source}
        speed = {"peak TFLOP/s": peak, "seconds": seconds, "TFLOP/s": rate, "fraction": rate / peak / mesh.size}
        figures.append(setting | speed)
    return figures
