"""Text in, token ids out and back: tokenizer, chat templates, streaming detokenizer, stop strings."""

from tapwater.text.chat import render_chat
from tapwater.text.control import FIM_TOKENS
from tapwater.text.detokenizer import IncrementalDetokenizer
from tapwater.text.stop import StopStrings
from tapwater.text.tokenizer import Tokenizer

__all__ = ["FIM_TOKENS", "IncrementalDetokenizer", "StopStrings", "Tokenizer", "render_chat"]
