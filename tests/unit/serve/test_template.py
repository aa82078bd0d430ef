import pytest

from serve.errors import UntrustedFile
from serve.messages import Message
from serve.template import ChatTemplate

TURNS = [Message(role="user", content="hi")]
HOSTILE = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ messages.append({'role': 'user', 'content': 'x'}) }}",
    "{{ 'x' * 200000000 }}",
    "{{ '%200000000d' % 1 }}",
    "{{ 2 ** 100000000 }}",
    "{% for a in range(100000) %}{{ 'x' * 1 }}{% endfor %}",
    "{% for a in range(99999) %}{{ messages[0].content }}{{ 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'"
    " ~ 'bbbbbbbbbbbbbbbbbbbbbbbbbbbb' }}{% endfor %}",
    "{{ raise_exception('no') }}",
    "{{ undefined.attribute }}",
    "{% if %}",
    "{% include '/etc/passwd' %}",
]


@pytest.mark.parametrize("source", HOSTILE)
def test_no_hostile_template_renders(source):
    with pytest.raises(UntrustedFile) as caught:
        ChatTemplate(source, origin="model.gguf").render(TURNS)
    assert "model.gguf" in str(caught.value)


def test_an_ordinary_template_renders():
    source = (
        "{% for m in messages %}<|{{ m['role'] }}|>{{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    template = ChatTemplate(source, eos="</s>")
    assert template.render(TURNS) == "<|user|>hi</s><|assistant|>"
    assert template.render(TURNS, add_generation_prompt=False) == "<|user|>hi</s>"


def test_a_template_that_is_too_long_is_refused():
    with pytest.raises(UntrustedFile, match="limit 200000"):
        ChatTemplate("x" * 200_001)
