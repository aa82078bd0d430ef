"""Optional stage beside the traces: general data, so that a student that reasons still converses.

DeepSeek-R1's distillation (arXiv 2501.12948, section 2.4) mixes 600k reasoning samples with 200k
general ones. Reads the recipe's prompts; those without a response are answered by the teacher,
without worked examples. Writes `general.jsonl` sorted by key.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.asking import ask, request_for
from pipeline.recipe import GeneralOptions, GeneralSet, TeacherOptions
from pipeline.records import General
from pipeline.run import SCRATCH, Context
from pipeline.store import write_records
from pipeline.tasks.files import dataset_rows, numbered_lines
from pipeline.teacher import open_teacher, room_of, teacher_identity
from serve.errors import DataError
from serve.messages import Message, Sampling

STAGE_VERSION = 2
LIBRARIES = ("llama-cpp-python", "datasets")
BUILT_IN = Path(__file__).parent / "recipes" / "general"

Config = tuple[TeacherOptions, GeneralOptions]


def run(config: Config, inputs: Mapping[str, Path], out: Path, context: Context) -> dict[str, Any]:
    """Answer what has no response yet. Raises DataError for prompts that cannot be read."""
    teacher, options = config
    prompts = {row.key: row for row in _prompts(options)}
    asked = {
        key: request_for(
            teacher_identity(teacher),
            (
                Message(role="system", content=options.system),
                Message(role="user", content=row.prompt),
            ),
            Sampling(max_tokens=options.max_tokens),
        )
        for key, row in prompts.items()
        if not row.response
    }
    log = out / SCRATCH / "answers.jsonl"
    answers = ask(
        lambda: open_teacher(teacher),
        list(asked.values()),
        log,
        "general answers",
        context,
        room_of(teacher),
    )
    rows, cut = [], 0
    for key, row in sorted(prompts.items()):
        if row.response:
            rows.append(row)
            continue
        said = answers[asked[key].key]
        # Half a sentence would teach to stop in the middle of one.
        if said.finish == "stop" and said.text.strip():
            rows.append(row.model_copy(update={"response": said.text.strip()}))
        else:
            cut += 1
    write_records(out / "general.jsonl", rows)
    return {
        "prompts": len(prompts),
        "answered": len(rows),
        "cut": cut,
        "completion_tokens": sum(answers[r.key].completion_tokens for r in asked.values()),
    }


def _prompts(options: GeneralOptions) -> Iterator[General]:
    for name in options.files:
        own, built_in = Path(name), BUILT_IN / f"{name}.jsonl"
        yield from _of_file(built_in if built_in.is_file() and not own.is_file() else own)
    for d in options.datasets:
        yield from _of_dataset(d)


def _of_file(path: Path) -> Iterator[General]:
    for number, line in numbered_lines(path, "general prompts"):
        try:
            yield General.model_validate(json.loads(line))
        except (ValueError, ValidationError) as error:
            raise DataError(
                f"{path.name} line {number} is no prompt",
                hint='each line is {"prompt": "…"}, with "response" where there is one',
            ) from error


def _of_dataset(wanted: GeneralSet) -> Iterator[General]:
    columns = [wanted.prompt, *([wanted.response] if wanted.response else [])]
    for row in dataset_rows(wanted.name, wanted.config, wanted.split, wanted.revision, columns):
        prompt, said = str(row[wanted.prompt]).strip(), ""
        if wanted.response:
            said = str(row[wanted.response]).strip()
        if prompt:
            yield General(prompt=prompt, response=said)
