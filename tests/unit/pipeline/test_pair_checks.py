"""What is said of a pair before anything runs."""

import pytest

from pipeline import pair_method
from pipeline.on_policy_options import OnPolicyOptions
from pipeline.pair_checks import Finding, practice_findings, shown_examples, shown_view
from pipeline.pair_method import choose_method
from pipeline.recipe import TeacherOptions
from pipeline.recipe_files import find_recipe, load_recipe
from serve.engines.http import NotUnderstood
from serve.errors import DataError
from serve.messages import Completion
from tests.unit.pipeline.tiny import checkpoint


def recipe(*wishes):
    return load_recipe(find_recipe("default"), wishes)


def test_options_that_a_method_has_no_use_for_are_named():
    said = list(practice_findings(recipe(), "exact"))
    assert said[0] == Finding(
        "note", "teacher reads the student's own prompt, without worked examples"
    )
    unheeded = {finding.text.split()[0] for finding in said[1:]}
    assert unheeded == {"on_policy.passes", "on_policy.continuations", "on_policy.merge"}
    (graded,) = practice_findings(recipe(), "aligned")
    assert graded.text == "teacher grades in its own prompt, without <think> tags"


def test_of_a_preset_nothing_is_said():
    texts = [f.text for f in practice_findings(recipe("on_policy.preset='gkd'"), "exact")]
    assert texts[1:] == ["on_policy.continuations changes nothing for method exact"]


def test_examples_are_shown_as_the_view_learns_them(tmp_path):
    student = checkpoint(tmp_path / "student", 0)
    learnt = {}
    for wish in ("full", "answer", "full+answer", "steps"):
        chosen = recipe(f'supervise.view="{wish}"', 'on_policy.method="none"')
        view = shown_view(chosen)
        texts = shown_examples(chosen, student, view)
        learnt[wish] = (view, len(texts), texts[0].plain.replace(" ", "").count("Answer:"))
    assert learnt["full"] == learnt["steps"] == ("full", 3, 1)
    assert learnt["answer"][:2] == ("answer", 3)
    assert learnt["full+answer"][:2] == ("full+answer", 6)


class Server:
    """One that goes on from given words, or begins anew."""

    def __init__(self, text):
        self.text = text

    def generate(self, requests):
        yield (
            requests[0].key,
            Completion(text=self.text, finish="length", prompt_tokens=1, completion_tokens=4),
        )

    def close(self):
        pass


class Strict(Server):
    """Refuses fields that it does not know."""

    def __init__(self):
        super().__init__("")

    def generate(self, requests):
        raise NotUnderstood("status 422: continue_final_message")


@pytest.mark.parametrize("method", ["recover", "span"])
def test_a_server_that_does_not_go_on_is_refused_before_anything_is_paid(
    method, tmp_path, monkeypatch
):
    teacher = TeacherOptions(engine="http", model="m", base_url="http://x/v1", system="s")
    options = OnPolicyOptions(method=method, continuations=True)
    monkeypatch.setattr(pair_method, "_grades", lambda _: True)
    monkeypatch.setattr(pair_method, "open_teacher", lambda _: Server("1, 2, 3"))
    with pytest.raises(DataError, match="the server does not go on from words that it is given"):
        choose_method(teacher, options, tmp_path)
    monkeypatch.setattr(pair_method, "open_teacher", lambda _: Strict())
    with pytest.raises(DataError, match="the server does not go on from words that it is given"):
        choose_method(teacher, options, tmp_path)
    monkeypatch.setattr(pair_method, "open_teacher", lambda _: Server(" 10, 11"))
    assert choose_method(teacher, options, tmp_path).method == method
