"""Problems of the user's own: JSONL files, and Hugging Face datasets by name."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.records import Problem, content_key
from serve.errors import DataError

# GSM8K writes its reasoning first and the reference answer after four hashes.
GSM8K_ANSWER = re.compile(r"####\s*(.+)\s*$")


def jsonl_problems(path: Path) -> Iterator[Problem]:
    """Problems from `{"question": …, "answer": …, "family": …}` lines; family is the file's name.

    Raises DataError naming the file and the first line that is not a problem.
    """
    for number, line in numbered_lines(path, "problems"):
        yield _problem(line, f"{path.name} line {number}", path.stem)


def numbered_lines(path: Path, what: str) -> Iterator[tuple[int, str]]:
    """The lines of a file that hold anything, from 1, cut at line feeds: `str.splitlines` cuts at
    more, which JSON allows inside a string. Raises DataError when the file cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {what} from {path}: {error}") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield number, line


def _problem(line: str, place: str, family: str) -> Problem:
    try:
        fields = json.loads(line)
        if not isinstance(fields, dict):
            raise ValueError("not an object")
        if isinstance(fields.get("answer"), (int, float)):
            fields["answer"] = str(fields["answer"])
        return Problem.model_validate({"family": family, **fields})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{place} is not a problem: {field}: {first['msg']}") from error
    except ValueError as error:
        raise DataError(
            f"{place} is not a problem: {error}",
            hint='each line is {"question": "…", "answer": "…"}',
        ) from error


def dataset_problems(
    name: str,
    config: str | None,
    split: str,
    question: str,
    answer: str,
    revision: str | None,
    wrong: Sequence[str] = (),
) -> Iterator[Problem]:
    """Problems from a Hugging Face dataset, or a local folder of the same shape.

    `wrong` are columns of wrong answers: the question then ends with all of them by letters.
    Raises DataError when it cannot be loaded, or a row lacks a column or a reference answer.
    """
    family = Path(name).name
    columns = (question, answer, *wrong)
    rows = dataset_rows(name, config, split, revision, columns)
    for index, row in enumerate(rows):
        texts = {column: _text(row[column]) for column in columns}
        empty = next((column for column, text in texts.items() if not text), None)
        if empty is not None:
            raise DataError(f"dataset {name} row {index} has an empty {empty}")
        if wrong:
            yield _choice(texts[question], texts[answer], [texts[w] for w in wrong], family)
            continue
        match = GSM8K_ANSWER.search(texts[answer])
        reference = match[1].replace(",", "") if match else texts[answer]
        yield Problem(question=texts[question], answer=reference.strip(), family=family)


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _choice(question: str, right: str, wrong: Sequence[str], family: str) -> Problem:
    """The answers in an order that depends on the question alone, and the right one's letter."""
    answers = sorted([right, *wrong], key=lambda text: content_key(question, text))
    letters = string.ascii_uppercase[: len(answers)]
    listed = "\n".join(f"{letter}) {text}" for letter, text in zip(letters, answers, strict=True))
    return Problem(
        question=f"{question}\n\n{listed}\n\nAnswer with the letter of the right choice.",
        answer=letters[answers.index(right)],
        family=family,
        scorer="choice",
    )


def dataset_rows(
    name: str, config: str | None, split: str, revision: str | None, columns: Sequence[str]
) -> Iterable[Mapping[str, Any]]:
    """Rows of a data set. Raises DataError when it cannot be loaded or lacks one of `columns`."""
    import datasets

    try:
        rows = datasets.load_dataset(name, config, split=split, revision=revision)
    except Exception as error:  # the edge: the library raises a dozen unrelated kinds
        raise DataError(f"dataset {name} split {split} cannot be loaded: {error}") from error
    for column in columns:
        if column not in rows.column_names:
            raise DataError(f"dataset {name} has no column {column!r}: {rows.column_names}")
    found: Iterable[Mapping[str, Any]] = rows
    return found
