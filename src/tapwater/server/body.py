"""Reading a request's body: bounded, declared as JSON, and valid for its schema."""

from http import HTTPStatus
from typing import TypeVar

from fastapi import Request
from pydantic import ValidationError

from tapwater.server.errors import ApiError, from_validation
from tapwater.server.schema import Strict

MAX_BODY_BYTES = 4 * 1024 * 1024  # several times what the longest context of the family holds

T = TypeVar("T", bound=Strict)


async def parse(request: Request, model: type[T]) -> T:
    """The body as a `model`; ApiError 415 or 413 before it is read whole, RequestError naming the field at fault."""
    _check_content_type(request.headers.get("content-type", ""))
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            raise ApiError(
                f"The request body is larger than {MAX_BODY_BYTES} bytes.",
                status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                code="request_too_large",
            )
    try:
        return model.model_validate_json(bytes(body))
    except ValidationError as error:
        raise from_validation(error, model) from None


def _check_content_type(content_type: str) -> None:
    """Only JSON: a web page elsewhere can post other types to a server on this machine without asking first."""
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise ApiError(
            f"Content-Type must be application/json, got {content_type!r}.",
            status=HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            code="unsupported_media_type",
        )
