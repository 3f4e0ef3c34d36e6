"""The chat template of an exported reranker: every tool that renders messages scores the text that was trained."""

from transformers import PreTrainedTokenizerBase

from rerankjax.prompts.tokenizer import opening

# sentence-transformers' CrossEncoder renders a pair as turns of these two roles.
_ROLES = "{'query': 'user', 'document': 'assistant'}"
_WITH_ROLES = (
    "{%- set ns = namespace(turns=[]) -%}"
    "{%- for turn in messages -%}"
    f"{{%- set ns.turns = ns.turns + [dict(turn, role={_ROLES}.get(turn['role'], turn['role']))] -%}}"
    "{%- endfor -%}"
    "{%- set messages = ns.turns -%}"
)
_TEXT = (
    "{%- for turn in messages -%}"
    "{{ turn['content'] }}{%- if turn['role'] in ('assistant', 'document') -%}{{ eos_token }}{%- endif -%}"
    "{%- endfor -%}"
)


def give_template(tokenizer: PreTrainedTokenizerBase, chat: bool) -> None:
    """Gives the tokenizer the chat template with which it is exported.

    chat: the reranker was trained on conversations. Its template stays, and takes the roles "query" and "document" for
    "user" and "assistant". Otherwise the template renders the prompt, the answer and the end-of-text token, as one
    text: the one that such a reranker scores.
    """
    if not chat:
        begin = "{{- bos_token -}}" if opening(tokenizer) else ""
        tokenizer.chat_template = begin + _TEXT
    elif isinstance(tokenizer.chat_template, str) and _WITH_ROLES not in tokenizer.chat_template:
        tokenizer.chat_template = _WITH_ROLES + tokenizer.chat_template
