"""The paper's loop with the shape of DeepSeek-Coder 6.7B (arXiv 2401.14196), for `tpu/preflight.py` to compile.

python tpu/preflight.py --config=configs/preflight.py:6.7b --topology=v5e:4x4         # full fine-tuning
python tpu/preflight.py --config=configs/preflight.py:6.7b-lora --topology=v5e:4x4    # rerankers and policies adapt

Prompts and completions of up to 512 tokens; bfloat16 over float32 master weights. The numbers of steps, problems and
samples are of a plausible run: none has been run at this size.
"""

import dataclasses

from ml_collections import ConfigDict

from rerankjax.model.deepseek import DEEPSEEK_CODER

VARIANTS = ("6.7b", "6.7b-lora")


def get_config(arg: str = "6.7b") -> ConfigDict:
    if arg not in VARIANTS:
        raise ValueError(f"configs/preflight.py:{arg} is unknown: use one of {', '.join(VARIANTS)}")
    training = {"batch_size": 32, "optimizer": {"learning_rate": 1e-5, "steps": 500, "microbatches": 1}}
    config = ConfigDict(
        {
            "seeds": (0,),
            "problems": {
                "train": 4000,
                "dev": 160,
                "test": 400,
                "corpus": 16000,
                "fault_probability": 0.6,
                "slip_probability": 0.1,
                "train_on_benchmarks": False,
                "languages": ("py",),
            },
            "max_prompt_length": 512,
            "model": dataclasses.asdict(DEEPSEEK_CODER["6.7B"]) | {"compute_dtype": "bfloat16", "remat": "full"},
            "sampling": {"temperature": 1.0, "top_p": 1.0, "max_completion_length": 512},
            "sft": {
                "batch_size": 64,
                "optimizer": {"learning_rate": 2e-5, "steps": 500, "warmup_steps": 20, "microbatches": 1},
            },
            "candidates": {"train": 8, "dev": 8, "test": 8, "batch_size": 16, "train_problems": 0},
            "reranker": {"pooling": "last", "lm_coef": 0.0},
            "reranker_training": training,
            "retraining": training,
            "mining": {"pairs": 16000, "grown_pairs": 16000, "new_share": 0.5, "hard_share": 0.5},
            "ppo": {
                "iterations": 100,
                "batch_size": 64,
                "learning_rate": 1e-6,
                "epochs": 1,
                "minibatches": 4,
                "kl_coef": 0.05,
                "microbatches": 1,
            },
            "lora": {
                "rank": 0,
                "alpha": 16.0,
                "targets": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
            },
            "early_stopping": {"every": 10, "samples": 4},
            "arms": ("self_training",),
            "ppo_arms": ("self_training",),
            "lambdas": (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0),
            "mesh": {"data": 0, "fsdp": 4, "sequence": 1, "tensor": 1},
            "checkpoints": {"steps": 100, "iterations": 5, "keep": 2},
            "sandbox": {"workers": 8, "cpu_seconds": 5.0, "wall_seconds": 60.0},
        },
        convert_dict=True,
    )
    if arg == "6.7b-lora":
        config.lora.rank = 16
        config.ppo.learning_rate = 1e-5
    return config
