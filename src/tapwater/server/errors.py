"""Errors in OpenAI's shape: {"error": {"message", "type", "param", "code"}} with a fitting HTTP status."""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from tapwater.config.parse import nearest
from tapwater.errors import RequestError, TapwaterError
from tapwater.server.schema import (
    CHAT_UNSUPPORTED,
    COMPLETION_UNSUPPORTED,
    MESSAGE_UNSUPPORTED,
    PART_UNSUPPORTED,
    STREAM_UNSUPPORTED,
)

UNSUPPORTED = {
    **CHAT_UNSUPPORTED,
    **COMPLETION_UNSUPPORTED,
    **MESSAGE_UNSUPPORTED,
    **PART_UNSUPPORTED,
    **STREAM_UNSUPPORTED,
}

CLIENT_CLOSED_REQUEST = 499  # for the log only: nobody is there to read it


class ApiError(TapwaterError):
    """A refusal that is not about a field's value: `status` is HTTP's, `kind` and `code` are OpenAI's type and code."""

    def __init__(
        self,
        message: str,
        *,
        status: HTTPStatus,
        code: str,
        kind: str = "invalid_request_error",
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.kind = kind
        self.param = param
        self.headers = headers


def error_body(error: TapwaterError) -> dict[str, Any]:
    """The JSON body of `error`, the same inside a stream as in a response of its own."""
    match error:
        case RequestError():
            return _body(str(error), "invalid_request_error", error.param, error.code)
        case ApiError():
            return _body(str(error), error.kind, error.param, error.code)
        case _:
            return _body(str(error), "server_error", None, "engine_error")


def install_handlers(app: FastAPI) -> None:
    """Answer every error of `app` in OpenAI's shape."""

    @app.exception_handler(TapwaterError)
    async def tapwater_error(_: Request, error: TapwaterError) -> JSONResponse:
        match error:
            case RequestError():
                return JSONResponse(error_body(error), HTTPStatus.BAD_REQUEST)
            case ApiError():
                return JSONResponse(error_body(error), error.status, error.headers)
            case _:
                return JSONResponse(error_body(error), HTTPStatus.INTERNAL_SERVER_ERROR)

    @app.exception_handler(HTTPException)
    async def http_exception(request: Request, error: HTTPException) -> JSONResponse:
        where = f"{request.method} {request.url.path}"
        status = HTTPStatus(error.status_code)
        code = status.phrase.lower().replace(" ", "_")
        message = f"{where}: {status.phrase.lower()}; see the endpoints in the documentation."
        return JSONResponse(_body(message, "invalid_request_error", None, code), status, error.headers)

    @app.exception_handler(ClientDisconnect)
    async def client_left(_: Request, __: ClientDisconnect) -> Response:  # before its body had arrived
        return Response(status_code=CLIENT_CLOSED_REQUEST)

    @app.exception_handler(Exception)
    async def unforeseen(_: Request, error: Exception) -> JSONResponse:  # uvicorn logs the traceback
        message = f"The server failed while answering ({type(error).__name__}); its log has the details."
        return JSONResponse(_body(message, "server_error", None, "internal_error"), HTTPStatus.INTERNAL_SERVER_ERROR)


def from_validation(error: ValidationError, model: type[BaseModel]) -> RequestError:
    """The first fault pydantic found, as a RequestError that names the field as OpenAI does: messages[0].content."""
    fault = error.errors(include_url=False)[0]
    location, kind = fault["loc"], fault["type"]
    if kind == "json_invalid":
        return RequestError(f"The request body is not valid JSON: {fault['ctx']['error']}.", code="invalid_json")
    given = json.dumps(fault["input"], ensure_ascii=False)
    given = given if len(given) <= 80 else f"{given[:80]}…"
    if not location:
        return RequestError(f"The request body must be a JSON object, got {given}.", code="invalid_type")
    param, name = _path(location), str(location[-1])
    if kind == "missing":
        return RequestError(f"Missing field {param!r}.", param=param, code="missing_required_parameter")
    if kind == "extra_forbidden" and name in UNSUPPORTED:
        accepted = " or ".join(json.dumps(each) for each in UNSUPPORTED[name])
        rest = f", except as {accepted}" if accepted else ""
        message = f"Field {param!r} is not supported yet{rest}; leave it out."
        return RequestError(message, param=param, code="unsupported_parameter")
    if kind == "extra_forbidden":
        hint = nearest(name, list(model.model_fields)) if len(location) == 1 else ""
        return RequestError(f"Unknown field {param!r}{hint}", param=param, code="unknown_parameter")
    said = fault["msg"][0].lower() + fault["msg"][1:]
    code = "invalid_type" if kind.endswith("_type") else "invalid_value"
    return RequestError(f"{param}: {said}, got {given}.", param=param, code=code)


def _body(message: str, kind: str, param: str | None, code: str | None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _path(location: tuple[int | str, ...]) -> str:
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in location)
    return "".join(steps).removeprefix(".")
