"""Suites as data: what a student is asked beyond its evaluation items, and in which words.

A TOML file names suites of problems (families with the reason they are asked, or a file of
problems) and styles, ways to ask the same problem. Built-in files lie in `pipeline/suites/`.
"""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

from pydantic import Field, ValidationError, model_validator

from pipeline.recipe import DatasetOptions, FamilyOptions
from pipeline.records import Problem, content_key
from pipeline.tasks.files import dataset_problems, jsonl_problems
from pipeline.tasks.gym import family_problems
from pipeline.transfer_summary import FRESH, OTHER
from serve.errors import RecipeError
from serve.messages import Message, Record
from serve.models import file_sha256

FOLDER = Path(__file__).parent / "suites"
AS_IT_IS = "{question}"
# What is asked beside the suites stands in the same tables.
RESERVED = frozenset({FRESH, *OTHER})


class SuiteFamily(FamilyOptions):
    reason: str = Field(description="why a student of this recipe is asked it")


class Suite(Record):
    name: str
    items: int = Field(20, ge=1, le=100_000, description="problems a family")
    families: tuple[SuiteFamily, ...] = ()
    file: str | None = Field(None, description="JSONL of problems, beside the suites file")
    datasets: tuple[DatasetOptions, ...] = Field((), description="`items` drawn of each, by key")
    text: str = Field(
        AS_IT_IS,
        pattern=r"\{question\}",
        exclude_if=AS_IT_IS.__eq__,
        description="what is asked, whatever the recipe",
    )
    untrained: bool = Field(False, description="families that the run trained on are not asked")


class Style(Record):
    """One way to ask. A problem that `replace` does not touch is not asked in it, nor one that no
    `shots` can be shown for."""

    name: str
    text: str = Field(AS_IT_IS, pattern=r"\{question\}")
    system: str | None = Field(None, description="another system prompt; empty: none")
    shots: int = Field(0, ge=0, le=32, description="solved problems of the same family before it")
    lower: bool = Field(False, description="in lower case")
    replace: tuple[tuple[str, str], ...] = Field((), description="words and their translation")


class StylesOptions(Record):
    items: int = Field(30, ge=1, le=100_000, description="evaluation items asked in every style")


class ForcedOptions(Record):
    items: int = Field(
        60, ge=1, le=100_000, description="evaluation items answered after cut or swapped reasoning"
    )


class SamplesOptions(Record):
    items: int = Field(16, ge=0, le=100_000, description="evaluation items drawn many times")
    k: int = Field(32, ge=1, le=1024, description="samples each, for pass@k")


class Suites(Record):
    suite: tuple[Suite, ...] = ()
    samples: SamplesOptions = SamplesOptions()
    styles: StylesOptions = StylesOptions()
    forced: ForcedOptions = ForcedOptions()
    style: tuple[Style, ...] = ()

    @model_validator(mode="after")
    def _names_differ(self) -> Suites:
        names = [s.name for s in self.suite] + [s.name for s in self.style]
        if len(set(names)) < len(names):
            raise ValueError("two suites or styles of one name")
        reserved = sorted(RESERVED & {s.name for s in self.suite})
        if reserved:
            raise ValueError(f"a suite cannot be called {reserved[0]!r}")
        return self

    def fewer(self, share: float) -> Suites:
        """`share` of the items of every suite, style, cut and of the samples, at least one each.

        A family's first ones stay; a suite's file is asked whole.
        """

        def of(items: int) -> int:
            return max(1, round(share * items))

        return self.model_copy(
            update={
                "suite": tuple(s.model_copy(update={"items": of(s.items)}) for s in self.suite),
                "styles": self.styles.model_copy(update={"items": of(self.styles.items)}),
                "forced": self.forced.model_copy(update={"items": of(self.forced.items)}),
                "samples": self.samples.model_copy(update={"items": of(self.samples.items)}),
            }
        )


def load_suites(name: str) -> tuple[Suites, Path]:
    """Suites by built-in name or path, and the folder they lie in. Raises RecipeError."""
    found = [p for p in (Path(name), FOLDER / f"{name}.toml") if p.is_file()]
    if not found:
        known = ", ".join(sorted(p.stem for p in FOLDER.glob("*.toml")))
        raise RecipeError(f"suites {name!r} are not there", hint=f"built in: {known}")
    path = found[0]
    try:
        return Suites.model_validate(tomllib.loads(path.read_text(encoding="utf-8"))), path.parent
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"cannot read suites {path.name}: {error}") from error
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(str(part) for part in fault["loc"])
        raise RecipeError(f"{path.name}: {place}: {fault['msg']}") from error


def _part(text: str) -> float:
    with suppress(ValueError):
        share = float(text)
        if 0 < share <= 1:
            return share
    raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 1")


def add_suites(parser: argparse.ArgumentParser, share: float) -> None:
    """`--suites` and `--suite-share`, of which `share` is the default."""
    parser.add_argument("--suites", default="embedded", help="a TOML file, or a built-in name")
    parser.add_argument(
        "--suite-share",
        type=_part,
        default=share,
        help=f"of suites' items (default: {share:g})",
    )


def asked_suites(options: argparse.Namespace) -> tuple[Suites, Path]:
    """What those two say, with the folder it lies in. Raises RecipeError."""
    suites, folder = load_suites(options.suites)
    return suites.fewer(options.suite_share), folder


def suites_key(suites: tuple[Suites, Path]) -> str:
    """A hash of what is asked: the suites, and what stands in their files."""
    asked, folder = suites
    files = [folder / suite.file for suite in asked.suite if suite.file]
    # One that is not there is told of where it is read.
    hashes = [file_sha256(path) for path in files if path.is_file()]
    return content_key(asked.model_dump(mode="json"), hashes)


def suite_problems(
    suite: Suite, folder: Path, seed: int, known: set[str], trained: Collection[str] = ()
) -> list[Problem]:
    """A suite's problems, sorted by key. Of families none is drawn whose question is in `known`;
    those of files and data sets stay, to be named as overlaps. `trained`: families of the training.

    Raises DataError where a file or a data set cannot be read.
    """
    chosen: list[Problem] = []
    for family in suite.families:
        if suite.untrained and family.name in trained:
            continue
        own_seed = int(content_key(seed, "suite", suite.name, family.name)[:8], 16) >> 1
        drawn = family_problems(family.name, family.options, own_seed, 4 * suite.items)
        fresh = {p.question: p for p in drawn if p.question not in known}
        chosen += list(fresh.values())[: suite.items]
    if suite.file:
        chosen += jsonl_problems(folder / suite.file)
    for d in suite.datasets:
        rows = dataset_problems(**dict(d))
        chosen += sorted(rows, key=lambda p: p.key)[: suite.items]
    return sorted(chosen, key=lambda p: p.key)


def styled(
    messages: Sequence[Message], style: Style, shots: Sequence[tuple[Message, Message]]
) -> tuple[Message, ...] | None:
    """`messages` (system, question) asked in a style; None where the style does not apply."""
    system, question = messages[0], messages[-1].content
    said = question
    for words, translation in style.replace:
        said = said.replace(words, translation)
    if (style.replace and said == question) or (style.shots and not shots):
        return None
    said = style.text.replace("{question}", said)
    if style.lower:
        said = said.lower()
    if style.system is not None:
        system = system.model_copy(update={"content": style.system})
    # An empty one stays: without, many templates write a system prompt of their own.
    before = [m for m in (system, *messages[1:-1]) if m.content or style.system == ""]
    turns = [turn for shot in shots[: style.shots] for turn in shot]
    return (*before, *turns, Message(role="user", content=said))
