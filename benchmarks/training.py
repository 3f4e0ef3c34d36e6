"""Seconds of a training step, compared with TRL and Tunix; how they grow; and the fraction of a GPU's peak they reach.

    python benchmarks/training.py --trl-ppo-python=TRL112/bin/python --tunix-python=TUNIX/bin/python  # 20 minutes
    python benchmarks/training.py --parts=utilisation                # one GPU of 80 GB, bfloat16; needs no peer

One Llama of 6M parameters in float32 on CPU. SFT and reranker: 16 rows, or 16 pairs of rows with the same prompt, with
128 tokens of prompt and 128 of completion. They are compared with SFTTrainer and RewardTrainer of TRL 1.16 in this
Python (pip install torch trl), as in `reranking.py`: the losses of all steps agree within 1e-4.

PPO: an iteration from prompts to updated policy: 16 prompts of 128 tokens with a completion of 128 tokens each
(temperature 1, top-p 1, none ends early); rewards, values and log-probabilities of policy and reference; then 4 epochs
of one update each. It is compared with PPOTrainer of TRL 1.12, the last version that has it, and PPOLearner of Tunix
0.1.7. Each runs in a separate process with the given Python (see `ppo_peers.py`), or not at all if no Python is given.
Before the first iteration, their log-probabilities and rewards of the same rows agree with ours within 1e-4. A peer's
value function is a separate model, which is how both work. Ours is a head of the policy, as in the paper; this is part
of the difference.

The two sides alternate after a warm-up; ratios are medians. TRL runs on one thread or on one per core, Tunix on one
device or on one per core; the faster setting counts.

Scaling: see `training_alone.py`; the plot goes to --plot.
"""

import argparse
import contextlib
import dataclasses
import functools
import importlib.util
import json
import os
import pathlib
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("NPROC", "16")  # XLA's threads: more than devices; otherwise collectives of two programs block
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")

import jax
import jax.numpy as jnp
import numpy as np
import training_alone as alone
from jax.sharding import Mesh
from rich.console import Console
from rich.table import Table

from rerankjax.candidates.engine import EngineConfig, Prompt, make_engine
from rerankjax.candidates.sampling import SamplingConfig
from rerankjax.candidates.stop import stop_table
from rerankjax.model import weights
from rerankjax.model.attention import skips
from rerankjax.model.decoder import init_decoder
from rerankjax.model.likelihood import SequenceBatch, completion_log_probs
from rerankjax.model.packing import PackConfig
from rerankjax.model.sharding import make_mesh, replicated, row_shards
from rerankjax.model.training import OptimizerConfig, batch_of, start_state
from rerankjax.policy.ppo import PPOConfig, Reward, init_policy
from rerankjax.policy.ppo_step import Drawn, make_ppo_programs, make_ppo_step
from rerankjax.policy.sft import make_sft_step
from rerankjax.prompts.tokenizer import train_tokenizer
from rerankjax.reranker.bradley_terry import init_reranker, score_rows

CORES = len(os.sched_getaffinity(0))
PAD, EPOCHS, KL_COEF, LEARNING_RATE, TOLERANCE = 0, 4, 0.05, 1e-5, 1e-4
TARGETS = {"TRL": 1.3, "Tunix": 1.6}
UTILISATION = 0.45


def write_models(folder: pathlib.Path, model: str) -> None:
    """Writes a random policy, and a reward model on the policy's trunk."""
    config = alone.llama(model)
    params = init_decoder(config, jax.random.key(0))
    tokenizer = train_tokenizer(["some text"], 300)
    assert tokenizer.pad_token_id == PAD
    weights.save(folder / "policy", config, params, tokenizer=tokenizer)
    reranker = init_reranker(params, jax.random.key(1))
    weights.save_reranker(folder / "reward", config, reranker, pooling="last", pad_token_id=PAD)


def random_tokens(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(PAD + 1, 4096, shape, np.int32)


def compare_sft(folder: pathlib.Path, mesh: Mesh, steps: int, rows: int, P: int, C: int) -> dict[str, Any]:
    import reranking
    import torch
    import transformers
    import trl

    config, params = weights.load(folder / "policy", sharding=replicated(mesh))
    config = dataclasses.replace(config, unroll=config.num_hidden_layers)
    optimizer = OptimizerConfig(LEARNING_RATE, steps=steps)
    state, step = start_state(params, optimizer, mesh), make_sft_step(config, optimizer, mesh)
    tokens = random_tokens(rows, P + C, seed=2)
    sizes = PackConfig.from_batch_size(rows, 1, P, C, shards=row_shards(mesh), long_rows=skips("auto"))
    batch = batch_of([(row[:P], [row[P:]]) for row in tokens], sizes)

    def ours() -> float:
        nonlocal state
        state, metrics = jax.block_until_ready(step(state, None, *batch))
        return float(metrics["loss"])

    data = {"input_ids": tokens.tolist(), "completion_mask": [[0] * P + [1] * C] * rows}
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32)
    settings = functools.partial(trl.SFTConfig, completion_only_loss=True)
    return reranking.by_turns(trl.SFTTrainer, settings, model, data, ours, steps, rows)


class Peer:
    """A process of `ppo_peers.py`, which makes one PPO iteration per request."""

    def __init__(self, python: str, peer: str, folder: pathlib.Path, devices: int = 1):
        self._name, self._log = f"{peer}, {devices} devices", folder / f"{peer}{devices}.log"
        script = pathlib.Path(__file__).with_name("ppo_peers.py")
        command = [python, str(script), peer, str(folder), f"--devices={devices}"]
        own = os.environ | ({"NPROC": str(CORES)} if devices == 1 else {})  # JAX's default, if no devices communicate
        pipe = subprocess.PIPE
        with self._log.open("w") as log:
            self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=log, text=True, bufsize=1, env=own)

    def hear(self) -> Any:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._name} ended early:\n{self._log.read_text()[-4000:]}")
        return json.loads(line)

    def iterate(self, threads: int) -> float:
        """Seconds of one iteration."""
        self.process.stdin.write(json.dumps({"threads": threads}) + "\n")
        return self.hear()


@contextlib.contextmanager
def peers_of(folder: pathlib.Path, trl: str | None, tunix: str | None) -> Iterator[dict[tuple[str, str], Any]]:
    """By name and setting, the process and the threads of its iterations. The caller reads each first answer."""
    each = sorted({1, CORES})
    pythons = [("trl", trl, 1)] * bool(trl) + [("tunix", tunix, devices) for devices in each if tunix]
    processes = [(peer, devices, Peer(python, peer, folder, devices)) for peer, python, devices in pythons]
    try:
        yield {
            **{("TRL", f"{n} threads"): (p, n) for peer, _, p in processes if peer == "trl" for n in each},
            **{("Tunix", f"{devices} devices"): (p, 1) for peer, devices, p in processes if peer == "tunix"},
        }
    finally:
        for _, _, peer in processes:
            peer.process.stdin.close()  # ends the process after its iteration
        for _, _, peer in processes:
            try:
                peer.process.wait(60)
            except subprocess.TimeoutExpired:
                peer.process.kill()


def compare_ppo(
    folder: pathlib.Path, mesh: Mesh, rounds: int, rows: int, P: int, C: int, trl: str | None, tunix: str | None
) -> dict[str, Any]:
    config, params = weights.load(folder / "policy", sharding=replicated(mesh))
    config = dataclasses.replace(config, unroll=config.num_hidden_layers)
    _, reranker, pooling = weights.load_reranker(folder / "reward", sharding=replicated(mesh))
    prompts, completions = random_tokens(rows, P, seed=4), random_tokens(rows, C, seed=5)
    iterations = alone.WARM_UP + rounds
    settings = {
        "iterations": iterations * len({1, CORES}),  # TRL's, on each number of threads
        "epochs": EPOCHS,
        "kl_coef": KL_COEF,
        "learning_rate": LEARNING_RATE,
    }
    tokens = {"prompts": prompts.tolist(), "completions": completions.tolist()}
    (folder / "settings.json").write_text(json.dumps(settings | tokens))

    ppo = PPOConfig(iterations, rows, LEARNING_RATE, EPOCHS, minibatches=1, kl_coef=KL_COEF)
    step = make_ppo_step(make_ppo_programs(config, pooling, 1.0, ppo, P, C, mesh), ppo, mesh)
    engine = make_engine(config, SamplingConfig(1.0, 1.0, C), EngineConfig(rows, 1, P), -1, PAD, mesh)
    numbered = [Prompt(ids, number) for number, ids in enumerate(prompts.tolist())]
    state = start_state(init_policy(params), ppo.optimizer, mesh)
    reward = Reward((reranker,), jnp.zeros(1), jnp.ones(1))
    never = stop_table([""] * config.vocab_size, ())
    kl_coef = jnp.float32(KL_COEF)

    def ours(i: int) -> float:
        nonlocal state, kl_coef
        start = time.perf_counter()
        policy, key = state.params["decoder"], jax.random.key(i)
        samples = sorted(engine.stream(policy, numbered, samples=1, key=key, stops=never))
        drawn = [Drawn(sample.tokens.tolist(), sample.finished) for sample in samples]
        batch = prompts.tolist(), drawn, key, kl_coef
        state, kl_coef, metrics = jax.block_until_ready(step(state, None, params, reward, *batch))
        seconds = time.perf_counter() - start
        assert metrics["length"] == C
        return seconds

    whole = SequenceBatch(np.concatenate([prompts, completions], axis=1), np.ones((rows, P + C), bool))
    known = {
        "log_probs": jax.jit(lambda p, rows: completion_log_probs(config, p, rows, P)[0])(params, whole),
        "scores": jax.jit(lambda p, rows: score_rows(config, pooling, p, rows, P))(reranker, whole),
    }
    with peers_of(folder, trl, tunix) as peers:
        for peer in dict.fromkeys(peer for peer, _ in peers.values()):
            for name, values in peer.hear().items():
                np.testing.assert_allclose(known[name], values, atol=TOLERANCE, rtol=0)
        turns = [{"ours": ours(i)} | {key: p.iterate(n) for key, (p, n) in peers.items()} for i in range(iterations)]
    turns = turns[alone.WARM_UP :]
    figures = {}
    for name in TARGETS:
        by_setting = {key: statistics.median(turn[key] for turn in turns) for key in peers if key[0] == name}
        key = min(by_setting, key=by_setting.__getitem__, default=None)
        row = {"theirs": by_setting.get(key), "ours": statistics.median(turn["ours"] for turn in turns)}
        ratio = statistics.median(turn[key] / turn["ours"] for turn in turns) if key else None
        figures[f"PPO iteration: {name}"] = row | {"ratio": ratio, "target": TARGETS[name], "setting": key and key[1]}
    return figures


def compare(args: argparse.Namespace, mesh: Mesh) -> Iterator[tuple[str, dict[str, Any]]]:
    """Seconds of theirs and of ours; no figures for a peer that is not available."""
    lengths = args.prompt_length, args.completion_length
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_models(folder, args.model)
        for part in (part for part in ("sft", "reranker") if part in args.parts):
            if not all(importlib.util.find_spec(module) for module in ("torch", "trl")):
                yield f"{part}: TRL", {}
                continue
            import reranking
            import transformers

            transformers.utils.logging.disable_progress_bar()
            if part == "sft":
                row = compare_sft(folder, mesh, args.steps, args.rows, *lengths)
            else:
                row = reranking.compare_training(name + "/reward", mesh, args.steps, args.rows, *lengths, target=1.0)
            seconds = {side: args.rows / row[side] for side in ("theirs", "ours")}
            yield f"{part}: TRL", seconds | {"ratio": row["ratio"], "setting": f"{row['threads']} threads"}
        if "ppo" in args.parts:
            peers = args.trl_ppo_python, args.tunix_python
            yield from compare_ppo(folder, mesh, args.rounds, args.rows, *lengths, *peers).items()


def show(console: Console, title: str, rows: list[dict[str, Any]]) -> None:
    """Prints the rows as a table, with numbers to four digits."""
    table = Table(*rows[0], title=title, title_justify="left", box=None)
    for row in rows:
        table.add_row(*("" if v is None else f"{v:,.4g}" if isinstance(v, float) else str(v) for v in row.values()))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=lambda text: text.split(","), default=["sft", "reranker", "ppo", "scaling"])
    parser.add_argument("--trl-ppo-python", help="Python of an environment with TRL 1.12")
    parser.add_argument("--tunix-python", help="Python of an environment with Tunix")
    parser.add_argument("--model", default="5M", choices=alone.MODELS, help="model for the comparisons")
    parser.add_argument("--rows", type=int, default=16, help="rows, pairs, or prompts per iteration")
    parser.add_argument("--prompt-length", type=int, default=128)
    parser.add_argument("--completion-length", type=int, default=128)
    parser.add_argument("--steps", type=int, default=12, help="steps of SFT and reranker")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of PPO, scaling and utilisation")
    parser.add_argument(
        "--devices", type=int, default=CORES, help="number of JAX devices on CPU; default: one per core"
    )
    parser.add_argument("--scaling-rows", type=int, nargs="+", default=alone.ROWS)
    parser.add_argument("--scaling-lengths", type=int, nargs="+", default=alone.LENGTHS)
    parser.add_argument("--scaling-models", nargs="+", default=tuple(alone.MODELS))
    parser.add_argument("--plot", type=pathlib.Path, default=pathlib.Path("training_scaling.png"))
    parser.add_argument("--shapes", nargs="+", default=["1.3B", "6.7B LoRA"], choices=alone.SHAPES)
    parser.add_argument("--json", type=pathlib.Path, help="also write the figures to this file")
    args = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", args.devices)
    console, mesh, figures = Console(width=120), make_mesh(), {}
    if "scaling" in args.parts and any(rows % (2 * mesh.size) for rows in args.scaling_rows):
        parser.error(f"--scaling-rows: devices share pairs of rows; give multiples of {2 * mesh.size}")
    devices = f"{len(jax.devices())} x {jax.devices()[0].device_kind}"
    console.print(f"JAX {jax.__version__} on {devices}, {CORES} cores, load average before: {os.getloadavg()[0]:.1f}")

    def done(name: str, rows: list[dict[str, Any]]) -> None:
        figures[name] = rows
        if args.json:
            args.json.write_text(json.dumps(figures, indent=1))

    beside = []
    for name, row in compare(args, mesh):
        values = {side: row.get(side) or "not run" for side in ("theirs", "ours")}
        more = {key: row.get(key) for key in ("ratio", "target", "setting")}
        beside.append({"step: compared with": name} | values | more)
        done("beside", beside)
    if beside:
        show(console, "seconds", beside)
    if "scaling" in args.parts:
        sizes = args.scaling_rows, args.scaling_lengths, args.scaling_models
        done("scaling", alone.measure_scaling(mesh, args.rounds, *sizes))
        alone.plot_scaling(figures["scaling"], args.plot)
        show(console, f"scaling, in {args.plot}", figures["scaling"])
    if "utilisation" in args.parts:
        rows = [row for shape in args.shapes for row in alone.measure_utilisation(shape, mesh, args.rounds)]
        done("utilisation", [row | {"target": UTILISATION} for row in rows])
        show(console, "utilisation", figures["utilisation"])


if __name__ == "__main__":
    main()
