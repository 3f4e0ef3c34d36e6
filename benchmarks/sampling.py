"""Tokens per second of the sampling engine, compared with transformers' `generate` on the same weights.

    python benchmarks/sampling.py                  # 5M and 50M parameters, CPU; half an hour on two cores
    python benchmarks/sampling.py --models 5M --rounds 1

16 prompts of 256 tokens, n = 16, 128 new tokens, temperature .8, top-p .95; then greedy with n = 1, compared with
`generate` with a static cache and torch.compile. Cores share the samples; with n = 1, where reading the parameters is
most of the work, they share the products (`tensor`). The two sides alternate after a warm-up; ratios are medians. No
sample ends early: each has 128 tokens on both sides. Needs torch: pip install torch.
"""

import argparse
import json
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable

os.environ.setdefault("NPROC", "16")  # XLA's threads: more than devices; otherwise collectives of two programs block

import jax
import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table

from rerankjax.candidates.engine import Engine, EngineConfig, Prompt
from rerankjax.candidates.sampling import SamplingConfig
from rerankjax.candidates.stop import stop_table
from rerankjax.model import weights
from rerankjax.model.sharding import MeshConfig, make_mesh, replicated, shardings_of

MODELS = {
    "5M": {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 5, "num_attention_heads": 4},
    "50M": {"hidden_size": 640, "intermediate_size": 1728, "num_hidden_layers": 10, "num_attention_heads": 10},
}
VOCABULARY, PROMPTS, PROMPT_LENGTH, NEW = 4096, 16, 256, 128
TARGETS = {("5M", 16): 4.0, ("50M", 16): 3.0, ("5M", 1): 1.4, ("50M", 1): 1.4}
NEVER = stop_table([""] * VOCABULARY, ())  # no stop strings


def seconds(run: Callable[[], int]) -> float:
    """Seconds per token."""
    start = time.perf_counter()
    tokens = run()
    return (time.perf_counter() - start) / tokens


def compare(name: str, samples: int, rounds: int) -> dict[str, float]:
    shape = MODELS[name]
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        num_key_value_heads=shape["num_attention_heads"],
        max_position_embeddings=PROMPT_LENGTH + NEW,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=None,
        bos_token_id=None,
        **shape,
    )
    greedy = samples == 1
    mesh = make_mesh(MeshConfig(tensor=len(jax.devices()) if greedy else 1))
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        ours, params = weights.load(pathlib.Path(directory), sharding=replicated(mesh))
    params = jax.device_put(params, shardings_of(params, mesh))
    prompts = np.random.default_rng(0).integers(1, VOCABULARY, (PROMPTS, PROMPT_LENGTH))
    sampling = SamplingConfig(0.0 if greedy else 0.8, 1.0 if greedy else 0.95, NEW)
    engine = Engine(ours, sampling, EngineConfig(PROMPTS, samples, PROMPT_LENGTH, 32), eos=-1, pad=0, mesh=mesh)

    def run_ours() -> int:
        stream = engine.stream(
            params,
            [Prompt(prompt.tolist(), i) for i, prompt in enumerate(prompts)],
            samples=samples,
            key=jax.random.key(0),
            stops=NEVER,
        )
        return sum(len(sample.tokens) for sample in stream)

    tokens = torch.from_numpy(prompts)
    options = {"do_sample": False} if greedy else {"do_sample": True, "temperature": 0.8, "top_p": 0.95, "top_k": 0}
    if greedy:
        options |= {"cache_implementation": "static"}  # makes transformers compile the step
    else:
        options |= {"num_return_sequences": samples}

    @torch.no_grad()
    def run_theirs(new: int = NEW) -> int:
        mask = torch.ones_like(tokens)
        out = model.generate(tokens, attention_mask=mask, max_new_tokens=new, min_new_tokens=new, **options)
        return out.shape[0] * (out.shape[1] - PROMPT_LENGTH)

    if greedy:
        model.forward = torch.compile(model.forward, mode="default", dynamic=False)
    run_ours()
    run_theirs(NEW if greedy else 2)  # the step is compiled for the length of the static cache
    pairs = [(seconds(run_theirs), seconds(run_ours)) for _ in range(rounds)]
    return {
        "theirs": statistics.median(1 / a for a, _ in pairs),
        "ours": statistics.median(1 / b for _, b in pairs),
        "ratio": statistics.median(a / b for a, b in pairs),
        "target": TARGETS[name, samples],
        "compilations": engine.compilations,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="5M,50M")
    parser.add_argument("--samples", default="16,1")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=pathlib.Path, help="also write the figures to this file")
    args = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))  # a while loop uses one core per device
    console, figures = Console(), {}
    table = Table("model", "n", "transformers tokens/s", "engine tokens/s", "ratio", "target", "compilations", box=None)
    for name in args.models.split(","):
        for samples in map(int, args.samples.split(",")):
            row = figures[f"{name} n={samples}"] = compare(name, samples, args.rounds)
            console.print(f"{name} n={samples}: {row}")
            table.add_row(
                name,
                f"{samples}",
                f"{row['theirs']:,.0f}",
                f"{row['ours']:,.0f}",
                f"{row['ratio']:.2f}",
                f"{row['target']}",
                f"{row['compilations']}",
            )
    console.print(table)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
