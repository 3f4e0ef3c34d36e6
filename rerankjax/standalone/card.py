"""A trained reranker's model card: what it is, how to use it, its data, its results and its settings."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from rerankjax.pairs.data import DataSource
from rerankjax.results.render import pipes
from rerankjax.results.statistics import decimal
from rerankjax.standalone.comparison import Comparison
from rerankjax.standalone.config import RerankerTrainingConfig
from rerankjax.standalone.tables import markdown


@dataclasses.dataclass(frozen=True)
class Facts:
    """How the data were used: number of training pairs, rows of each split, whether conversations are scored, and the
    best accuracy on dev pairs, by which the parameters were chosen."""

    pairs: int
    rows: Mapping[str, int]
    chat: bool
    dev_accuracy: float


_USE = """\
```python
from rerankjax import Reranker

reranker = Reranker.from_pretrained("FOLDER"{chat})
reranker.score(prompt, candidates)  # higher is better
```

In `transformers` it is an `AutoModelForSequenceClassification` with one label, whose raw logit is the score:

```python
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = AutoModelForSequenceClassification.from_pretrained("FOLDER")
text = {text}
score = model(**tokenizer(text, return_tensors="pt"{special})).logits[0, 0]
```
"""
_CONVERSATION = "tokenizer.apply_chat_template([*messages, answer], tokenize=False)"
_TEXT = "prompt + candidate + tokenizer.eos_token"
_MEAN = "It pools the mean over the answer's tokens, which other tools do not support.\n"


def card(config: RerankerTrainingConfig, facts: Facts, comparison: Comparison) -> str:
    """README.md, with the Hugging Face hub's metadata."""
    metadata = {"library_name": "transformers", "pipeline_tag": "text-classification", "tags": ["reward-model", "code"]}
    head = "".join(f"{name}: {json.dumps(value)}\n" for name, value in metadata.items())
    chat, special = (", chat=True", ", add_special_tokens=False") if facts.chat else ("", "")
    use = _USE.format(chat=chat, special=special, text=_CONVERSATION if facts.chat else _TEXT)
    if config.pooling != "last":
        use = use.partition("In `transformers`")[0] + _MEAN
    data = pipes(
        ["", "rows", "from"],
        [
            ["train", str(facts.rows["train"]), _sources(config.data)],
            ["dev", str(facts.rows["dev"]), _sources(config.dev) or f"{config.dev_fraction:g} of the problems"],
            ["test", str(facts.rows["test"]), _sources(config.test) or f"{config.test_fraction:g} of the problems"],
        ],
    )
    settings = pipes(["field", "value"], [[name, value] for name, value in _flat(dataclasses.asdict(config))])
    return (
        f"---\n{head}---\n\n# A reranker from {config.base}\n\n"
        "It scores answers to a prompt: a higher score means that an answer is more likely right. It was trained with "
        f"the Bradley-Terry loss by `rerankjax train-reranker`.\n\n## Use\n\n{use}\n## Data\n\n{data}\n"
        f"It was trained on {facts.pairs} pairs. No prompt is in two of the splits. The parameters are those with the "
        f"highest accuracy on dev pairs, {decimal(facts.dev_accuracy)}. The figures below are measured on test.\n\n"
        f"{markdown(comparison)}\n## Settings\n\n{settings}"
    )


def _sources(sources: tuple[DataSource, ...]) -> str:
    return ", ".join(" ".join(filter(None, (s.source, s.config, s.revision and f"@{s.revision[:7]}"))) for s in sources)


def _flat(section: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for name, value in section.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{name}.")
        else:
            rows.append((prefix + name, json.dumps(value)))
    return rows
