"""Takes the stylistic filler out of reasoning and keeps its operations.

Filler is a word that opens a sentence without saying anything ("Okay, so", "First, let's"), and a
sentence without a number, a symbol or a name in a text that otherwise has some.
"""

from __future__ import annotations

import re

# Taken off the beginning of a sentence, again and again: "Okay, so now let's" is four of them.
_OPENERS = re.compile(
    r"(?:(?:okay|ok|alright|hmm+|so|now|then|first(?:ly)?|next|finally|lastly|again|therefore|thus"
    r"|hence|in other words|as we can see|we (?:can see|know|see) that|note that|in conclusion"
    r"|this means(?: that)?|it follows that|i think(?: that)?|let me think|let(?:'s| us) see"
    r"|(?:to solve|to find|to do) this|step by step)\b(?:[\s,:!]|\.(?!\d))*"
    # Words that may also be the subject open a sentence only before a comma.
    r"|(?:right|well|and|but|second(?:ly)?|third(?:ly)?|also|actually|wait|great|sure|certainly)"
    r"[,:.!]+\s*)+",
    re.IGNORECASE,
)
_CARRIES = re.compile(r"[\d=+*/<>^%`{}\[\]()\\$|]|(?<=\S\s)[A-Z][a-z]+|['\"]\w")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")


def plain(reasoning: str) -> str:
    """`reasoning` line by line without filler; as it is where nothing in it is an operation."""
    lines = [_plain_line(line) for line in reasoning.splitlines()]
    kept = [line for line in lines if line]
    return "\n".join(kept) if kept else reasoning


def _plain_line(line: str) -> str:
    indent = line[: len(line) - len(line.lstrip())]
    sentences = [_without_opener(s) for s in _SENTENCE_END.split(line.strip())]
    kept = [s for s in sentences if _CARRIES.search(s)]
    return indent + " ".join(kept) if kept else ""


def _without_opener(sentence: str) -> str:
    opened = _OPENERS.match(sentence)
    rest = sentence[opened.end() :] if opened else sentence
    # A letter by itself is a variable, not a word.
    word = rest[:2].isalpha() and len(rest) > 1
    return rest[:1].upper() + rest[1:] if opened and word else rest
