"""What the rows of the paper's Table 1 have in common: the paper's loop (arXiv 2504.09643) on DeepSeek-Coder-Instruct.

The paper gives the generators and the reranker's size, the stages and their objectives (Bradley-Terry; PPO against the
reranker with a KL penalty to the SFT model, the second time from that model again), the benchmark, its eight languages,
and how the second iteration's pairs grow. All else is assumed, and this is why. A section stands for all its fields.

- `evaluation.samples` = 16: n is unknown. By experiments/speed.py "three times faster than 33B" holds up to n = 8, or
  up to 64, by how many problems are under way at a time.
- `evaluation.temperature` = 0.8, `evaluation.top_p` = 0.95: usual for pass@k at such n.
- `evaluation.answers` = "policy": the samples that are reranked are those of the last PPO's policy, since the loop ends
  in one; "sft" has them from the SFT model, and then rows share them.
- `evaluation.max_prompt_length` = 2048, `sampling.max_completion_length` = 1024: the latter as DeepSeek-Coder's own
  evaluation; the former holds every prompt.
- `evaluation.csharp_lists` = "repaired": as shipped, no C# list passes a test, and the paper's figure is above that.
- `problems`: CodeContests' training split, the usual source with tests; posed in the eight languages in turn, since the
  reranker must know them all; at most 32 cases of each; the 10-word rule of DeepSeek-Coder's data against overlap.
- `sft_on_solutions` = True, `sft`: the SFT corpus is unknown; here it is those problems' first solution in Python, C++
  or Java, if it passes. False takes DeepSeek's instruction tuning for stage A.
- `sampling.temperature` = 1.0, `candidates.train` = 16: what pairs are made from. Besides, given solutions that pass.
- `max_prompt_length` = 1024: longer training problems are left out.
- `reranker_training`, `retraining`, `ppo`, `early_stopping`: learning rates, batches, steps and the KL coefficient.
- `mining`: how many pairs; how many of them are new, and which of the failures count as hard.
- `lora`: whether all weights are trained, or adapters, with which generator and reranker share one 6.7B.
- `dtype`, `compute_dtype`: bfloat16, as the checkpoints are kept; adapters are float32.
- `seed`: how many training runs the paper's figures are of is unknown too.

The commits are those that public code pins; who wrote this had no network to download them and has run these configs on
tiny models only (`experiments/table1.py --smoke`). `mesh`, `checkpoints`, `remat`, `sandbox` and the batch sizes of
sampling and microbatches are the machine's: set them with `--set`, as in `--set mesh.fsdp=8`.
"""

from ml_collections import ConfigDict

LANGUAGES = ("py", "cpp", "java", "php", "ts", "cs", "sh", "js")


def get_row(name: str, generator: str, decoding: str, reranker: str = "", second_iteration: str = "") -> ConfigDict:
    """The config of a row of `rerankjax.results.paper.RUNS`; arguments as `rerankjax.loop.paper_config.RowConfig`."""
    return ConfigDict(
        {
            "row": {
                "name": name,
                "generator": generator,
                "decoding": decoding,
                "reranker": reranker,
                "second_iteration": second_iteration,
            },
            "seed": 0,
            "models": tuple(
                {
                    "size": size,
                    "checkpoint": f"deepseek-ai/deepseek-coder-{size}-instruct",
                    "revision": commit,
                }
                for size, commit in (
                    ("1.3b", "e063262dac8366fc1f28a4da0ff3c50ea66259ca"),
                    ("6.7b", "e5d64addd26a6a1db0f9b863abf6ee3141936807"),
                    ("33b", "61dc97b922b13995e7f83b7c8397701dbf9cfd4c"),
                )
            ),
            "dtype": "bfloat16",
            "compute_dtype": "bfloat16",
            "remat": "full",
            "problems": {
                "sources": (
                    {
                        "source": "deepmind/code_contests",
                        "benchmark": "CodeContests",
                        "split": "train",
                        "revision": "802411c3010cb00d1b05bad57ca77365a3c699d6",
                    },
                ),
                "languages": LANGUAGES,
                "train": 4000,
                "dev": 200,
                "cases": 32,
                "overlap": 10,
                "train_on_benchmarks": False,
            },
            "evaluation": {
                "python": {
                    "source": "openai/openai_humaneval",
                    "benchmark": "HumanEval",
                    "config": "openai_humaneval",
                    "split": "test",
                    "revision": "7dce6050a7d6d172f3cc5c32aa97f52fa1a2e544",
                },
                "multipl_e": {
                    "source": "nuprl/MultiPL-E",
                    "benchmark": "MultiPL-E",
                    "config": "humaneval-{language}",
                    "split": "test",
                    "revision": "d23b094346c5dbda1080a74bb2a24c18adbf7409",
                },
                "mbpp": {
                    "source": "google-research-datasets/mbpp",
                    "benchmark": "MBPP",
                    "config": "full",
                    "split": "test",
                    "revision": "4bb6404fdc6cacfda99d4ac4205087b89d32030c",
                },
                "mbpp_shots": {
                    "source": "google-research-datasets/mbpp",
                    "benchmark": "MBPP",
                    "config": "full",
                    "split": "prompt",
                    "revision": "4bb6404fdc6cacfda99d4ac4205087b89d32030c",
                },
                "languages": LANGUAGES,
                "problems": 0,
                "max_prompt_length": 2048,
                "samples": 16,
                "temperature": 0.8,
                "top_p": 0.95,
                "answers": "policy",
                "csharp_lists": "repaired",
            },
            "max_prompt_length": 1024,
            "sampling": {"temperature": 1.0, "top_p": 1.0, "max_completion_length": 1024},
            "sft_on_solutions": True,
            "sft": {
                "batch_size": 64,
                "optimizer": {"learning_rate": 2e-5, "steps": 200, "warmup_steps": 10, "microbatches": 16},
            },
            "candidates": {"train": 16, "batch_size": 16},
            "reranker": {"pooling": "last", "lm_coef": 0.0},
            "reranker_training": {
                "batch_size": 64,
                "optimizer": {"learning_rate": 1e-4, "steps": 1000, "warmup_steps": 50, "microbatches": 32},
            },
            "retraining": {
                "batch_size": 64,
                "optimizer": {"learning_rate": 5e-5, "steps": 500, "warmup_steps": 25, "microbatches": 32},
            },
            "mining": {"pairs": 60_000, "grown_pairs": 30_000, "new_share": 0.5, "hard_share": 0.5},
            "ppo": {
                "iterations": 100,
                "batch_size": 128,
                "learning_rate": 2e-5,
                "epochs": 2,
                "minibatches": 4,
                "kl_coef": 0.05,
                "microbatches": 16,
            },
            "early_stopping": {"every": 10, "samples": 1},
            "lora": {
                "rank": 32,
                "alpha": 64.0,
                "targets": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
            },
            "sandbox": {"workers": 16, "cpu_seconds": 15.0, "wall_seconds": 60.0},
            "mesh": {"data": 0, "fsdp": 1, "sequence": 1, "tensor": 1},
            "checkpoints": {"steps": 100, "iterations": 5, "keep": 2},
        },
        convert_dict=True,
    )
