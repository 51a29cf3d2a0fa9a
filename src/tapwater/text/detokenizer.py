"""Token ids back to text, one at a time."""

import codecs

from tapwater.text.tokenizer import Tokenizer


class IncrementalDetokenizer:
    """Turns a stream of token ids into text, whole characters only, in constant time a token.

    A token may end in the middle of a UTF-8 character; its bytes wait for the rest. The pieces joined are exactly
    `tokenizer.decode` of all the ids.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._at_start = True

    def push(self, token_id: int) -> str:
        """Take the next token; return the characters it completes ("" for none, and for special tokens)."""
        return self._text(self._utf8.decode(self._tokenizer.text_bytes(token_id)))

    def flush(self) -> str:
        """End the stream; a character left unfinished becomes U+FFFD, as in `decode`."""
        return self._text(self._utf8.decode(b"", final=True))

    def _text(self, text: str) -> str:
        if self._at_start and text:
            self._at_start = False
            return self._tokenizer.strip_start(text)
        return text
