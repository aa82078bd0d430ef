"""Which traces' examples a student of a study gets: the same ones first, whatever the view."""

from pipeline.examples import _within, distinct
from pipeline.recipe import SuperviseOptions
from pipeline.records import Example


def made(view, traces, tokens):
    return [
        Example(
            key=f"{view} of {trace}",
            family="f",
            prompt=({"role": "user", "content": trace},),
            completion="x" * tokens,
            trace=trace,
        )
        for trace in traces
    ]


def chosen(examples, tokens, seed=0):
    options = SuperviseOptions(tokens=tokens)
    found = _within(examples, options, lambda e: len(e.completion), seed)
    return {example.trace for example in found}


TRACES = [f"t{n}" for n in range(40)]


def test_a_view_of_short_examples_learns_the_traces_of_a_long_one_and_more():
    long, short = (chosen(made(view, TRACES, n), 100) for view, n in (("full", 10), ("steps", 5)))
    assert (len(long), len(short)) == (10, 20)
    assert long < short
    assert chosen(made("full", TRACES, 10), 100, seed=1) != long


def test_two_examples_of_a_trace_are_taken_one_after_the_other():
    both = [*made("answer", TRACES, 2), *made("full", TRACES, 8)]
    assert chosen(both, 100) == chosen(made("full", TRACES, 10), 100)


def test_what_two_traces_of_a_problem_say_alike_is_learnt_once():
    first, second = made("answer", ["t"], 3), made("answer", ["u"], 3)
    again = [second[0].model_copy(update={"prompt": first[0].prompt})]
    assert distinct([*first, *second, *again]) == [*first, *second]
