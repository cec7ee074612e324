"""Everything the service refuses, in OpenAI's shape: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from agent.errors import SessionNotFound
from store.errors import StoreError

log = logging.getLogger("evoke")

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class Refused(Exception):
    """A request that is not served; `message` is told to the client."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.retry = status, message, code, param, retry

    def as_json(self) -> dict[str, Any]:
        """The body of the answer."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The answer, with `Retry-After` where trying again makes sense."""
        headers = {"Retry-After": str(max(1, round(self.retry)))} if self.retry is not None else {}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.as_json(), self.status, headers)


def handled(error: BaseException) -> Refused:
    """The refusal that stands for an error: what it says of files, databases and addresses stays in our log."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, SessionNotFound):
        return Refused(404, str(error), code="session_not_found", param="session")
    if isinstance(error, StoreError):
        log.error("%s", error)
        return Refused(503, "the store cannot be used just now; try again", code="store_unavailable", retry=2)
    log.error("a request failed", exc_info=error)
    return Refused(500, "the service failed on this request; its log says why", code="internal_error")


def install(app: FastAPI) -> None:
    """Make the app answer in this shape, whatever goes wrong."""

    async def ours(_: Request, error: Exception) -> JSONResponse:
        return handled(error).response()

    async def http(_: Request, error: Exception) -> JSONResponse:
        status = error.status_code if isinstance(error, HTTPException) else 500
        said = {404: "there is no such address", 405: "this address does not take that method"}
        return Refused(status, said.get(status, "the request cannot be read"), code=_code(status)).response()

    async def invalid(_: Request, error: Exception) -> JSONResponse:
        first: dict[str, Any] = error.errors()[0] if isinstance(error, RequestValidationError) else {}
        if first.get("type") in ("json_invalid", "model_attributes_type"):
            return Refused(
                400, "the body must be a JSON object, sent as application/json", code="invalid_json"
            ).response()
        place = ".".join(str(part) for part in first.get("loc", ()) if part != "body") or None
        # The message names the rule; the value that broke it is not repeated.
        said = f"{place}: {first.get('msg')}" if place else str(first.get("msg"))
        return Refused(400, said[:500], code="invalid_value", param=place).response()

    app.add_exception_handler(Refused, ours)
    app.add_exception_handler(SessionNotFound, ours)
    app.add_exception_handler(StoreError, ours)
    app.add_exception_handler(Exception, ours)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)


def _code(status: int) -> str:
    return {404: "not_found", 405: "method_not_allowed"}.get(status, "bad_request")
