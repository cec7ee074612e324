"""Error responses in the form of OpenAI's API: {"error": {"message", "type", "param", "code"}}."""

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


class ApiError(Exception):
    """An error response.

    Args:
        status: HTTP status.
        message: Message for the client.
        code: Name of the error, for programs.
        param: Field of the request that is wrong.
        retry: Seconds after which the request may be repeated.
    """

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
        """Return the body of the response."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """Return the response, with `Retry-After` if `retry` is set."""
        headers = {"Retry-After": str(max(1, round(self.retry)))} if self.retry is not None else {}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.as_json(), self.status, headers)


def to_api_error(error: BaseException) -> ApiError:
    """Return the error response for an exception. Its details (files, databases, addresses) go to the log only."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, SessionNotFound):
        return ApiError(404, str(error), code="session_not_found", param="session")
    if isinstance(error, StoreError):
        log.error("%s", error)
        return ApiError(503, "the store is unavailable at the moment; try again", code="store_unavailable", retry=2)
    log.error("a request failed", exc_info=error)
    return ApiError(500, "internal error; the log of the service says why", code="internal_error")


def install(app: FastAPI) -> None:
    """Make the app answer every error in this form."""

    async def known(_: Request, error: Exception) -> JSONResponse:
        return to_api_error(error).response()

    async def http(_: Request, error: Exception) -> JSONResponse:
        status = error.status_code if isinstance(error, HTTPException) else 500
        messages = {404: "unknown path", 405: "this path does not support this method"}
        return ApiError(status, messages.get(status, "the request is invalid"), code=_code(status)).response()

    async def invalid(_: Request, error: Exception) -> JSONResponse:
        first: dict[str, Any] = error.errors()[0] if isinstance(error, RequestValidationError) else {}
        if first.get("type") in ("json_invalid", "model_attributes_type"):
            return ApiError(
                400, "the body must be a JSON object, sent as application/json", code="invalid_json"
            ).response()
        place = ".".join(str(part) for part in first.get("loc", ()) if part != "body") or None
        if first.get("type") == "extra_forbidden":
            message = f"unknown field {place}; remove it or correct its name"
        else:  # the message names the rule, and does not repeat the invalid value
            message = f"{place}: {first.get('msg')}" if place else str(first.get("msg"))
        return ApiError(400, message[:500], code="invalid_value", param=place).response()

    app.add_exception_handler(ApiError, known)
    app.add_exception_handler(SessionNotFound, known)
    app.add_exception_handler(StoreError, known)
    app.add_exception_handler(Exception, known)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)


def _code(status: int) -> str:
    return {404: "not_found", 405: "method_not_allowed"}.get(status, "bad_request")
