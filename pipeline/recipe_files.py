"""Recipes as files: TOML in, with another recipe's lines below its own where it extends one."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.on_policy_options import PRESETS
from pipeline.recipe import Recipe
from serve.errors import DataError, RecipeError

FOLDER = Path(__file__).parent / "recipes"
EXTENDS, ANEW = "extends", "anew"
# The one option that stands for others.
PRESET = "on_policy.preset="


def find_recipe(name: str) -> Path:
    """A path as given, or the built-in recipe of that name. Raises RecipeError."""
    for candidate in (Path(name), FOLDER / f"{name}.toml"):
        if candidate.is_file():
            return candidate
    raise RecipeError(
        f"recipe {name!r} is not there", hint=f"built in: {_built_in()}; or give a path"
    )


def load_recipe(path: Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """Read a recipe; `overrides` are `section.key=value` with the value in TOML.

    `extends = "NAME"` (a built-in recipe, or a path beside this file) puts this file's lines over
    that recipe's, key by key; only the run's name is not taken over, and nothing of a section that
    says `anew = true`.

    Raises RecipeError with the file, the field and the value that was refused.
    """
    data = _read(path, ())
    for override in sorted(overrides, key=lambda text: not text.startswith(PRESET)):
        _apply(data, override)
        if override.startswith(PRESET):  # goes before what the file says, as a file's own would not
            section = data["on_policy"]
            for key in PRESETS.get(section["preset"], {}):
                section.pop(key, None)
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise RecipeError(f"{path.name}: {_first_fault(error)}") from error


def _built_in() -> str:
    """The recipes by name, and the folders that hold more."""
    folders = sorted({f"{path.parent.name}/…" for path in FOLDER.glob("*/*.toml")})
    return ", ".join([*sorted(path.stem for path in FOLDER.glob("*.toml")), *folders])


def _read(path: Path, readers: tuple[Path, ...]) -> dict[str, Any]:
    """The file's sections over those of the recipe it extends. `readers` extend this one."""
    if path.resolve() in readers:
        raise RecipeError(f"recipe {path.name} extends itself")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"cannot read recipe {path.name}: {error}") from error
    if EXTENDS not in data:
        return data
    name = data.pop(EXTENDS)
    if not isinstance(name, str):
        raise RecipeError(f"{path.name}: extends = {name!r} is not the name of a recipe")
    beside = path.parent / name
    below = _read(beside if beside.is_file() else find_recipe(name), (*readers, path.resolve()))
    below.get("run", {}).pop("name", None)
    merged = _over(below, data)
    merged.setdefault("run", {}).setdefault("name", path.stem)
    return merged


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    if above.pop(ANEW, False):
        return above
    both = {
        key: _over(below[key], value)
        if isinstance(value, dict) and isinstance(below.get(key), dict)
        else value
        for key, value in above.items()
    }
    return {**below, **both}


def recorded_recipe(root: Path) -> Recipe:
    """The recipe of a run, as it was resolved. Raises DataError where there is no run."""
    try:
        text = (root / "recipe.json").read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{root} is no run: {error.strerror}") from error
    return Recipe.model_validate_json(text)


def _apply(data: dict[str, Any], override: str) -> None:
    dotted, sign, value = override.partition("=")
    section, _, key = dotted.partition(".")
    if not sign or not key:
        raise RecipeError(f"--set {override!r} is not section.key=value")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value
    target = data.setdefault(section, {})
    if not isinstance(target, dict):
        raise RecipeError(f"--set {override!r}: {section} is not a section")
    target[key] = parsed


def _first_fault(error: ValidationError) -> str:
    fault = error.errors()[0]
    field = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"unknown key {field}"
    if fault["type"] == "missing":
        return f"missing key {field}"
    said = fault["msg"].removeprefix("Value error, ")
    # A rule between several keys names them itself; its input is a section or the whole recipe.
    if not isinstance(fault["input"], dict):
        return f"{field} = {fault['input']!r}: {said}"
    return f"{field}: {said}" if field else said
