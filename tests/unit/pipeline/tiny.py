"""Tiny random llamas with a tokenizer of letters, as checkpoints."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIALS = ["<|end|>", "<|user|>", "<|system|>", "<|assistant|>", "<unk>"]
LETTERS = [chr(c) for c in range(32, 127)]
SHAPE = {
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "eos_token_id": 0,
}


def tokenizer(letters=LETTERS):
    vocabulary = {token: i for i, token in enumerate(SPECIALS + letters)}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|end|>", pad_token="<|end|>", unk_token="<unk>"
    )
    made.add_special_tokens({"additional_special_tokens": SPECIALS[1:4]})
    made.chat_template = TEMPLATE
    return made


def checkpoint(folder, seed, rows=100, width=32, **config):
    """A tiny llama whose first 100 rows do not depend on how many follow."""
    tokenizer().save_pretrained(folder)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=100, hidden_size=width, **SHAPE, **config))
    if rows != 100:
        model.resize_token_embeddings(rows, mean_resizing=False)
    model.save_pretrained(folder)
    return folder
