"""How close the engine's decoding and the reranker's scoring come to one GPU's limits, for DeepSeek-Coder-6.7B's shape.

    python benchmarks/gpu.py                 # one GPU of 80 GB, bfloat16; less than 10 minutes with compilation
    python benchmarks/gpu.py --model tiny    # runs anywhere

The limits are measured: memory bandwidth by a copy and a sum of large arrays (the faster counts), and the rate of
matrix products of 8192^3 in bfloat16.

Decoding: 16 samples at a time for each of 4 prompts of 256 tokens; each sample has 128 tokens. The time of a step is
computed from the difference between 32 and 16 samples per prompt: both read the same prompts, and 32 samples take twice
as many steps. The bytes are those that a step must read: the weights, each prompt's keys and values once, and each
sample's own keys and values so far, without the free rest of its cache.

Scoring: 16 candidates of 64 tokens for each of 8 prompts of 512 tokens. The operations are those of the matrices (2 per
weight and token) and of the attention to the tokens that each token sees. Prompts count once. Norms and the softmax do
not count.

Weights are random. Times are medians of several rounds. Each part is printed, and written, when it ends.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from rerankjax.candidates.engine import Engine, EngineConfig, Prompt
from rerankjax.candidates.sampling import SamplingConfig
from rerankjax.candidates.stop import stop_table
from rerankjax.model.config import ModelConfig, RopeScaling
from rerankjax.model.decoder import Params, init_decoder
from rerankjax.model.sharding import make_mesh
from rerankjax.reranker.rerank import batches, make_scorer


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is measured: lengths in tokens, `megabytes` of the copied array, `matrix` the side of the matrices."""

    model: ModelConfig
    megabytes: int
    matrix: int
    decode_prompt: int
    new: int
    score_prompts: int
    score_prompt: int
    completion: int


SIZES = {
    "deepseek-coder-6.7b": Sizes(
        ModelConfig(
            vocab_size=32_256,
            hidden_size=4096,
            intermediate_size=11_008,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=32,
            head_dim=128,
            max_position_embeddings=16_384,
            rope_theta=100_000.0,
            tie_word_embeddings=False,
            rope_scaling=RopeScaling("linear", 4.0),
        ),
        4096,
        8192,
        256,
        128,
        8,
        512,
        64,
    ),
    "tiny": Sizes(ModelConfig(512, 64, 160, 2, 4, 4, 16, 256, tie_word_embeddings=False), 32, 512, 32, 32, 2, 32, 16),
}
ROWS, SLOTS, CANDIDATES = 4, 16, 16
PRODUCTS = 16  # in one call, so that its launch time is negligible
TARGETS = {"decoding": 0.6, "scoring": 0.5}


def median_seconds(run: Callable[[], Any], rounds: int) -> float:
    """Median seconds of `rounds` calls, each until its result is ready, after one call that warms up."""
    jax.block_until_ready(run())
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure_bandwidth(megabytes: int, rounds: int) -> float:
    """Memory bandwidth in bytes per second."""
    x = jax.jit(lambda: jnp.ones((megabytes, 250_000), jnp.float32))()
    copied = median_seconds(functools.partial(jax.jit(lambda x: x + 1), x), rounds)
    summed = median_seconds(functools.partial(jax.jit(jnp.sum), x), rounds)
    return max(2 * x.nbytes / copied, x.nbytes / summed)


def measure_products(side: int, rounds: int) -> float:
    """Operations per second of bfloat16 matrix products."""
    x, w = (jax.random.normal(jax.random.key(i), (side, side), jnp.bfloat16) for i in range(2))
    w = w * side**-0.5  # so that numbers neither vanish nor overflow, which would save power
    run = jax.jit(lambda x, w: jax.lax.fori_loop(0, PRODUCTS, lambda _, y: y @ w, x))
    return PRODUCTS * 2 * side**3 / median_seconds(functools.partial(run, x, w), rounds)


def random_params(config: ModelConfig) -> Params:
    """Random bfloat16 parameters, made on the device one at a time: float32 ones of this size would fill the device."""
    paths, tree = jax.tree.flatten_with_path(jax.eval_shape(functools.partial(init_decoder, config), jax.random.key(0)))

    @functools.partial(jax.jit, static_argnums=1)
    def normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return 0.02 * jax.random.normal(key, shape, jnp.bfloat16)

    return jax.tree.unflatten(
        tree,
        [
            jnp.ones(leaf.shape, jnp.bfloat16)
            if path[-1].key == "scale"
            else jax.block_until_ready(normal(jax.random.fold_in(jax.random.key(1), i), leaf.shape))
            for i, (path, leaf) in enumerate(paths)
        ],
    )


def decode(sizes: Sizes, params: Params, chunk: int, rounds: int) -> dict[str, float]:
    config, new = sizes.model, sizes.new
    never = stop_table([""] * config.vocab_size, ())
    engine = Engine(
        config,
        SamplingConfig(0.8, 0.95, new),
        EngineConfig(ROWS, SLOTS, sizes.decode_prompt, chunk),
        eos=-1,
        pad=0,
        mesh=make_mesh(),
    )
    tokens = np.random.default_rng(0).integers(1, config.vocab_size, (ROWS, sizes.decode_prompt))
    prompts = [Prompt(row.tolist(), i) for i, row in enumerate(tokens)]

    def run(samples: int) -> None:
        out = engine.stream(params, prompts, samples=samples, key=jax.random.key(0), stops=jnp.asarray(never))
        drawn = sum(len(sample.tokens) for sample in out)
        assert drawn == ROWS * samples * new, drawn

    once, twice = (median_seconds(lambda n=n: run(n * SLOTS), rounds) for n in (1, 2))
    step = (twice - once) / new
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params)) - params["embed_tokens"]["embedding"].nbytes
    key_and_value = config.num_hidden_layers * 2 * config.num_key_value_heads * config.head_dim * 2  # bytes per token
    read = weights + key_and_value * (ROWS * sizes.decode_prompt + ROWS * SLOTS * (new + 1) / 2)
    return {"step_seconds": step, "tokens/s": ROWS * SLOTS / step, "bytes_a_step": read, "bytes/s": read / step}


def score(sizes: Sizes, params: Params, rounds: int) -> dict[str, float]:
    config, R, P, L = sizes.model, sizes.score_prompts, sizes.score_prompt, sizes.completion
    head = jax.random.normal(jax.random.key(2), (config.hidden_size,)) * config.hidden_size**-0.5
    trunk = {name: value for name, value in params.items() if name != "lm_head"}
    rng = np.random.default_rng(0)
    prompts, completions = (
        rng.integers(1, config.vocab_size, shape).tolist() for shape in ((R, P), (R, CANDIDATES, L))
    )
    reranker, scorer = {"decoder": trunk, "score": head}, make_scorer(config, "last", make_mesh())
    parts = [jax.device_put(batch) for batch, _ in batches(list(zip(prompts, completions, strict=True)), shards=1)]

    def run() -> list[jax.Array]:
        return [scorer(reranker, part) for part in parts]

    assert all(np.isfinite(out).all() for out in run())
    seconds = median_seconds(run, rounds)
    matrices = sum(leaf.size for path, leaf in jax.tree.leaves_with_path(params["layers"]) if path[-1].key == "kernel")
    seen = R * (P * (P + 1) // 2 + CANDIDATES * (L * P + L * (L + 1) // 2))  # pairs of a token and one it attends to
    attention = config.num_hidden_layers * config.num_attention_heads * config.head_dim * 4 * seen
    operations = 2 * matrices * R * (P + CANDIDATES * L) + attention
    return {"seconds": seconds, "candidates/s": R * CANDIDATES / seconds, "operations/s": operations / seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deepseek-coder-6.7b", choices=SIZES)
    parser.add_argument("--chunk", type=int, default=32, help="tokens between two checks by the host")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=pathlib.Path, help="also write the figures to this file")
    args = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", 1)
    sizes, console, start = SIZES[args.model], Console(), time.perf_counter()
    if jax.device_count() > 1:
        parser.error(f"this measures one device, but JAX sees {jax.device_count()}: set CUDA_VISIBLE_DEVICES=0")
    device = jax.devices()[0]
    figures: dict[str, Any] = {"device": device.device_kind, "jax": jax.__version__, "model": args.model}

    def done(name: str, value: Any) -> None:
        stats = device.memory_stats() or {}
        peak = stats.get("peak_bytes_in_use", 0) / 1e9
        console.print(f"{time.perf_counter() - start:.0f} s, peak {peak:.1f} GB: {name}: {value}")
        figures[name] = value
        if args.json:
            args.json.write_text(json.dumps(figures, indent=1))

    console.print(f"{device.device_kind}, JAX {jax.__version__}, {args.model}")
    done("bandwidth", measure_bandwidth(sizes.megabytes, args.rounds))
    done("products", measure_products(sizes.matrix, args.rounds))
    params = random_params(sizes.model)
    done("parameters", sum(leaf.size for leaf in jax.tree.leaves(params)))
    done("scoring", score(sizes, params, args.rounds))
    done("decoding", decode(sizes, params, args.chunk, args.rounds))
    table = Table("part", "per second", "rate", "measured limit", "fraction", "target", box=None)
    for name, unit, rate, limit in (
        ("decoding", "tokens/s", "bytes/s", "bandwidth"),
        ("scoring", "candidates/s", "operations/s", "products"),
    ):
        of, most = figures[name], figures[limit]
        figures[name]["share"] = of[rate] / most
        scale, unit_of_rate = (1e9, "GB/s") if rate == "bytes/s" else (1e12, "TFLOP/s")
        row = (f"{of[unit]:,.0f} {unit}", f"{of[rate] / scale:,.1f} {unit_of_rate}", f"{most / scale:,.1f}")
        table.add_row(name, *row, f"{of['share']:.0%}", f"{TARGETS[name]:.0%}")
    console.print(table)
    done("seconds", time.perf_counter() - start)


if __name__ == "__main__":
    main()
