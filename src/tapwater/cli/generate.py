"""`tapwater generate`: continue one text, or fill a hole in it."""

import json
import sys
from typing import Annotated

from cyclopts import Parameter

from tapwater.cli.common import DEFAULT_MODEL, ConfigFile, Overrides, console, load, split_overrides
from tapwater.cli.output import AsJson
from tapwater.cli.speed import Stopwatch
from tapwater.config import load_run
from tapwater.errors import RequestError

JSON_HELP = (
    "Print one JSON object with text, finish_reason, usage and seconds when done, instead of the text as it comes."
)


def generate(
    model: str = DEFAULT_MODEL,
    /,
    *overrides: Overrides,
    prompt: Annotated[str, Parameter(allow_leading_hyphen=True)],
    suffix: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    suffix_first: Annotated[bool, Parameter(negative="")] = False,
    max_tokens: int = 256,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int | None = None,
    stop: Annotated[list[str] | None, Parameter(negative="")] = None,
    as_json: Annotated[AsJson, Parameter(help=JSON_HELP)] = False,
    config: ConfigFile = None,
) -> None:
    """Continue a text, or write what is missing within one.

    The text is taken as it stands, no chat template is put around it; around a hole control strings in it are ordinary
    text. Only what is written goes to stdout.

    Parameters
    ----------
    model
        What continues it; pulled first when it is not on this machine.
    prompt
        The text to continue, or - to read it from standard input.
    suffix
        The text after a hole that begins where the prompt ends: the hole is filled, by a model that learned it.
        Always the text itself, - too.
    suffix_first
        Show the suffix before the prompt, to a model that learned it so (`fim.spm_share`).
    max_tokens
        The most tokens to generate.
    temperature
        0 always takes the likeliest token.
    top_p
        Draw from the likeliest tokens that have this probability together.
    seed
        Makes the draws repeatable.
    stop
        End before this text; may be given several times.
    """
    model, settings = split_overrides(model, overrides)
    run = load_run(config, settings)
    if suffix_first and suffix is None:
        raise RequestError("--suffix-first needs --suffix, the text after the hole", param="suffix_first")
    text = _standard_input() if prompt == "-" else prompt
    from tapwater.engine import SamplingParams

    params = SamplingParams(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    llm = load(model, run)
    try:
        watch = Stopwatch()
        pieces = []
        asked = text if suffix is None else llm.encode_infill(text, suffix, suffix_first=suffix_first)
        for delta in llm.stream(asked, params, stop or ()):
            watch.tick(delta.usage.completion_tokens)
            pieces.append(delta.text)
            if not as_json:
                sys.stdout.write(delta.text)
                sys.stdout.flush()
        if as_json:
            result = {
                "text": "".join(pieces),
                "finish_reason": delta.finish_reason,
                "prompt_tokens": delta.usage.prompt_tokens,
                "completion_tokens": delta.usage.completion_tokens,
                "seconds": round(watch.seconds, 3),
            }
            sys.stdout.write(json.dumps(result, ensure_ascii=False))
        sys.stdout.write("\n")
        sys.stdout.flush()
    finally:
        llm.close()
    console().print(f"{watch.summary} · ended by {delta.finish_reason}", style="dim", highlight=False)


def _standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise RequestError(f"standard input is not UTF-8 text: {error}", param="prompt") from None
