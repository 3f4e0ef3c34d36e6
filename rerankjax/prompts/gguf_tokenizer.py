"""The tokenizer and the chat template in a GGUF file.

The file has a vocabulary, merges or scores, and the *name* of the rule by which text is split before they apply. What
the names mean is in llama.cpp's `llama-vocab.cpp`; here it is in the terms of each model's own tokenizer.json.
"""

from collections.abc import Sequence
from pathlib import Path

from gguf import TokenType
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Split
from transformers import PreTrainedTokenizerFast

from rerankjax.gguf_file import GGUFFile, read_gguf

SPACE = "\u2581"  # how SentencePiece writes one
REMEDY = "save the model's own tokenizer to a folder, and give that folder"
SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _splits(*patterns: str) -> list[PreTokenizer]:
    return [Split(Regex(pattern), "isolated") for pattern in patterns]


GPT2 = [ByteLevel(add_prefix_space=False)]
BYTES = [ByteLevel(add_prefix_space=False, use_regex=False)]
LLAMA3 = [*_splits(_WORDS % "{1,3}"), *BYTES]
QWEN2 = [*_splits(_WORDS % ""), *BYTES]
DIGITS = [Digits(individual_digits=True), *GPT2]
DEEPSEEK_CODER = [
    *_splits(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+"),
    Digits(individual_digits=True),
    *BYTES,
]
# By tokenizer.ggml.pre: how text is split.
PRE_TOKENIZERS: dict[str, Sequence[PreTokenizer]] = {
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), QWEN2),
    **dict.fromkeys(("smollm", "starcoder", "refact"), DIGITS),
    "deepseek-coder": DEEPSEEK_CODER,
    "gpt-2": GPT2,
}


def beginning_with(bos: str, number: int) -> processors.TemplateProcessing:
    """What makes a tokenizer begin each text with the token `bos`, whose id is `number`."""
    return processors.TemplateProcessing(
        single=[bos, "$A"], pair=[bos, "$A", bos, "$B:1"], special_tokens=[(bos, number)]
    )


def read_tokenizer(file: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a GGUF file, with its chat template.

    Raises:
        FileNotFoundError: no such file.
        ValueError: as `read_gguf`; the file has no vocabulary, or one of a kind that is not supported.
    """
    header = read_gguf(file)
    kind = header.get("tokenizer.ggml.model")
    tokens = header.get("tokenizer.ggml.tokens")
    if kind == "gpt2":
        tokenizer = _byte_level(header, tokens)
    elif kind == "llama":
        tokenizer = _sentencepiece(header, tokens)
    else:
        raise ValueError(f'{file}: tokenizer.ggml.model = "{kind}" is not supported: use gpt2 or llama; {REMEDY}')
    types = header.metadata.get("tokenizer.ggml.token_type", [])
    whole = {TokenType.CONTROL: True, TokenType.USER_DEFINED: False}  # found in a text before it is split; special
    tokenizer.add_tokens(
        [
            AddedToken(token, special=whole[type_], normalized=False)
            for token, type_ in zip(tokens, types, strict=False)
            if type_ in whole
        ]
    )
    special = {}
    for name, field in SPECIAL.items():
        id_ = header.metadata.get(f"tokenizer.ggml.{field}_token_id")
        if id_ is not None and id_ >= len(tokens):
            raise ValueError(
                f"{file}: tokenizer.ggml.{field}_token_id = {id_} is out of range for {len(tokens)} tokens: {REMEDY}"
            )
        if id_ is not None:
            special[name] = tokens[id_]
    if header.metadata.get("tokenizer.ggml.add_bos_token", kind == "llama"):
        bos = special.get("bos_token")
        if bos is None:
            raise ValueError(f"{file}: tokenizer.ggml.bos_token_id is missing, but texts begin with it: {REMEDY}")
        tokenizer.post_processor = beginning_with(bos, tokens.index(bos))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=header.metadata.get("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
        **special,
    )


def _byte_level(header: GGUFFile, tokens: list[str]) -> Tokenizer:
    name = header.get("tokenizer.ggml.pre")
    if name not in PRE_TOKENIZERS:
        raise ValueError(
            f'{header.file}: tokenizer.ggml.pre = "{name}" is not supported: use one of {", ".join(PRE_TOKENIZERS)}; '
            f"{REMEDY}"
        )
    splits = PRE_TOKENIZERS[name]
    merges = [tuple(merge.split(" ")) for merge in header.get("tokenizer.ggml.merges")]
    # Llama 3's vocabulary has words that its merges do not lead to.
    tokenizer = Tokenizer(models.BPE(_ids(tokens), merges, ignore_merges=splits is LLAMA3))
    if splits is QWEN2:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(splits))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(header: GGUFFile, tokens: list[str]) -> Tokenizer:
    ids = _ids(tokens)
    types = header.metadata.get("tokenizer.ggml.token_type", [TokenType.NORMAL] * len(tokens))
    # SentencePiece joins the two neighbours whose whole scores best, so each way to cut a token in two is a merge.
    pairs = [
        (score, token[:cut], token[cut:])
        for token, score, kind in zip(tokens, header.get("tokenizer.ggml.scores"), types, strict=True)
        if kind == TokenType.NORMAL
        for cut in range(1, len(token))
        if token[:cut] in ids and token[cut:] in ids
    ]
    merges = [(left, right) for _, left, right in sorted(pairs, key=lambda pair: -pair[0])]
    prefix = header.metadata.get("tokenizer.ggml.add_space_prefix", True)
    unknown = tokens[header.metadata.get("tokenizer.ggml.unknown_token_id", 0)]
    tokenizer = Tokenizer(models.BPE(ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [*([normalizers.Prepend(SPACE)] if prefix else []), normalizers.Replace(" ", SPACE)]
    )
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def _ids(tokens: list[str]) -> dict[str, int]:
    return {token: i for i, token in enumerate(tokens)}
