"""The errors of the service model, by name: what each answers with."""

from __future__ import annotations

from typing import Final

STATUSES: Final = {
    "BadRequestException": 400,
    "LimitExceededException": 400,
    "TooManyTagsException": 400,
    "ForbiddenException": 403,
    "InvalidSignatureException": 403,
    "MissingAuthenticationTokenException": 403,
    "NotFoundException": 404,
    "UnknownOperationException": 404,
    "ConflictException": 409,
    "ResourceInUseException": 409,
    "InternalServerErrorException": 500,
    "ServiceUnavailableException": 503,
}


class ApiError(Exception):
    """A call that is refused: the name of the error, and what its caller reads."""

    def __init__(self, code: str, message: str) -> None:
        assert code in STATUSES
        super().__init__(message)
        self.code = code
        self.message = message

    @property
    def status(self) -> int:
        """The HTTP status."""
        return STATUSES[self.code]


def bad(field: str, why: str) -> ApiError:
    """Return the error of a field that cannot be."""
    return ApiError("BadRequestException", f"{field}: {why}")
