"""The chat page: one file, allowed to run only its own script and style and to speak only to this server."""

import base64
import hashlib
import re
from dataclasses import dataclass
from http import HTTPStatus
from importlib.resources import files

from fastapi import Request
from fastapi.responses import Response


@dataclass(frozen=True)
class ChatPage:
    """The page's bytes and the headers they are served with."""

    content: bytes
    headers: dict[str, str]

    @classmethod
    def load(cls) -> "ChatPage":
        content = files("tapwater.server").joinpath("pages/chat.html").read_bytes()
        policy = {
            "default-src": "'none'",
            "script-src": _hash(content, b"script"),
            "style-src": _hash(content, b"style"),
            "img-src": "data:",
            "connect-src": "'self'",
            "base-uri": "'none'",
            "form-action": "'none'",
            "frame-ancestors": "'none'",
        }
        headers = {
            "Content-Security-Policy": "; ".join(f"{name} {source}" for name, source in policy.items()),
            "Cache-Control": "no-cache",  # kept, but asked for again: an upgrade shows at once
            "ETag": f'"{hashlib.sha256(content).hexdigest()[:16]}"',
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
        }
        return cls(content, headers)

    def response(self, request: Request) -> Response:
        if self.headers["ETag"] in request.headers.get("if-none-match", ""):
            return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=self.headers)
        return Response(self.content, headers=self.headers, media_type="text/html; charset=utf-8")


def _hash(content: bytes, tag: bytes) -> str:
    """The CSP source that admits the page's one inline <tag> and no other."""
    (inline,) = re.findall(rb"<%b>(.*?)</%b>" % (tag, tag), content, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(inline).digest()).decode()}'"
