"""What a client is told when its request is refused, in OpenAI's form."""

from __future__ import annotations

from typing import Any


class ApiError(Exception):
    """status: of HTTP; message: one sentence; param: the field of the request; code: a word for programs."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def body(self) -> dict[str, Any]:
        """The JSON object that OpenAI's clients read."""
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(self.status, "invalid_request_error")
        if self.status >= 500:
            kind = "server_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def refused(message: str, param: str | None = None) -> ApiError:
    """A request that is wrong: status 400."""
    return ApiError(400, message, param, "invalid_value")
