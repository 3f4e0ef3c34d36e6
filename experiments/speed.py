"""Is sampling n times from a small model and reranking three times faster than one sample of a large model?

    python experiments/speed.py                                   # the roofline on an H100; no hardware needed
    python experiments/speed.py --chip v5e v5p --out runs/speed   # other chips, with JSON and Markdown
    python experiments/speed.py --measure --out runs/speed        # measured on this machine's devices
    python experiments/speed.py --measure --large small --sampler tiny --reranker tiny --prompt 32 --completion 16

The paper says that 6.7B with a 6.7B reranker is three times faster than 33B. The speed-up depends on n, which the paper
does not give, and on the number of problems in flight. With one problem in flight, every token waits for the parameters
to be read, and samples share that read. With many in flight, the matrix products dominate. So the script varies both.

--measure measures wall-clock time: the engine draws samples from prompts, and the Reranker scores them. A time is the
median of several rounds, after one round that compiles. Weights are random, which does not change the speed, and every
sample has the full length. One model is in memory at a time, with its layers twice while it draws: 33B in bfloat16
needs about 135 GB on each device.
"""

import argparse
import functools
import gc
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rerankjax.candidates.engine import Engine, EngineConfig, Prompt
from rerankjax.candidates.sampling import SamplingConfig
from rerankjax.capacity import speed
from rerankjax.capacity.roofline import CHIPS
from rerankjax.model.config import ModelConfig
from rerankjax.model.decoder import Params, init_decoder
from rerankjax.model.deepseek import DEEPSEEK_CODER
from rerankjax.model.sharding import make_mesh, replicated
from rerankjax.problems.jsonl import write_text
from rerankjax.reranker.rerank import Reranker

MODELS = DEEPSEEK_CODER | {
    "small": ModelConfig(512, 96, 256, 4, 4, 4, 24, 2048, tie_word_embeddings=False),
    "tiny": ModelConfig(512, 32, 64, 2, 2, 2, 16, 2048, tie_word_embeddings=False),
}


def random_params(config: ModelConfig, dtype: jnp.dtype) -> Params:
    """Random parameters on every device, made one by one in `dtype`: float32 ones of a large model would not fit."""
    shapes = jax.eval_shape(functools.partial(init_decoder, config), jax.random.key(0))
    everywhere = replicated(make_mesh())

    @functools.partial(jax.jit, static_argnums=1, out_shardings=everywhere)
    def normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return 0.02 * jax.random.normal(key, shape, dtype)

    leaves, tree = jax.tree.flatten_with_path(shapes)
    made = []
    for i, (path, leaf) in enumerate(leaves):
        scale = path[-1].key == "scale"
        ones = functools.partial(jax.device_put, jnp.ones(leaf.shape, dtype) if scale else None, everywhere)
        made.append(ones() if scale else jax.block_until_ready(normal(jax.random.key(i), leaf.shape)))
    return jax.tree.unflatten(tree, made)


def word_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """A tokenizer with one word per token, so that decoded tokens encode to the same tokens again."""
    words = {f"w{i}": i for i in range(vocab_size - 1)} | {"<eos>": vocab_size - 1}
    tokenizer = Tokenizer(models.WordLevel(words))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>")


def median_seconds(run: Callable[[], object], rounds: int) -> float:
    """Median seconds of `rounds` calls, after one call that compiles. `run` returns when its work is done."""
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def time_sampling(
    config: ModelConfig, params: Params, prompts: Sequence[Prompt], samples: int, length: int, rounds: int
) -> tuple[float, list[list[np.ndarray]]]:
    """Seconds to draw `samples` completions of `length` tokens for all prompts in flight at once, and their tokens."""
    devices = jax.device_count()
    rows = -(-len(prompts) // devices) * devices  # every device has the same number of rows
    shape = EngineConfig(rows, samples, max(len(p.tokens) for p in prompts))
    engine = Engine(config, SamplingConfig(0.8, 0.95, length), shape, eos=-1, pad=0, mesh=make_mesh())
    never = np.stack([np.zeros(config.vocab_size, np.int32), np.ones(config.vocab_size, np.int32)])
    drawn: list[list[np.ndarray]] = [[] for _ in prompts]

    def run() -> None:
        for of_prompt in drawn:
            of_prompt.clear()
        for sample in engine.stream(params, prompts, samples=samples, key=jax.random.key(0), stops=never):
            drawn[sample.prompt].append(sample.tokens)

    taken = median_seconds(run, rounds)
    assert all(len(tokens) == length for of_prompt in drawn for tokens in of_prompt)
    return taken, drawn


def measure(
    names: tuple[str, str, str],
    prompt_length: int,
    completion_length: int,
    problems: Sequence[int],
    samples: Sequence[int],
    rounds: int,
) -> speed.Comparison:
    """The comparison in measured seconds, on all devices that JAX sees."""
    device = jax.devices()[0]
    dtype = jnp.dtype(jnp.float32 if device.platform == "cpu" else jnp.bfloat16)
    large, sampler, reranker = (MODELS[name] for name in names)
    P, C = prompt_length, completion_length
    rng = np.random.default_rng(0)
    vocabulary = min(config.vocab_size for config in (large, sampler, reranker)) - 1
    prompts = [Prompt(rng.integers(vocabulary, size=P).tolist(), i) for i in range(max(problems))]

    params = random_params(large, dtype)
    alone = {k: time_sampling(large, params, prompts[:k], 1, C, rounds)[0] / k for k in problems}
    del params
    gc.collect()
    params = random_params(sampler, dtype)
    sampled = {(k, n): time_sampling(sampler, params, prompts[:k], n, C, rounds) for k in problems for n in samples}
    del params
    gc.collect()
    trunk = random_params(reranker, dtype)
    trunk.pop("lm_head", None)
    head = 0.02 * jax.random.normal(jax.random.key(1), (reranker.hidden_size,))
    scorer = Reranker(reranker, {"decoder": trunk, "score": head}, word_tokenizer(reranker.vocab_size))
    timings = []
    for (k, n), (drawing, tokens) in sampled.items():
        texts = [
            (_words(prompt.tokens), [_words(row % vocabulary) for row in of_prompt])
            for prompt, of_prompt in zip(prompts[:k], tokens, strict=True)
        ]
        scoring = median_seconds(functools.partial(scorer.score_all, texts), rounds)
        timings.append(speed.Timing(k, n, alone[k], drawing / k, scoring / k))
    return speed.Comparison(
        how=f"measured (random weights, JAX {jax.__version__})",
        hardware=f"{jax.device_count()} x {device.device_kind}",
        precision=dtype.name,
        large=names[0],
        sampler=names[1],
        reranker=names[2],
        prompt_length=P,
        completion_length=C,
        timings=tuple(timings),
    )


def _words(tokens: Sequence[int] | np.ndarray) -> str:
    return " ".join(f"w{token}" for token in tokens)


def show(comparison: speed.Comparison) -> None:
    header, rows = speed.table_of(comparison)
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for i, name in enumerate(header):
        table.add_column(name, justify="right" if i else "left", no_wrap=i == 0)
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.print(table)
    console.print(speed.caption(comparison), style="dim", highlight=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="measure here instead of using the roofline")
    parser.add_argument("--chip", nargs="+", choices=CHIPS, default=["h100"], help="chips for the roofline")
    parser.add_argument("--chips", type=int, help="number of chips; default: the fewest that fit the large model")
    parser.add_argument("--large", choices=MODELS, default="33B")
    parser.add_argument("--sampler", choices=MODELS, default="6.7B")
    parser.add_argument("--reranker", choices=MODELS, default="6.7B")
    parser.add_argument("--prompt", type=int, default=256, help="tokens per prompt")
    parser.add_argument("--completion", type=int, default=256, help="tokens per completion")
    parser.add_argument(
        "--problems", type=int, nargs="+", default=[1, 8, 64], help="maximum numbers of problems in flight"
    )
    parser.add_argument("--samples", type=int, nargs="+", default=[2, 4, 8, 16, 32, 64], help="values of n")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of --measure")
    parser.add_argument("--out", type=Path, help="write speed-*.json and speed-*.md to this directory")
    args = parser.parse_args()
    for name in ("chips", "prompt", "completion", "problems", "samples", "rounds"):
        given = getattr(args, name)
        if given is not None and min(given if isinstance(given, list) else [given]) < 1:
            sys.exit(f"speed: --{name} {given}: use 1 or more")
    names = args.large, args.sampler, args.reranker
    sweep = args.prompt, args.completion, args.problems, args.samples
    if args.measure:
        comparisons = {"measured": measure(names, *sweep, args.rounds)}
    else:
        needed = speed.sampling_bytes(MODELS[args.large], 1, args.prompt, 1, args.completion)
        comparisons = {
            name: speed.roofline(CHIPS[name], args.chips or speed.chips_for(CHIPS[name], needed), MODELS, names, *sweep)
            for name in args.chip
        }
    for name, comparison in comparisons.items():
        show(comparison)
        if args.out:
            args.out.mkdir(parents=True, exist_ok=True)
            write_text(args.out / f"speed-{name}.json", speed.to_json(comparison))
            write_text(args.out / f"speed-{name}.md", speed.markdown(comparison))
            print(f"wrote {args.out / f'speed-{name}.json'} and .md")


if __name__ == "__main__":
    main()
