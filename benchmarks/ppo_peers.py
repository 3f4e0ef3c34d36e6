"""Runs one peer's PPO for `training.py`, in a Python that has it: TRL's (1.12, the last with PPO) or Tunix's (0.1.7).

    pip install torch trl==1.12.*                                   # one environment
    pip install google-tunix==0.1.7                                 # another
    python benchmarks/ppo_peers.py {trl,tunix} FOLDER [--devices 1] # as training.py does

FOLDER has "policy" and "reward", models that transformers reads, and settings.json, with the padding token's id under
"pad" where it is not 0; TRL also takes prompts of different lengths, and trains in mixed precision if "bf16" is true.
Each line on stdin, {"threads": torch's}, starts one iteration, whose seconds are printed on stdout. Before the first
iteration, the log-probabilities and rewards that the peer's own functions give for the settings' rows are printed.
"""

import argparse
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

PAD = 0

Tell = Callable[[Any], None]


def run_trl(folder: pathlib.Path, settings: dict[str, Any], orders: Iterator[dict[str, int]], tell: Tell) -> None:
    import datasets
    import torch
    import transformers
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    pad = settings.get("pad", PAD)

    def policy() -> transformers.PreTrainedModel:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32)
        model.generation_config.eos_token_id = None  # no completion ends early
        return model

    def scorer() -> transformers.PreTrainedModel:
        return transformers.AutoModelForSequenceClassification.from_pretrained(folder / "reward", dtype=torch.float32)

    class Turns(transformers.TrainerCallback):
        def begin(self) -> None:
            order = next(orders, None)
            if order is None:
                sys.exit()
            torch.set_num_threads(order["threads"])
            self.start = time.perf_counter()

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            tell(time.perf_counter() - self.start)
            self.begin()

    longest = max(map(len, settings["prompts"]))
    prompts = torch.tensor([[pad] * (longest - len(ids)) + ids for ids in settings["prompts"]])
    completions = torch.tensor(settings["completions"])
    rows, batch = torch.cat([prompts, completions], dim=1), len(prompts)
    reference, reward = policy(), scorer()
    trainer = PPOTrainer(
        args=PPOConfig(
            str(folder / "trl"),
            total_episodes=batch * settings["iterations"],
            per_device_train_batch_size=batch,
            num_mini_batches=1,
            num_ppo_epochs=settings["epochs"],
            local_rollout_forward_batch_size=batch,
            response_length=completions.shape[1],
            temperature=1.0,
            kl_coef=settings["kl_coef"],
            learning_rate=settings["learning_rate"],
            num_sample_generations=0,
            bf16=settings.get("bf16", False),
            use_cpu=True,
            gradient_checkpointing=False,
            dataloader_pin_memory=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        processing_class=transformers.PreTrainedTokenizerFast.from_pretrained(folder / "policy", padding_side="left"),
        model=policy(),
        ref_model=reference,
        reward_model=reward,
        value_model=scorer(),
        train_dataset=datasets.Dataset.from_dict({"input_ids": settings["prompts"]}),
        eval_dataset=datasets.Dataset.from_dict({"input_ids": settings["prompts"]}),
        callbacks=[Turns()],
    )
    with torch.no_grad():
        logits = ppo_trainer.forward(reference, rows, pad).logits[:, prompts.shape[1] - 1 : -1]
        log_probs = ppo_trainer.selective_log_softmax(logits, completions)
        _, scores, _ = ppo_trainer.get_reward(reward, rows, pad, prompts.shape[1])
    tell({"log_probs": log_probs.tolist(), "scores": scores.tolist()})
    trainer.train()


class Numbers:
    """A tokenizer for Tunix, which takes prompts as text: the text of a token is its number."""

    def encode(self, text: str, **_: Any) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: list[int], **_: Any) -> str:
        return " ".join(map(str, ids))

    def bos_id(self) -> int:
        return 0  # unused: Tunix puts no such token before a prompt

    def eos_id(self) -> int:
        return -1  # not a token: no completion ends early

    def pad_id(self) -> int:
        return PAD


def run_tunix(folder: pathlib.Path, settings: dict[str, Any], orders: Iterator[dict[str, int]], tell: Tell) -> None:
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from flax import nnx
    from safetensors.numpy import load_file
    from tunix.models.llama3 import model as llama
    from tunix.models.llama3 import params
    from tunix.rl import common, rl_cluster, utils
    from tunix.rl.ppo import ppo_learner
    from tunix.rl.rollout.base_rollout import RolloutConfig

    jax.config.update("jax_num_cpu_devices", settings["devices"])
    mesh = jax.make_mesh((settings["devices"], 1), ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    shape = json.loads((folder / "policy" / "config.json").read_text())
    config = llama.ModelConfig(
        num_layers=shape["num_hidden_layers"],
        vocab_size=shape["vocab_size"],
        embed_dim=shape["hidden_size"],
        hidden_dim=shape["intermediate_size"],
        num_heads=shape["num_attention_heads"],
        head_dim=shape["head_dim"],
        num_kv_heads=shape["num_key_value_heads"],
        rope_theta=int(shape["rope_parameters"]["rope_theta"]),
        norm_eps=shape["rms_norm_eps"],
    )

    class Llama(llama.Llama3):
        """Tunix 0.1.7 scores with `segment_ids`, which its Llama does not accept; the mask says the same."""

        def __call__(self, *arguments: Any, segment_ids: Any = None, **named: Any) -> Any:
            return super().__call__(*arguments, **named)

    llama.Llama3 = Llama

    def policy() -> nnx.Module:
        return params.create_model_from_safe_tensors(str(folder / "policy"), config, mesh, dtype=jnp.float32)

    def scorer() -> nnx.Module:
        model = utils.create_critic_model(policy())
        model.lm_head.kernel.value = jnp.asarray(load_file(folder / "reward" / "model.safetensors")["score.weight"].T)
        return model

    def optimizer() -> optax.GradientTransformation:
        return optax.adam(settings["learning_rate"], eps=1e-5)

    prompts, completions = (jnp.asarray(settings[name], jnp.int32) for name in ("prompts", "completions"))
    (batch, P), C = prompts.shape, completions.shape[1]
    actor, reference, critic, reward = policy(), policy(), scorer(), scorer()
    cluster = rl_cluster.RLCluster(
        actor=actor,
        critic=critic,
        reference=reference,
        reward=reward,
        tokenizer=Numbers(),
        cluster_config=rl_cluster.ClusterConfig(
            role_to_mesh=dict.fromkeys(rl_cluster.Role, mesh),
            training_config=rl_cluster.RLTrainingConfig(
                actor_optimizer=optimizer(),
                critic_optimizer=optimizer(),
                eval_every_n_steps=10**9,
                max_steps=10**9,
                mini_batch_size=batch,
                train_micro_batch_size=batch,
            ),
            rollout_config=RolloutConfig(
                max_tokens_to_generate=C,
                max_prompt_length=P,
                kv_cache_size=P + C,
                temperature=1.0,
                top_p=1.0,
                eos_tokens=[-1],
            ),
        ),
    )
    ppo = ppo_learner.PPOConfig(num_iterations=settings["epochs"], beta=settings["kl_coef"], kl_method="kl")
    learner = ppo_learner.PPOLearner(cluster, ppo)
    with jax.set_mesh(mesh):
        log_probs = common.compute_per_token_logps(*nnx.split(reference), prompts, completions, PAD, -1)
        scores = common.compute_score(reward, prompts, completions, PAD, -1)[:, -1]
    tell({"log_probs": log_probs.tolist(), "scores": scores.tolist()})

    texts = np.array([" ".join(map(str, row)) for row in settings["prompts"]])

    def batches() -> Iterator[dict[str, np.ndarray]]:
        trainers = cluster.actor_trainer, cluster.critic_trainer
        for i, _ in enumerate(orders, 1):  # Tunix asks for the next batch after all updates on the last
            start = time.perf_counter()
            yield {"prompts": texts}
            jax.block_until_ready([nnx.state(trainer.model) for trainer in trainers])
            tell(time.perf_counter() - start)
            assert {trainer.train_steps for trainer in trainers} == {i * settings["epochs"]}

    learner.train(batches())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=("trl", "tunix"))
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--devices", type=int, default=1, help="number of JAX devices")
    args = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # keeps what the peer prints out of the answers
    settings = json.loads((args.folder / "settings.json").read_text()) | {"devices": args.devices}
    run = {"trl": run_trl, "tunix": run_tunix}[args.peer]
    run(
        args.folder,
        settings,
        map(json.loads, iter(sys.stdin.readline, "")),
        lambda said: print(json.dumps(said), file=answers, flush=True),
    )


if __name__ == "__main__":
    main()
