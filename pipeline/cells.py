"""One student of a study: taught by its own choice, examined on the items all students share.

A study's students stand in folders of their own and share the problems and traces of one run. What
a student answered is kept (`trained.json`), its weights are not.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

from pydantic import ValidationError

from pipeline.all import execute, stages
from pipeline.examine import SFT_STAGE, checkpoint_rung, examine
from pipeline.imported import share_imported
from pipeline.ladder import greedy
from pipeline.memory import give_back_memory, keep_freed_memory
from pipeline.progress import Progress
from pipeline.recipe import Recipe, StudentOptions
from pipeline.records import Example, Problem, content_key
from pipeline.run import SCRATCH, Context, Manifest, RunDir, Stage
from pipeline.store import read_records, write_file, write_json
from pipeline.student import student_checkpoint
from pipeline.supervise import rendered_ids
from pipeline.tasks.judge import Judge
from pipeline.transfer import ask_rung
from pipeline.transfer_questions import Questions
from pipeline.transfer_suites import Suites, suites_key
from pipeline.transfer_summary import right_by_suite
from serve.errors import DataError
from serve.messages import Record

SHARED = ("01-problems", "02-traces", "02-general", "03-references", "03-curated")
EXAMPLES_STAGE = "04-examples"
TRAINED = "trained.json"
MEASURED = "steps.jsonl"


class Trained(Record):
    """What one student was taught, at which cost, and which items it got right.

    `supervised_tokens` are those of all epochs together, `tokens_per_trace` those that its view
    takes of a trace in one; `updates` of the weights. `right` is by item, `suites` by suite and
    item.
    """

    fingerprint: str
    examples: int
    epochs: int
    supervised_tokens: int
    trained_tokens: int
    updates: int
    took_s: float
    mean_answer_tokens: float
    right: dict[str, bool]
    tokens_per_trace: float
    suites: dict[str, dict[str, bool]]

    @property
    def accuracy(self) -> float:
        return sum(self.right.values()) / len(self.right)


def trained(
    base: RunDir,
    root: Path,
    recipe: Recipe,
    problems: Sequence[Problem],
    suites: tuple[Suites, Path],
    progress: Progress,
    like: Trained | None = None,
) -> Trained:
    """Teach a student below `root` by `recipe` and examine it, unless that was done already.

    `base` has the problems and traces; `suites` are asked beside `problems`. `like`: learn from
    about as many supervised tokens as that student, by more epochs where one does not have them, in
    about as many updates, by another size of batch. Raises DataError when the recipe's view can
    make no example of the traces.
    """
    run = RunDir(root)
    with run.locked(), run.logged():
        _share(base, run)
        execute(run, recipe, progress, until=EXAMPLES_STAGE)
        hand_on(run.root / EXAMPLES_STAGE / SCRATCH / MEASURED, root.parent / MEASURED)
        made = _manifest(run, recipe, EXAMPLES_STAGE)
        if like is not None:
            length = _mean_length(run.root / EXAMPLES_STAGE / "examples.jsonl", recipe.student)
            recipe = _matched(recipe, made.counts, length, like)
        asked = content_key(
            recipe.asked_student.system,
            recipe.evaluate.model_dump(mode="json"),
            suites_key(suites),
        )
        stage = _stage(recipe, SFT_STAGE)
        planned = run.fingerprint(stage, {EXAMPLES_STAGE: made}, recipe.run.seed)
        fingerprint = content_key(planned, asked, sorted(p.key for p in problems))
        known = _known(root / TRAINED, fingerprint)
        if known is None:
            execute(run, recipe, progress, until=SFT_STAGE)
            known = _examined(run, recipe, problems, suites, fingerprint, progress)
            write_json(root / TRAINED, known.model_dump(mode="json"))
            # 270 MB a student, and a study has dozens.
            (root / SFT_STAGE / "model.safetensors").unlink()
    return known


def _share(base: RunDir, run: RunDir) -> None:
    for name in SHARED:
        shutil.rmtree(run.root / name, ignore_errors=True)
        if (base.root / name).is_dir():
            ignored = shutil.ignore_patterns(SCRATCH)
            shutil.copytree(base.root / name, run.root / name, ignore=ignored)
    share_imported(base.root, run.root)
    hand_on(run.root.parent / MEASURED, run.root / EXAMPLES_STAGE / SCRATCH / MEASURED)


def hand_on(source: Path, target: Path) -> None:
    """What one student asked or measured, the next one need not again; a longer log stays."""
    if source.exists() and not (target.exists() and target.stat().st_size > source.stat().st_size):
        target.parent.mkdir(parents=True, exist_ok=True)
        write_file(target, source.read_bytes())


def _mean_length(path: Path, student: StudentOptions) -> float:
    """Tokens of an example, prompt included."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(student_checkpoint(student), local_files_only=True)
    return mean(len(rendered_ids(e, tokenizer)) for e in read_records(path, Example))


def _matched(recipe: Recipe, made: Mapping[str, int], length: float, like: Trained) -> Recipe:
    """Epochs for the tokens of another student, and the batch that comes nearest to its updates.

    `length` is that of an example: no more tokens are read at a time than of the other's examples,
    so that a pass takes no more memory. Packed rows hold prompts too, so that nobody knows here how
    many there will be: their batch stays.
    """
    epochs = max(recipe.sft.epochs, round(like.supervised_tokens / made["supervised_tokens"]))
    sft, plan = recipe.sft.model_copy(update={"epochs": epochs}), recipe.training
    if not plan.packing:
        at_a_time, _ = plan.steps_of(sft.batch_examples)
        most = max(1, int(at_a_time * like.trained_tokens / (like.examples * like.epochs) / length))
        share, parts = _share_of(made["examples"], epochs, like.updates, plan.processes, most)
        sft = sft.model_copy(update={"batch_examples": plan.processes * share})
        plan = plan.model_copy(update={"device_examples": parts})
    return recipe.model_copy(update={"sft": sft, "training": plan})


def _share_of(
    examples: int, epochs: int, updates: int, processes: int, most: int
) -> tuple[int, int]:
    """Examples of a batch for each process, and how many of these it reads at a time.

    A share is read in equal parts, of `most` or at least half of that. Of two that miss `updates`
    by as many the one with fewer is taken, of equal ones the one that fills its last batch.
    """
    found = []
    for share in range(1, math.ceil(examples / processes) + 1):
        parts = (n for n in range(most, max(most // 2, 1) - 1, -1) if share % n == 0)
        part = share if share <= most else next(parts, None)
        if part is not None:
            made = epochs * math.ceil(examples / (processes * share))
            found.append((abs(made - updates), made, share, part))
    return min(found)[2:]


def _stage(recipe: Recipe, name: str) -> Stage:
    return next(stage for stage in stages(recipe) if stage.name == name)


def _manifest(run: RunDir, recipe: Recipe, name: str) -> Manifest:
    found = run.manifest(_stage(recipe, name))
    if found is None:
        raise DataError(f"{run.root / name} has no manifest")
    return found


def _known(path: Path, fingerprint: str) -> Trained | None:
    try:
        found = Trained.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
    return found if found.fingerprint == fingerprint else None


def _examined(
    run: RunDir,
    recipe: Recipe,
    problems: Sequence[Problem],
    suites: tuple[Suites, Path],
    fingerprint: str,
    progress: Progress,
) -> Trained:
    options = recipe.evaluate.greedy
    rung = checkpoint_rung(run.root / SFT_STAGE, recipe.asked_student, options)
    keep_freed_memory(one_heap=True)
    context = Context.of(recipe, progress)
    with Judge() as judge:
        judged = examine(rung, problems, options, run.root / "evaluated", judge, context)
        questions = Questions(run.root, recipe, suites, [])
        log = run.root / "evaluated" / SCRATCH / "suites.jsonl"
        rows = ask_rung(rung, questions, log, judge, context, sampled=False)
    give_back_memory()
    keep_freed_memory()
    done = _manifest(run, recipe, SFT_STAGE)
    return Trained(
        fingerprint=fingerprint,
        examples=done.counts["examples"],
        epochs=recipe.sft.epochs,
        supervised_tokens=done.counts["supervised_tokens"],
        trained_tokens=done.counts["trained_tokens"],
        updates=done.counts["steps"],
        took_s=done.took_s,
        mean_answer_tokens=round(mean(j.completion.completion_tokens for j in judged), 1),
        right=greedy(judged),
        tokens_per_trace=_manifest(run, recipe, EXAMPLES_STAGE).counts["tokens_per_trace"],
        suites=right_by_suite(rows),
    )
