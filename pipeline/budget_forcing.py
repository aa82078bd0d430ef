"""s1's budget forcing (arXiv 2501.19393, section 3.1): the end of thinking is put off.

Where a model closes its reasoning, the closing tag and the answer are taken away, "Wait" is written
instead, and the model goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from pipeline.records import content_key
from serve.messages import Completion, Request
from serve.reasoning import split_reasoning, tags_of

WAIT = "Wait"
Ask = Callable[[Sequence[Request]], Mapping[str, Completion]]


def put_off(text: str) -> str | None:
    """`text` up to the end of its reasoning, and "Wait"; None where no reasoning was closed."""
    tags, split = tags_of(text), split_reasoning(text)
    if tags is None or not split.closed or not split.reasoning:
        return None
    return f"{tags.opens}\n{split.reasoning}\n{WAIT}"


def waited(
    requests: Sequence[Request], answers: Mapping[str, Completion], times: int, ask: Ask
) -> dict[str, Completion]:
    """Answers by the keys of `requests`, their reasoning gone on with up to `times`.

    Tokens are all that were written for an answer. An answer without closed reasoning stays.
    """
    found = {request.key: answers[request.key] for request in requests}
    for _ in range(times):
        further = {}
        for request in requests:
            said = found[request.key]
            begun = put_off(said.text) if said.finish == "stop" else None
            if begun is not None:
                changed = {"begun": begun, "key": content_key(request.key, begun)}
                further[request.key] = request.model_copy(update=changed)
        more = ask(list(further.values())) if further else {}
        for key, request in further.items():
            said = more[request.key]
            tokens = found[key].completion_tokens + said.completion_tokens
            text = request.begun + said.text
            found[key] = said.model_copy(update={"text": text, "completion_tokens": tokens})
    return found
