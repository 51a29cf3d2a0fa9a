"""Chat templates: Jinja programs that come with a model and turn messages into one prompt."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tapwater.errors import CheckpointError, RequestError

Message = Mapping[str, object]
"""One chat message as JSON data: `role`, `content` and whatever else the model's template reads."""


def render_chat(
    template: str | None,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool,
    bos_token: str | None,
    eos_token: str | None,
) -> str:
    """Render `messages` into the prompt text the model was trained on, control tokens included.

    The template sees what transformers' `apply_chat_template` shows it, and runs in Jinja's immutable sandbox.
    Raises `RequestError` if there is no template or it rejects the messages, `CheckpointError` if it is not Jinja.
    """
    if template is None:
        raise RequestError(
            "This model has no chat template, so it cannot take messages; "
            "send a plain prompt, or put a chat_template.jinja beside its tokenizer.json",
            param="messages",
        )
    program = compile_template(template)
    try:
        return program.render(
            messages=messages,
            tools=None,  # templates ask `tools is not none`, which an undefined name would answer with yes
            documents=None,
            add_generation_prompt=add_generation_prompt,
            bos_token=bos_token or "",
            eos_token=eos_token or "",
        )
    except Exception as error:  # the template is foreign code: whatever it raises is about these messages
        raise RequestError(f"The model's chat template rejects these messages: {error}", param="messages") from error


@lru_cache(maxsize=8)
def compile_template(template: str) -> jinja2.Template:
    """The program of a chat template; CheckpointError, naming the line, if it is not Jinja."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _GenerationTag]
    )
    environment.filters["tojson"] = _tojson
    functions = {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    try:
        return environment.from_string(template, globals=functions)
    except jinja2.TemplateSyntaxError as error:
        raise CheckpointError(f"The model's chat template is not valid Jinja, line {error.lineno}: {error}") from error


class _GenerationTag(Extension):
    """`{% generation %}...{% endgeneration %}`, which marks assistant text for training and renders as it stands."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own declaration)

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=lineno)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON; Jinja's own filter escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
