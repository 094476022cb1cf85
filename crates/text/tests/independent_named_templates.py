"""Conversations rendered by transformers with chat templates that have names, for tests/templates.rs.

Reads a JSON list of `{"templates": {name: source}, "messages", "tools"}` from standard input and prints a JSON list of texts.
PyPI: transformers, tokenizers, jinja2.
"""

import json
import sys

import tokenizers
import transformers


def render(case):
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = case["templates"]
    return tokenizer.apply_chat_template(
        case["messages"], tools=case["tools"], tokenize=False, add_generation_prompt=True
    )


json.dump([render(case) for case in json.load(sys.stdin)], sys.stdout)
