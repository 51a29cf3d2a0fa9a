"""The endpoints."""

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from tapwater.config import ServerConfig
from tapwater.llm import LLM
from tapwater.server import chat, completions
from tapwater.server.errors import install_handlers
from tapwater.server.page import ChatPage
from tapwater.server.service import Service


def create_app(llm: LLM, *, model_id: str, server: ServerConfig) -> FastAPI:
    """The OpenAI-compatible application serving `llm` under the name `model_id`; its Service is `app.state.service`."""
    service = Service(llm, model_id, server)
    page = ChatPage.load()
    app = FastAPI(title="tapwater", openapi_url=None)  # bodies are parsed by server/body.py, which OpenAPI cannot show
    app.state.service = service
    install_handlers(app)
    card = {"id": model_id, "object": "model", "created": service.created, "owned_by": "tapwater"}

    @app.post("/v1/chat/completions")
    async def create_chat_completion(request: Request) -> Response:
        return await chat.create(service, request)

    @app.post("/v1/completions")
    async def create_completion(request: Request) -> Response:
        return await completions.create(service, request)

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [card]}

    @app.get("/v1/models/{model:path}")
    async def retrieve_model(model: str) -> dict[str, Any]:
        service.check_model(model)
        return card

    @app.api_route("/health", methods=["GET", "HEAD"])
    async def health() -> JSONResponse:
        status = HTTPStatus.SERVICE_UNAVAILABLE if service.draining else HTTPStatus.OK
        state = "draining" if service.draining else "ok"
        counts = {"running": llm.num_running, "waiting": llm.num_waiting}
        return JSONResponse({"status": state, "model": model_id, **counts}, status)

    @app.api_route("/", methods=["GET", "HEAD"])
    async def chat_page(request: Request) -> Response:
        return page.response(request)

    return app
