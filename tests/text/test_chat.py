"""Oracle: transformers' own template renderer."""

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from tapwater.errors import CheckpointError, RequestError
from tapwater.text import render_chat

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

MESSAGES = [
    {"role": "system", "content": "Be brief. <b>&</b>"},
    {"role": "user", "content": "  Hi, 你好 'there'\n"},
    {"role": "assistant", "content": "Hello!\n"},
    {"role": "user", "content": "Bye"},
]

TEMPLATES = {
    "chatml": CHATML,
    "deepseek-like": (
        "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
        "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
        "{{ 'User: ' + message['content'] + '\n\n' }}{% elif message['role'] == 'assistant' %}"
        "{{ 'Assistant: ' + message['content'] + eos_token }}{% else %}{{ message['content'] + '\n\n' }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
    ),
    "blocks on their own lines": (
        "{% for message in messages %}\n    {% if message.role == 'user' %}\n  U {{ message.content | trim }}\n"
        "    {% endif %}\n{% endfor %}\n{% if add_generation_prompt %}\nA:{% endif %}\n"
    ),
    "loop controls and namespace": (
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}"
        "{% set ns.n = ns.n + 1 %}{{ ns.n }}:{{ m.content }}|{% if ns.n > 1 %}{% break %}{% endif %}{% endfor %}"
    ),
    "json": "{{ messages | tojson }}{{ messages | tojson(indent=2) }}{{ dict(b=1, a=2) | tojson(sort_keys=true) }}",
    "no tools": (
        "{% if tools is not none %}TOOLS{% endif %}{% if documents is not none %}DOCS{% endif %}{{ bos_token }}."
    ),
    "date": "{{ strftime_now('%Y') }} {% if strftime_now is defined %}dated{% endif %}",
    "generation": (
        "{% for m in messages %}{% generation %}{{ m.content }}{% set x = 1 %}{% endgeneration %}{{ x }}{% endfor %}"
    ),
}


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES.keys())
def test_renders_as_transformers_does(template: str, add_generation_prompt: bool) -> None:
    (expected,), _ = render_jinja_template(
        conversations=[MESSAGES],
        chat_template=template,
        add_generation_prompt=add_generation_prompt,
        bos_token="<s>",
        eos_token="</s>",
    )
    got = render_chat(
        template, MESSAGES, add_generation_prompt=add_generation_prompt, bos_token="<s>", eos_token="</s>"
    )
    assert got == expected


def render(template: str | None, messages: list[dict[str, object]] = MESSAGES) -> str:
    return render_chat(template, messages, add_generation_prompt=True, bos_token=None, eos_token=None)


def test_missing_special_tokens_render_as_nothing() -> None:
    assert render("[{{ bos_token }}{{ eos_token }}]") == "[]"


def test_missing_template_says_what_to_do() -> None:
    with pytest.raises(RequestError, match=r"no chat template.*chat_template\.jinja"):
        render(None)


def test_template_that_raises_gives_its_message() -> None:
    with pytest.raises(RequestError, match="roles must alternate") as caught:
        render("{{ raise_exception('roles must alternate') }}")
    assert caught.value.param == "messages"


@pytest.mark.parametrize("content", [None, 3])
def test_content_of_the_wrong_type_is_refused(content: object) -> None:
    with pytest.raises(RequestError, match="rejects these messages"):
        render(CHATML, [{"role": "user", "content": content}])


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ range(10**9) | list }}",
    ],
)
def test_sandbox_holds(template: str) -> None:
    with pytest.raises(RequestError):
        render(template)


def test_template_that_is_not_jinja_names_the_line() -> None:
    with pytest.raises(CheckpointError, match="line 2"):
        render("fine\n{% for %}")
