"""A pretrained model of 135M parameters, SmolLM2-135M-Instruct, on two kinds of Python problems.

make real                                                                   # set up, then :lists, on two cores
rerankjax train --config=configs/smollm2.py:lists --workdir=runs/lists      # do the results of mini.py hold for it?
rerankjax train --config=configs/smollm2.py:mbpp --workdir=runs/mbpp        # real problems, from the hub
rerankjax train --config=configs/smollm2.py:mbpp=mbpp.jsonl --workdir=...   # MBPP from a file
rerankjax train --config=configs/smollm2.py:full --workdir=runs/lists-full  # :lists on one GPU, three seeds, longer

`lists` asks for the synthetic family's list programs in words, with an example; their difficulty can be set. `mbpp`
trains on MBPP's tasks 601 to 974 and on list programs, stops PPO by tasks 511 to 600, is evaluated on 11 to 510, once.

The model is one GGUF file, which `make real` downloads (93 MB, Apache 2.0). Rerankers and policies are adapters of rank
16 over this model. Parameters are float32; products are bfloat16 (compute_dtype "auto"), or float32 on a CPU that has
neither AMX nor AVX512-BF16 and would take 1.6 times as long for bfloat16. Of each layer, the backward pass keeps the
projections (remat "dots"), a fifth faster than to recompute them (benchmarks/RESULTS.md).
"""

from typing import Any

from ml_collections import ConfigDict

VARIANTS = ("lists", "mbpp", "full")
MODEL = "models/SmolLM2-135M-Instruct.Q4_1.gguf"


def get_config(arg: str = "lists") -> ConfigDict:
    variant, _, file = arg.partition("=")
    if variant not in VARIANTS or (file and variant != "mbpp"):
        raise ValueError(f"configs/smollm2.py:{arg} is unknown: use one of {', '.join(VARIANTS)}, or mbpp=FILE")
    config = ConfigDict(
        {
            "seeds": (0,),
            "generator": {"checkpoint": MODEL, "dtype": "float32", "compute_dtype": "auto", "remat": "dots"},
            "reranker": {"pooling": "last", "lm_coef": 0.5, "members": 1},
            "problems": {
                "train": ("synthetic",),
                "dev": ("synthetic",),
                "synthetic": {
                    "train": 2000,
                    "dev": 64,
                    "test": 160,
                    "corpus": 6000,
                    "steps": (1, 2),
                    "fault_probability": 0.6,
                    "slip_probability": 0.1,
                    "languages": ("py",),
                },
                "decontamination_ngram": 10,
            },
            "prompts": {"style": "completion"},
            "max_prompt_length": 64,
            "sampling": {"temperature": 1.0, "top_p": 1.0, "max_completion_length": 80},
            # The model without SFT solves no problem of :lists, in a tenth of a run's time (docs/real_model.md).
            "sft": {
                "evaluate_before": variant != "lists",
                "batch_size": 24,
                "optimizer": _adam(5e-4, 240, microbatches=3),
            },
            "candidates": {
                "train": 4,
                "dev": 8,
                "prompts_in_flight": 64,
                "samples_in_flight": 4,
                "train_problems": 1200,
                "drawn": (),
            },
            "reranker_training": {"batch_size": 64, "optimizer": _adam(5e-4, 80, microbatches=8)},
            "retraining": {"batch_size": 64, "optimizer": _adam(2e-4, 30, microbatches=8)},
            "mining": {
                "pairs": 4000,
                "later_pairs": 2000,
                "new_fraction": 0.5,
                "hard_fraction": 0.5,
                "pairs_together": 8,
            },
            "ppo": {
                "iterations": 6,
                "batch_size": 64,
                "learning_rate": 2e-4,
                "epochs": 1,
                "minibatches": 2,
                "kl_coef": 1.0,
                "microbatches": 4,
                "rollouts_in_flight": 64,
                "kl_target": 0.0,
                "kl_horizon": 10_000.0,
                "reward": "reranker",  # or of several members: mean, minimum, lower_bound
                "reward_spread": 1.0,
            },
            "lora": {
                "rank": 16,
                "alpha": 32.0,
                "targets": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
            },
            "early_stopping": {"every": 3, "samples": 4},
            "iterations": {
                "first": {"pairs": "sampled", "ppo": True},
                "random": {"pairs": "random", "ppo": False, "after": "first", "run": False},
                "hard": {"pairs": "hard", "ppo": False, "after": "first", "run": True},
                "self_training": {"pairs": "self_training", "ppo": False, "after": "first", "run": True},
            },
            "evaluation": {"test": {"sources": ("synthetic",), "samples": 8}},
            "log_prob_weights": (0.0, 0.5, 1.0, 2.0, 4.0, 8.0),
            "mesh": {"data": 0, "fsdp": 1, "sequence": 1, "tensor": 1},
            "checkpoints": {"steps": 20, "iterations": 2, "keep": 2},
            "sandbox": {"engine": "local", "workers": 2, "cpu_seconds": 5.0, "wall_seconds": 60.0},
        },
        convert_dict=True,
    )
    if variant == "mbpp":
        # The 99% lengths of a prompt and of a solution, in tokens.
        config.update({"max_prompt_length": 384, "prompts": {"style": "chat"}})
        config.sampling.max_completion_length = 240
        config.problems.update({"train": (_mbpp("train", file), "synthetic"), "dev": (_mbpp("validation", file),)})
        config.problems.synthetic.update({"train": 300, "corpus": 600})
        config.sft.optimizer.steps = 60
        # Lengths of samples differ by far: with all samples of a prompt in flight, most would wait for its longest.
        config.candidates.update({"train": 8, "samples_in_flight": 2, "train_problems": 0})
        config.reranker_training.optimizer.steps = 24
        # One prompt of the test split has 3,752 tokens.
        config.evaluation.test.update({"sources": (_mbpp("test", file),), "samples": 4, "max_prompt_length": 3776})
        config.evaluation.test.sampling = {"temperature": 0.8, "top_p": 0.95, "max_completion_length": 240}
        for training in (config.sft, config.reranker_training, config.retraining):
            training.optimizer.microbatches = training.batch_size // 4
    if variant == "full":
        config.seeds = (0, 1, 2)
        config.generator.remat = "none"
        config.problems.synthetic.update({"train": 4000, "dev": 200, "test": 400, "corpus": 16000})
        config.candidates.update({"train_problems": 2000, "dev": 16, "prompts_in_flight": 64, "samples_in_flight": 0})
        for training, steps in ((config.sft, 500), (config.reranker_training, 400), (config.retraining, 150)):
            training.update({"batch_size": 64})
            training.optimizer.update({"steps": steps, "microbatches": 2})
        config.mining.update({"pairs": 20_000, "later_pairs": 10_000})
        config.iterations.self_training.ppo = True
        config.ppo.update({"iterations": 40, "batch_size": 256, "microbatches": 2, "rollouts_in_flight": 256})
        config.checkpoints.update({"steps": 100, "iterations": 5})
    return config


def _adam(learning_rate: float, steps: int, microbatches: int) -> dict[str, Any]:
    return {"learning_rate": learning_rate, "steps": steps, "warmup_steps": 10, "microbatches": microbatches}


def _mbpp(split: str, file: str) -> dict[str, Any]:
    """A split of MBPP. Train: tasks 601 to 974. Validation: 511 to 600. Test: 11 to 510."""
    if file:
        return {"source": file, "benchmark": "MBPP", "split": split}
    commit = "4bb6404fdc6cacfda99d4ac4205087b89d32030c"
    hub = {"source": "google-research-datasets/mbpp", "config": "full", "revision": commit}
    return hub | {"benchmark": "MBPP", "split": split}
