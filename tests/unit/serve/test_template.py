import time

import pytest

import serve.template as template_module
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
    "{{ 'x'.ljust(10000000000) }}",
    "{{ 'x'|center(10000000000) }}",
    "{{ '%10000000000d'|format(1) }}",
    "{{ '%(a)10000000000d'|format(a=1) }}",
    "{{ '{:10000000000}'.format(1) }}",
    "{{ '{0:{1}}'.format(1, 10000000000) }}",
    "{% set n = namespace(x='ab') %}{% for a in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "{% set n = namespace(x='ab') %}{% for a in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "{{ 'a\nb'|indent(10000000000) }}",
    "{{ messages|tojson(indent=10000000000) }}",
    "{{ 1 / 0 }}",
    "{{ '{}'.format() }}",
    "{{ 'a'.encode('bogus') }}",
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


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
        "{{ f(100) }}",
    ],
)
def test_work_that_writes_nothing_ends_at_the_time_limit(source, monkeypatch):
    monkeypatch.setattr(template_module, "TIME_LIMIT_S", 0.2)
    started_s = time.monotonic()
    with pytest.raises(UntrustedFile, match=r"fails: over 0\.2 s"):
        ChatTemplate(source).render(TURNS)
    assert time.monotonic() - started_s < 2.0


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ '{} of {}: 5000'.format(1, 2) }}", "1 of 2: 5000"),
        ("a{% generation %}{{ 'b' }}c{% endgeneration %}d", "abcd"),
        ("{{ '{:>4}|{:.2f}'.format(1, 2) }}", "   1|2.00"),
        ("{{ '%s: 5000 %05d, %d%%'|format('a', 3, 4) }}", "a: 5000 00003, 4%"),
        ("{{ 'a'|center(3) }}{{ 'a\nb'|indent(2) }}", " a a\n  b"),
        ("{{ [1]|tojson(indent=2) }}{{ [1] + [2] }}{{ 'a' + 'b' }}", "[\n  1\n][1, 2]ab"),
        ("{% for a in 'ab' %}{{ a ~ loop.index }}{% endfor %}", "a1b2"),
    ],
)
def test_what_builds_nothing_large_is_no_harm(source, text):
    assert ChatTemplate(source).render(TURNS) == text


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
