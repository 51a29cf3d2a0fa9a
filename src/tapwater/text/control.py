"""Keeping control tokens out of the reach of message text.

A chat template marks turns with control tokens such as `<|im_end|>`. Were the same characters in a message encoded as
that token, whoever writes the message could end the turn and speak as the system. So message text never becomes a
control token: before rendering, each control string inside a message gets a mark after its first character, and the
rendered prompt is encoded in parts that end where the marks were. The model reads the same characters, as ordinary
text. A conversation without such strings is one part and encodes exactly as transformers encodes it.

What counts: every added token marked special, the marks of infilling, and every other added token the template's own
source names (DeepSeek-V3's `<｜User｜>` is not marked special). The last are left alone in assistant messages, where a
model's own tags such as `</think>` are lawful and templates look for them. Plain words a template uses to mark turns,
like DeepSeek-V2's "User: ", are no tokens, so nothing can guard them.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

import tokenizers

from tapwater.errors import RequestError
from tapwater.text.chat import Message

# The marks of fill-in-the-middle, as DeepSeek spells them: begin, hole, end. Where they stand: `tapwater.data.fim`.
FIM_TOKENS = ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>")
MARK = "\ufdd0"  # a Unicode noncharacter: never in text meant for interchange


class ControlStrings:
    """The control strings of one tokenizer and chat template; `mark` messages, render, then `split` the prompt."""

    def __init__(self, added_tokens: Iterable[tokenizers.AddedToken], chat_template: str) -> None:
        added = list(added_tokens)
        special = {token.content for token in added if token.special or token.content in FIM_TOKENS}
        named = {token.content for token in added if token.content in chat_template and not token.content.isspace()}
        self._in_assistant = _starts(special)
        self._elsewhere = _starts(special | named)

    def mark(self, messages: Sequence[Message]) -> list[Message]:
        """Copy `messages` with every control string marked.

        Raises `RequestError` if a text already holds the mark, or if a content is a list of parts: a template joins
        parts, and two harmless ones can make a control string.
        """
        return [self._mark_message(message) for message in messages]

    def mark_text(self, text: str) -> str:
        """The same of a text that is no message."""
        return _mark_text(text, self._elsewhere, param=None)

    def split(self, prompt: str) -> list[str]:
        """Cut a rendered prompt into the parts to encode one by one."""
        return prompt.split(MARK)

    def _mark_message(self, message: Message) -> Message:
        if isinstance(message.get("content"), list | tuple):
            raise RequestError("A message's content must be one string here; join its text parts", param="messages")
        starts = self._in_assistant if message.get("role") == "assistant" else self._elsewhere
        return {_mark_text(key, starts): _mark_value(value, starts) for key, value in message.items()}


def _starts(control_strings: set[str]) -> re.Pattern[str]:
    """Match the first character of each control string, overlapping ones too: a mark breaks every one of them."""
    # One character cannot be broken; such added tokens are letters (DeepSeek-LLM has some), not control tokens.
    alternatives = "|".join(re.escape(text) for text in sorted(control_strings) if len(text) > 1)
    return re.compile(f"(?=(?:{alternatives}))." if alternatives else r"(?!)", re.DOTALL)


def _mark_value(value: object, starts: re.Pattern[str]) -> object:
    if isinstance(value, str):
        return _mark_text(value, starts)
    if isinstance(value, Mapping):
        return {_mark_text(str(key), starts): _mark_value(item, starts) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_mark_value(item, starts) for item in value]
    return value


def _mark_text(text: str, starts: re.Pattern[str], param: str | None = "messages") -> str:
    if MARK in text:
        raise RequestError("The text holds U+FDD0, which is no character; remove it", param=param)
    return starts.sub(lambda match: match[0] + MARK, text)
