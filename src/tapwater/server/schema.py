"""The request bodies: what is honoured, what is accepted because it cannot change the answer, what is refused by name.

A null means that the field is absent, as OpenAI's clients use it.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from tapwater.engine.request import MAX_LOGPROBS, SamplingParams
from tapwater.errors import RequestError

MAX_CHOICES = 8
MAX_PROMPTS = 32
MAX_STOPS = 16
MAX_COMPLETION_LOGPROBS = 5
MAX_TOKENS = 2**31  # any context is shorter; Python refuses to print the numbers far beyond
COMPLETION_MAX_TOKENS = 16  # OpenAI's default for /v1/completions

TokenLimit = Annotated[int, Field(ge=1, le=MAX_TOKENS)]

# OpenAI's fields that are not served, each with the values that ask for nothing and are therefore accepted.
CHAT_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "audio": (),
    "function_call": ("none",),
    "functions": ([],),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (True, False),  # says nothing without tools
    "prediction": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": ("in_memory",),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("none",),
    "tools": ([],),
    "verbosity": (),
    "web_search_options": (),
}
COMPLETION_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {"echo": (False,), "suffix": ()}
STREAM_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {"include_obfuscation": (False,)}
# No chat template of the family renders a name, and tools come later: accepting these would drop them in silence.
# An answer sent back as the next turn carries most of them as null.
MESSAGE_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "name": (),
    "refusal": (),
    "tool_call_id": (),
    "tool_calls": ([],),
}
PART_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {"prompt_cache_breakpoint": ()}


class Strict(BaseModel):
    """No coercion (true is not 1, "5" is not 5), no NaN or infinity, no unknown field."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)
    unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _drop_what_asks_for_nothing(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        return {name: value for name, value in fields.items() if not cls._asks_for_nothing(name, value)}

    @classmethod
    def _asks_for_nothing(cls, name: str, value: Any) -> bool:
        if value is None:  # a field nobody knows stays an error when it is null
            return name in cls.model_fields or name in cls.unsupported
        return any(type(value) is type(each) and value == each for each in cls.unsupported.get(name, ()))


def _text_parts(content: Any) -> Any:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise PydanticCustomError("content_type", "Input should be a string or a list of text parts")
    return content


def _stop_list(stop: Any) -> Any:
    if isinstance(stop, str):
        return [stop]
    if not isinstance(stop, list):
        raise PydanticCustomError("stop_type", "Input should be a string or a list of strings")
    return stop


def _prompt_list(prompt: Any) -> Any:
    """A list of strings and lists of token ids, from any of the four forms OpenAI takes."""
    prompts = [prompt] if isinstance(prompt, str) or _is_token_ids(prompt) else prompt
    if not isinstance(prompts, list) or not all(isinstance(each, str) or _is_token_ids(each) for each in prompts):
        raise PydanticCustomError(
            "prompt_type", "Input should be a string, a list of strings, a list of token ids or a list of such lists"
        )
    return prompts


def _is_token_ids(prompt: Any) -> bool:
    return isinstance(prompt, list) and bool(prompt) and all(type(each) is int for each in prompt)


def _token_biases(biases: Any) -> Any:
    """JSON's keys are strings: make token ids of them."""
    if not isinstance(biases, dict):
        return biases
    for key in biases:
        # one spelling for each id, or two keys would mean one token
        if not (key.isascii() and key.isdigit() and len(key) < 10 and key == str(int(key))):
            raise PydanticCustomError(
                "bias_key", "Keys should be token ids such as '42', not {key}", {"key": repr(key[:40])}
            )
    return {int(key): bias for key, bias in biases.items()}


class TextPart(Strict):
    """One part of a message's content; images, audio and files are refused by their type."""

    type: Literal["text"]
    text: str
    unsupported = PART_UNSUPPORTED


class Message(Strict):
    """One turn of a conversation. `developer` is OpenAI's newer name for `system` and means the same here."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[TextPart], BeforeValidator(_text_parts)]
    unsupported = MESSAGE_UNSUPPORTED

    def rendered(self) -> dict[str, str]:
        """What the chat template sees: the role, and the text of all parts joined."""
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": "".join(part.text for part in self.content)}


class StreamOptions(Strict):
    include_usage: bool = False
    unsupported = STREAM_UNSUPPORTED


class GenerationRequest(Strict):
    """The fields both endpoints share."""

    model: str
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    max_tokens: TokenLimit | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Annotated[
        list[Annotated[str, Field(min_length=1)]], Field(max_length=MAX_STOPS), BeforeValidator(_stop_list)
    ] = []
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    logit_bias: Annotated[dict[int, Annotated[float, Field(ge=-100, le=100)]], BeforeValidator(_token_biases)] = {}
    stream: bool = False
    stream_options: StreamOptions | None = None
    # Extensions, spelt as other open servers spell them
    top_k: Annotated[int, Field(ge=0)] = 0  # extension; 0: all
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0  # extension; relative to the likeliest token
    repetition_penalty: Annotated[float, Field(ge=1e-3, le=1e3)] = 1.0  # extension; of tokens in prompt or answer
    ignore_eos: bool = False  # extension; generate to the limit
    user: str = ""  # without effect: nothing is kept or limited per user

    @model_validator(mode="after")
    def _check_stream_options(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise RequestError("stream_options needs stream: true.", param="stream_options", code="invalid_value")
        return self

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self, max_tokens: int | None, logprobs: int | None) -> list[SamplingParams]:
        """One SamplingParams per choice; a given seed counts up, so that choices differ and the whole repeats."""
        return [
            SamplingParams(
                max_tokens=max_tokens,
                temperature=self.temperature,
                top_k=self.top_k,
                top_p=self.top_p,
                min_p=self.min_p,
                seed=None if self.seed is None else self.seed + choice,
                repetition_penalty=self.repetition_penalty,
                presence_penalty=self.presence_penalty,
                frequency_penalty=self.frequency_penalty,
                logit_bias=self.logit_bias,
                logprobs=logprobs,
                ignore_eos=self.ignore_eos,
            )
            for choice in range(self.n)
        ]


class ChatRequest(GenerationRequest):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: TokenLimit | None = None  # OpenAI's newer name for max_tokens
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    metadata: dict[str, str] = {}  # without effect: labels of stored answers, and none is stored
    safety_identifier: str = ""  # without effect: who asks
    prompt_cache_key: str = ""  # without effect: where to look for a shared prefix
    unsupported = CHAT_UNSUPPORTED

    @model_validator(mode="after")
    def _check_pairs(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise RequestError("top_logprobs needs logprobs: true.", param="top_logprobs", code="invalid_value")
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise RequestError(
                f"max_tokens {self.max_tokens} contradicts max_completion_tokens {self.max_completion_tokens}: "
                "they are two names of one limit.",
                param="max_completion_tokens",
                code="invalid_value",
            )
        return self

    def choices(self) -> list[SamplingParams]:
        """How each choice is sampled; without a limit an answer may fill the context."""
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        return self.sampling(self.max_tokens or self.max_completion_tokens, logprobs)


class CompletionRequest(GenerationRequest):
    """The body of POST /v1/completions."""

    prompt: Annotated[list[str | list[int]], Field(min_length=1, max_length=MAX_PROMPTS), BeforeValidator(_prompt_list)]
    logprobs: Annotated[int, Field(ge=0, le=MAX_COMPLETION_LOGPROBS)] | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None  # must equal n
    unsupported = COMPLETION_UNSUPPORTED

    @model_validator(mode="after")
    def _check_best_of(self) -> Self:
        if self.best_of is not None and self.best_of != self.n:
            raise RequestError(
                f"best_of {self.best_of} is not supported yet: leave it out or make it equal to n ({self.n}).",
                param="best_of",
                code="unsupported_parameter",
            )
        return self

    def choices(self) -> list[SamplingParams]:
        """How each choice of a prompt is sampled."""
        return self.sampling(self.max_tokens or COMPLETION_MAX_TOKENS, self.logprobs)
