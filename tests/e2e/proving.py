"""An artifact proven as the gate does it, and short requests in the student's own style."""

from collections.abc import Iterable
from pathlib import Path

from pipeline.examine import engine_for
from pipeline.recipe_files import find_recipe, load_recipe
from quant.proof import Proof, Reference, prove
from serve.engines.child import load_in_child
from serve.messages import Message, Request, Sampling

RECIPE = load_recipe(find_recipe("smoke"))


def proof(path: Path, reference: Reference, exact: bool = False) -> Proof:
    return prove(
        path,
        lambda: load_in_child(engine_for(path), path=path, slots=4, context_tokens=1024),
        reference,
        exact,
    )


def requests(numbers: Iterable[int], **options) -> list[Request]:
    """Sums of numbers of several lengths, each with a seed of its own."""
    return [
        Request(
            key=str(n),
            messages=(
                Message(role="system", content=RECIPE.student.system),
                Message(role="user", content=f"State the final answer: {n} + {7 * n} ="),
            ),
            sampling=Sampling(**{"max_tokens": 24, "seed": n, **options}),
        )
        for n in numbers
    ]
