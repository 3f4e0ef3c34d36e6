"""Your own model and problems: a Hugging Face checkpoint, and a JSONL file of problems with tests.

rerankjax train --config=configs/own.py --workdir=runs/own \
    --config.generator.checkpoint=FOLDER_OR_HUB_ID --config.problems.train=problems.jsonl
rerankjax train --config=configs/own.py:chat ...       # asked by the tokenizer's chat template, for instruct models

A row of the file is a problem in MultiPL-E's format:

    {"name": "twice", "language": "py", "prompt": "def twice(x):\n", "tests": "assert twice(2) == 4", "stop_tokens": []}

A problem described in words has "standalone": true; a completion is then the whole program. "cases": [{"stdin",
"expected_output"}, ...] replaces "tests" for a program that reads and prints. "solution" is a correct completion; SFT
trains on it if it passes. 50 problems are set aside for the evaluation and 20 for PPO's early stopping;
`--config.evaluation.test.sources=test.jsonl` evaluates on a separate file.

Sizes are for a model of about 1B parameters, some hundred problems and one accelerator; all of them are config fields.
`configs/own.py:trial` and `:chat,trial` try a checkpoint and ten problems in minutes, before hours are spent.
"""

from ml_collections import ConfigDict

VARIANTS = ("completion", "chat", "trial")


def get_config(arg: str = "completion") -> ConfigDict:
    parts = arg.split(",")
    if not set(parts) <= set(VARIANTS):
        raise ValueError(
            f"configs/own.py:{arg} is unknown: use some of {', '.join(VARIANTS)}, with commas between them"
        )
    adam = {"warmup_steps": 0, "microbatches": 8}
    config = ConfigDict(
        {
            "seeds": (0,),
            "generator": {
                "checkpoint": "",
                "revision": "",
                "dtype": "bfloat16",
                "compute_dtype": "bfloat16",
                "remat": "full",
            },
            # Another checkpoint here, with the same tokenizer, makes a separate reranker.
            "reranker": {"checkpoint": "", "revision": "", "pooling": "last", "lm_coef": 0.1},
            "problems": {
                "train": ("problems.jsonl",),
                "dev": (),
                "dev_problems": 20,
                "test_problems": 50,
                "max_train": 0,
                "max_test_cases": 32,
                "decontamination_ngram": 10,
                "train_on_benchmarks": False,
            },
            "prompts": {"style": "chat" if "chat" in parts else "completion", "shots": (), "shot_names": ()},
            "max_prompt_length": 512,
            "sampling": {"temperature": 1.0, "top_p": 1.0, "max_completion_length": 512},
            "sft": {"enabled": True, "batch_size": 32, "optimizer": {"learning_rate": 2e-5, "steps": 100} | adam},
            "candidates": {"train": 16, "dev": 16, "prompts_in_flight": 16, "train_problems": 0, "drawn": ()},
            "reranker_training": {"batch_size": 32, "optimizer": {"learning_rate": 1e-4, "steps": 300} | adam},
            "retraining": {"batch_size": 32, "optimizer": {"learning_rate": 5e-5, "steps": 150} | adam},
            "mining": {"pairs": 10_000, "later_pairs": 5_000, "new_fraction": 0.5, "hard_fraction": 0.5},
            "ppo": {
                "iterations": 50,
                "batch_size": 64,
                "learning_rate": 1e-5,
                "epochs": 2,
                "minibatches": 2,
                "kl_coef": 0.1,
                "microbatches": 8,
            },
            "early_stopping": {"every": 10, "samples": 4},
            "iterations": {
                "first": {"pairs": "sampled", "ppo": True},
                "hard": {"pairs": "hard", "ppo": True, "after": "first", "run": False},
                "self_training": {"pairs": "self_training", "ppo": True, "after": "first", "run": True},
            },
            "evaluation": {
                "test": {
                    "sources": ("held_out",),
                    "samples": 16,
                    "max_problems": 0,
                    "sampling": {"temperature": 0.8, "top_p": 0.95, "max_completion_length": 512},
                }
            },
            "log_prob_weights": (0.0, 0.5, 1.0, 2.0, 4.0),
            "selection": {
                "execute": True,
                "made_inputs": 12,
                "sft_log_probs": True,
                "ensembles": ("mean", "minimum", "lower_bound"),
                "spreads": (0.5, 1.0, 2.0),
            },
            "lora": {
                "rank": 16,
                "alpha": 32.0,
                "targets": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
            },
            "sandbox": {"engine": "local", "workers": 4, "cpu_seconds": 10.0, "wall_seconds": 60.0},
            "mesh": {"data": 0, "fsdp": 1, "sequence": 1, "tensor": 1},
            "checkpoints": {"steps": 100, "iterations": 5, "keep": 2},
        },
        convert_dict=True,
    )
    if "trial" in parts:
        config.problems.update({"dev_problems": 2, "test_problems": 2})
        config.generator.update({"dtype": "float32", "compute_dtype": "", "remat": "none"})
        config.max_prompt_length = 256
        config.sampling.max_completion_length = config.evaluation.test.sampling.max_completion_length = 64
        for training in (config.sft, config.reranker_training, config.retraining):
            training.batch_size = 4
            training.optimizer.update({"steps": 4, "microbatches": 4})
        config.candidates.update({"train": 4, "dev": 4, "prompts_in_flight": 4})
        config.evaluation.test.samples = 4
        config.mining.update({"pairs": 16, "later_pairs": 16})
        config.ppo.update({"iterations": 1, "batch_size": 4, "minibatches": 1, "microbatches": 4})
        config.iterations.self_training.ppo = False
        config.early_stopping.update({"every": 1, "samples": 1})
        config.sandbox.workers = 2
    return config
