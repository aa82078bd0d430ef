"""Every error Retort raises on purpose, each with the exit code its process ends with.

    RetortError ................ 1
    +-- UsageError ............. 2   a wrong argument or recipe; BusyRun, RecipeError
    |   +-- RecipeError
    |   +-- BusyRun
    +-- DataError .............. 3   bad input: a file, a record, a family that disproves itself
    +-- DiskError .............. 4   a write, rename or fsync failed
    +-- EngineError ............ 5   a model cannot answer, or its budget is spent
    |   +-- CannotDo                 an engine without the verb that was asked of it
    |   +-- EngineEnded              its process died or hung: another one may answer
    +-- TrainingDiverged ....... 6   NaN or infinite loss
    +-- UntrustedFile .......... 8   a file whose hash, format or template is refused
    +-- Interrupted ........... 130  Ctrl-C or SIGTERM; the run can be resumed

Exit codes 7 and 9 belong to the gate (failed, inconclusive), which is a verdict and not an error.
"""

from __future__ import annotations


class RetortError(Exception):
    """Base of the tree. `hint` is at most one line saying what to do next."""

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        text = super().__str__()
        return f"{text}\nhint: {self.hint}" if self.hint else text


class UsageError(RetortError):
    exit_code = 2


class RecipeError(UsageError):
    pass


class BusyRun(UsageError):
    pass


class DataError(RetortError):
    exit_code = 3


class DiskError(RetortError):
    exit_code = 4


class EngineError(RetortError):
    exit_code = 5


class CannotDo(EngineError):
    pass


class EngineEnded(EngineError):
    pass


class TrainingDiverged(RetortError):
    exit_code = 6


class UntrustedFile(RetortError):
    exit_code = 8


class Interrupted(RetortError):
    exit_code = 130
