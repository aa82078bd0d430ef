"""Which models a folder holds: the entries of its `chat.json`. Hashes a model before it is used."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from serve.errors import DataError
from serve.messages import Message
from serve.models import resolve_model
from serve.reasoning import TagsName

CATALOGUE = "chat.json"
# Problems of a run that someone kept because a model failed them, one JSON object a line.
REGRESSION_CASES = "regressions.jsonl"
_TAGS: TypeAdapter[TagsName] = TypeAdapter(TagsName)


@dataclass(frozen=True)
class Entry:
    """One model: its name, what runs it, its file, the turns put before a question, and the form
    of its reasoning."""

    name: str
    engine: str
    location: str
    sha256: str | None
    lead: tuple[Message, ...]
    tags: TagsName = "think"

    def messages(self, question: str) -> tuple[Message, ...]:
        return (*self.lead, Message(role="user", content=question))

    def path(self) -> Path:
        """The file, after its hash was seen to be right. Raises DataError, UntrustedFile."""
        return resolve_model(self.location, self.sha256)


def read_catalogue(folder: Path) -> list[Entry]:
    """Every model of a run or a bundle. Raises DataError for an unfinished run."""
    try:
        entries = json.loads((folder / CATALOGUE).read_text(encoding="utf-8"))["speakers"]
        return [
            Entry(
                name=entry["name"],
                engine=entry["engine"],
                location=_absolute(entry["model"], folder),
                sha256=entry["sha256"],
                lead=tuple(Message.model_validate(turn) for turn in entry["lead"]),
                tags=_TAGS.validate_python(entry.get("tags", "think")),
            )
            for entry in entries
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder} holds no finished student: {error}", hint="run python -m pipeline.all first"
        ) from error


def _absolute(model: str, folder: Path) -> str:
    """`path:` references of the catalogue are relative to its folder."""
    kind, _, rest = model.partition(":")
    return f"path:{folder / rest}" if kind == "path" and not Path(rest).is_absolute() else model
