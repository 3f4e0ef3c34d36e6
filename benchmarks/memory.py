"""How much memory a PPO update of a 6.7B model takes, with adapters over one frozen base and without.

    python benchmarks/memory.py [--platform tpu] [--rows 8] [--prompt 512] [--completion 512]

Compiles for shapes alone, so nothing of that size is ever held, and prints what XLA says that each program needs on one
device: its arguments (parameters, optimiser state, batch), what it returns beyond those it was given to reuse, and its
temporaries. "update" is one minibatch of PPO; "rollout" samples a completion for each row's prompt, and has the
reference and the reward model judge it. The shape is DeepSeek-Coder-6.7B's; layers are rematerialised. Adapters and the
optimiser's state are float32 and the frozen models bfloat16; a policy that is trained whole is float32.

--platform "cpu" says what XLA's CPU compiler takes, which computes bfloat16 in float32 and so holds copies that an
accelerator has no need of. "tpu" compiles ahead of time for one chip of a v5p (95 GB) and needs libtpu, but no TPU.
"cuda" needs the GPU. Some minutes. At the defaults, with adapters of rank 16 and with jax 0.10.2, it said

    tpu   update 21.0 GB (14.0 of it arguments), rollout 31.3 GB; full fine-tuning does not fit (120 GB), 75.6 GB
    cpu   update 52.0 GB, rollout 73.5 GB; full fine-tuning 134.8 GB and 144.9 GB
"""

import argparse
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from rerankjax.candidates.sampling import SamplingConfig
from rerankjax.model.config import ModelConfig, RopeScaling
from rerankjax.model.decoder import Params, init_decoder
from rerankjax.model.likelihood import Rows
from rerankjax.model.lora import FULL, LoraConfig, adapter_shapes, attach_trunk
from rerankjax.model.sharding import make_mesh
from rerankjax.model.training import TrainState, init_state, make_optimizer
from rerankjax.policy.ppo import Experience, PPOConfig, Reward, Rollout, collect, ppo_update

CODER = ModelConfig(
    vocab_size=32_256,
    hidden_size=4096,
    intermediate_size=11_008,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    head_dim=128,
    max_position_embeddings=16_384,
    rope_theta=100_000.0,
    rope_scaling=RopeScaling("linear", 4.0),
    tie_word_embeddings=False,
    remat="full",
)
STATES = 8  # of the stop strings' automaton


def device_of(platform: str) -> Any:
    if platform != "tpu":
        return jax.devices(platform)[0]
    from jax.experimental.topologies import get_topology_desc

    return get_topology_desc(platform="tpu", topology_name="v5p:2x2x1").devices[0]


def programs(config: ModelConfig, lora: LoraConfig, rows: int, P: int, C: int) -> dict[str, tuple[Callable, tuple]]:
    """Functions and the shapes of their arguments."""
    mesh = make_mesh(devices=jax.devices()[:1])
    ppo = PPOConfig(iterations=100, batch_size=rows, learning_rate=1e-5, epochs=1, minibatches=1, kl_coef=0.05)
    sampling = SamplingConfig(1.0, 1.0, C)

    def of(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    def with_head(name: str, decoder: Params) -> Params:
        return {"decoder": decoder, name: of((config.hidden_size,), jnp.float32)}

    float32 = jax.eval_shape(functools.partial(init_decoder, config), jax.random.key(0))
    half = jax.tree.map(lambda a: of(a.shape, jnp.bfloat16), float32)
    base = half if lora.rank else None
    # Trained whole, a policy is kept in float32: bfloat16 would round its updates away.
    trained = adapter_shapes(config, lora) if lora.rank else float32
    state = jax.eval_shape(lambda p: init_state(p, make_optimizer(ppo.optimizer)), with_head("value", trained))
    of_reward = with_head("score", adapter_shapes(config, lora) if lora.rank else half)
    scalar, per_token = of((), jnp.float32), of((rows, C), jnp.float32)
    batch = Rollout(Rows(of((rows, P + C), jnp.int32), of((rows, P + C), bool)), *[per_token] * 4)

    def update(state: TrainState, base: Params | None, batch: Rollout) -> Any:
        return ppo_update(config, ppo, lora, mesh, state, base, batch, P, 1.0)

    def rollout(
        params: Params, base: Params | None, reference: Params | None, reward: Reward, *of_batch: Any
    ) -> Experience:
        # Here and not before, so that arrays which are shared are counted once.
        policy = attach_trunk(base, params, lora)
        scorer = reward._replace(params=attach_trunk(base, reward.params, lora))
        known = base if reference is None else reference
        return collect(config, "last", sampling, ppo, 1, 0, mesh, policy, known, scorer, *of_batch)

    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
    of_batch = of((rows, P), jnp.int32), of((rows, P), bool), keys, of((STATES, config.vocab_size), jnp.int32)
    reward = Reward(of_reward, scalar, scalar)
    reference = None if lora.rank else half
    return {
        "update": (update, (state, base, batch)),
        "rollout": (rollout, (state.params, base, reference, reward, *of_batch)),
    }


def measure(function: Callable, arguments: tuple, device: Any, donate: bool) -> dict[str, float]:
    """Gigabytes (1e9 bytes) of one program."""
    place = SingleDeviceSharding(device)
    placed = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), arguments)
    compiled = jax.jit(function, donate_argnums=(0,) if donate else ()).lower(*placed).compile()
    m = compiled.memory_analysis()
    new = m.output_size_in_bytes - m.alias_size_in_bytes
    parts = {"arguments": m.argument_size_in_bytes, "new outputs": new, "temporaries": m.temp_size_in_bytes}
    return {name: size / 1e9 for name, size in (parts | {"sum": sum(parts.values())}).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--platform", default="cpu", choices=("cpu", "cuda", "tpu"))
    parser.add_argument("--rows", type=int, default=8, help="in a minibatch, and in a rollout's batch")
    parser.add_argument("--prompt", type=int, default=512, help="tokens")
    parser.add_argument("--completion", type=int, default=512, help="tokens")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--layers", type=int, default=CODER.num_hidden_layers, help="fewer, for a quick look")
    args = parser.parse_args()
    config = dataclasses.replace(CODER, num_hidden_layers=args.layers)
    device = device_of(args.platform)
    print(
        f"{args.rows} rows of {args.prompt} + {args.completion} tokens, {args.layers} layers, {device.device_kind}; GB"
    )
    for name, lora in ((f"LoRA, rank {args.rank}", LoraConfig(args.rank)), ("full fine-tuning", FULL)):
        for program, (function, arguments) in programs(config, lora, args.rows, args.prompt, args.completion).items():
            try:
                figures = measure(function, arguments, device, donate=program == "update")
                said = ", ".join(f"{part} {size:.1f}" for part, size in figures.items())
            except jax.errors.JaxRuntimeError as error:  # a compiler may refuse what its device cannot hold
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                said = f"does not fit: {str(error).splitlines()[0]}"
            print(f"{name}, {program}: {said}", flush=True)


if __name__ == "__main__":
    main()
