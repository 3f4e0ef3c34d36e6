"""A GGUF file's tokenizer: it splits texts as the model's own, and gives them back."""

import functools
import itertools
import json
import re
from pathlib import Path

import pytest
from gguf import GGUFWriter, TokenType
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer

from rerankjax.prompts.gguf_tokenizer import DEEPSEEK_CODER, DIGITS, GPT2, LLAMA3, QWEN2
from rerankjax.prompts.tokenizer import load_tokenizer

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
CODE = [path.read_text() for path in sorted(Path(__file__).parent.glob("test_[mp]*.py"))]
TEXTS = [
    *CODE,
    "def f(x):\n\tif x:\n\t\treturn [1,  22,   333]\n\n\n        # four,    five     \n    return x",
    "  12    3\r\n\t \t4é日本語🙂 don't DON'T ",
    "<|im_start|>user\n  hi<|im_end|>",
    "<think>\n    1</think>",
    " ",
    "",
]
SPLITS = {"smollm": DIGITS, "gpt-2": GPT2, "qwen2": QWEN2, "llama-bpe": LLAMA3, "deepseek-coder": DEEPSEEK_CODER}
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def write_gguf(path, tokens, types, **fields):
    writer = GGUFWriter(path, "llama")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_string("tokenizer.chat_template", TEMPLATE)
    for name, value in fields.items():
        if value is not None:
            kind = {int: "uint32", str: "string", bool: "bool", list: "array"}[type(value)]
            getattr(writer, f"add_{kind}")(f"tokenizer.ggml.{name}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_byte_level(path, tokenizer, **changes):
    model = json.loads(tokenizer.to_str())["model"]
    vocab = sorted(model["vocab"], key=model["vocab"].get)
    types = [TokenType.CONTROL if token in SPECIAL else TokenType.NORMAL for token in vocab]
    fields = {"model": "gpt2", "merges": [" ".join(pair) for pair in model["merges"]], "add_bos_token": False}
    fields |= {"bos_token_id": 1, "eos_token_id": 2, "padding_token_id": 2, "unknown_token_id": 0}
    return write_gguf(path, [*vocab, "<think>"], [*types, TokenType.USER_DEFINED], **(fields | changes))


@functools.cache
def trained(name):
    """A byte-level BPE trained on code, split by a rule of that name."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=name == "llama-bpe"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(SPLITS[name]))
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CODE,
        trainers.BpeTrainer(vocab_size=1000, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False),
    )
    return tokenizer


@pytest.mark.parametrize("name", SPLITS)
def test_a_byte_level_tokenizer_is_the_one_it_was_made_from(name, tmp_path):
    original = trained(name)
    tokenizer = load_tokenizer(write_byte_level(tmp_path / "m.gguf", original, pre=name))
    original = Tokenizer.from_str(original.to_str())
    original.add_tokens(["<think>"])
    tokenizer.save_pretrained(tmp_path / "saved")
    saved = load_tokenizer(tmp_path / "saved")
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert ids == original.encode(text).ids == saved.encode(text)
        assert tokenizer.decode(ids) == text
    marked = tokenizer.encode("<|im_start|>a<think>")
    assert tokenizer.convert_ids_to_tokens(marked) == ["<|im_start|>", "a", "<think>"]
    assert tokenizer.decode(marked, skip_special_tokens=True) == "a<think>"
    chat = [{"role": "user", "content": CODE[0]}]
    for loaded in (tokenizer, saved):
        assert loaded.apply_chat_template(chat, tokenize=False) == f"<|im_start|>user\n{CODE[0]}<|im_end|>\n"
        assert [loaded.bos_token, loaded.eos_token, loaded.pad_token] == [SPECIAL[i] for i in (1, 2, 2)]


@pytest.mark.parametrize(
    ("name", "text", "parts"),
    [
        ("smollm", "    12 x=3", ["ĠĠĠĠ", "1", "2", "Ġx", "=", "3"]),
        ("gpt-2", "    12 x=3", ["ĠĠĠ", "Ġ12", "Ġx", "=", "3"]),
        ("qwen2", "    12 x=3", ["ĠĠĠ", "Ġ", "1", "2", "Ġx", "=", "3"]),
        ("llama-bpe", "    1234 x=3", ["ĠĠĠ", "Ġ", "123", "4", "Ġx", "=", "3"]),
        ("deepseek-coder", "\n\n  12 x()", ["Ċ", "Ċ", "ĠĠ", "1", "2", "Ġx", "()"]),
    ],
)
def test_texts_are_split_as_worked_by_hand(name, text, parts):
    split = pre_tokenizers.Sequence(list(SPLITS[name]))
    assert [part for part, _ in split.pre_tokenize_str(text)] == parts


def test_qwen2_is_split_and_normalised_as_by_its_own_tokenizer(tmp_path):
    tokenizer = load_tokenizer(write_byte_level(tmp_path / "m.gguf", trained("qwen2"), pre="qwen2"))
    model = json.loads(trained("qwen2").to_str())["model"]
    own = Qwen2Tokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])
    for text in [*CODE, "e\u0301 \u00e9", "  a\t\tb  12\n \n"]:
        assert tokenizer.encode(text) == own.encode(text)


def test_a_word_of_llama3s_vocabulary_needs_no_merges(tmp_path):
    fields = {"model": "gpt2", "merges": ["a b"], "add_bos_token": True, "bos_token_id": 4}
    path = write_gguf(tmp_path / "m.gguf", ["a", "b", "ab", "bab", "<s>"], [1, 1, 1, 1, 3], pre="llama-bpe", **fields)
    tokenizer = load_tokenizer(path)
    assert tokenizer.encode("bab") == [4, 3]
    assert tokenizer.encode("babab", add_special_tokens=False) == [1, 2, 2]


PIECES = {"\u2581": -9, "a": -8, "b": -7, "c": -6, "ab": -3, "bc": -2, "\u2581a": -4, "abc": -1, "\u2581\u2581": -5}


def sentencepiece(text):
    """SentencePiece's BPE: of all neighbours, those whose whole scores best are joined, the leftmost first."""
    parts = list(text.replace(" ", "\u2581"))
    while joined := [(-PIECES[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in PIECES]:
        _, i = min(joined)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_joins_the_best_neighbours_first(tmp_path, prefix):
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES]
    types = [TokenType.UNKNOWN, *[TokenType.CONTROL] * 2, *[TokenType.BYTE] * 256, *[TokenType.NORMAL] * len(PIECES)]
    fields = {"model": "llama", "bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0, "add_space_prefix": prefix}
    scores = [0.0] * 259 + [float(score) for score in PIECES.values()]
    tokenizer = load_tokenizer(write_gguf(tmp_path / "m.gguf", tokens, types, scores=scores, **fields))
    for letters in itertools.product("abc ", repeat=5):
        text = "".join(letters)
        ids = tokenizer.encode(text)
        assert ids[0] == 1
        assert tokenizer.convert_ids_to_tokens(ids[1:]) == sentencepiece(" " * prefix + text)
        assert tokenizer.decode(ids[1:]) == text
    for text in ("a\n\tb  é", "a</s>"):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pre": "tekken"}, 'tokenizer.ggml.pre = "tekken" is not supported: use one of llama-bpe'),
        ({"pre": None}, "has no tokenizer.ggml.pre"),
        ({"model": "t5"}, 'tokenizer.ggml.model = "t5" is not supported'),
        ({"model": None}, "has no tokenizer.ggml.model"),
        ({"merges": None}, "has no tokenizer.ggml.merges"),
        ({"add_bos_token": True, "bos_token_id": None}, "tokenizer.ggml.bos_token_id is missing"),
        ({"eos_token_id": 5000}, "tokenizer.ggml.eos_token_id = 5000"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path, changes, said):
    path = write_byte_level(tmp_path / "bad.gguf", trained("smollm"), **({"pre": "smollm"} | changes))
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        load_tokenizer(path)
    assert "bad.gguf" in str(error.value)
