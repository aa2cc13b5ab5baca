"""What is refused, and a disk that fails, as problem details."""

from __future__ import annotations

from aiohttp import web

from ingest.outcome import DETAIL, HTTP_STATUS, Outcome
from ingest.submission import Submission
from runtime.problem import problem


def of_refusal(submission: Submission) -> web.Response:
    """Return the response to a submission that was refused."""
    outcome = submission.outcome
    detail = DETAIL[outcome] + (f": {submission.detail}" if submission.detail else "")
    return problem(
        HTTP_STATUS[outcome],
        outcome.name.lower().replace("_", "-"),
        detail,
        retry_after_s=submission.retry_after_s,
    )


def of_disk_error() -> web.Response:
    """Return the response to a submission that the disk refused; it was taken out of its group."""
    return problem(503, "disk-error", DETAIL[Outcome.DISK_ERROR])
