"""One model in a process of its own, answering many people: JSON lines in, JSON lines out.

    python -m serve.worker ENGINE OPTIONS

In: `{"key", "ask"}` or `{"cancel"}`. Out: once `{"name", "context_tokens", "note"}`, then lines
with what became certain, `{"told": [[key, reply], …]}`, now and then of nothing while a long prompt
is read; `{"error"}` when the model does not load.
Native code that crashes ends this process and not the server.
"""

from __future__ import annotations

import json
import queue
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from serve.conversations import Ask, Conversations
from serve.engines.child import die_with_parent, replies_apart
from serve.errors import RetortError
from serve.gathered import Gathered
from serve.live import load_live

SIGN_EVERY_S = 10.0


def main(engine: str, options: dict[str, Any]) -> None:
    out = replies_apart()

    def tell(**fields: Any) -> None:
        out.write(json.dumps(fields) + "\n")
        out.flush()

    try:
        live = load_live(engine, **options)
    except RetortError as error:
        tell(error=str(error.args[0]))
        return
    tell(name=live.name, context_tokens=live.context_tokens, note=live.note)
    asked: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=[asked], daemon=True).start()
    talks, gathered, told_s = Conversations(live), Gathered(), 0.0
    while True:
        while not asked.empty() or not talks.busy():
            line = asked.get()
            if line is None:
                return
            if "cancel" in line:
                talks.cancel(line["cancel"])
                gathered.forget(line["cancel"])
            else:
                talks.ask(line["key"], Ask.model_validate(line["ask"]))
        told = gathered.add(talks.step())
        if told or time.monotonic() - told_s > SIGN_EVERY_S:
            told_s = time.monotonic()
            tell(told=[[key, reply.model_dump(exclude_defaults=True)] for key, reply in told])


def _listen(asked: queue.SimpleQueue[dict[str, Any] | None]) -> None:
    for line in sys.stdin:
        asked.put(json.loads(line))
    asked.put(None)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    die_with_parent()
    given = json.loads(sys.argv[2])
    main(sys.argv[1], given | {"path": Path(given["path"])})
