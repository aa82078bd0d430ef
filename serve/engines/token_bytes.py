"""What bytes the tokens of a Hugging Face tokenizer stand for."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

BYTE_FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")
SENTENCEPIECE_SPACE = "▁"


@cache
def byte_of_character() -> dict[str, int]:
    """The printable character that GPT-2's byte-level BPE writes for each byte, reversed."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    table = {chr(byte): byte for byte in plain}
    return table | {chr(256 + index): byte for index, byte in enumerate(others)}


def token_bytes(tokenizer: Any) -> list[bytes | None]:
    """The bytes of every id; None for special tokens and ids without a token."""
    raw = tokenizer.backend_tokenizer
    byte_level = '"ByteLevel"' in json.dumps(json.loads(raw.to_str())["decoder"])
    table: list[bytes | None] = [None] * (max(tokenizer.get_vocab().values()) + 1)
    added = tokenizer.added_tokens_decoder
    for token, index in tokenizer.get_vocab().items():
        if index in added:
            table[index] = None if added[index].special else str(added[index]).encode()
        elif byte_level:
            known = byte_of_character()
            if all(character in known for character in token):
                table[index] = bytes(known[character] for character in token)
        else:
            match = BYTE_FALLBACK.fullmatch(token)
            table[index] = (
                bytes([int(match[1], 16)])
                if match
                else token.replace(SENTENCEPIECE_SPACE, " ").encode()
            )
    return table
