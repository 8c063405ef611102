"""Why a call to MLflow failed: in one line, and whether the store refused or did not answer."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass

from lrrunner.system.output.redaction import Redactor, shortened

UNREACHABLE = ("Max retries exceeded", "database is locked", "Connection refused", "could not connect", "timed out")
HTTP_LIBRARIES = ("requests", "urllib3")
MAX_REASON_LENGTH = 300

_BROKEN_ANSWER = re.compile(r"failed with error code (?:5\d\d |\d+ != 200\. Response body: '(?:\{|'))")
"""MLflow's message for an answer that is no JSON: of a gateway, or cut on its way, in its head or in its content."""

_REASONS = (
    (r"Connection refused", "connection refused"),
    (
        r"Name or service not known|getaddrinfo|NameResolution|nodename nor servname|name resolution",
        "unknown host name",
    ),
    (r"No route to host|Network is unreachable", "no route to the host"),
    (r"timed out|Timeout", "no answer in time"),
    (
        r"Connection aborted|RemoteDisconnected|reset by peer|Broken pipe|IncompleteRead|ChunkedEncoding",
        "broken connection",
    ),
    (r"CERTIFICATE_VERIFY|SSLError", "its certificate cannot be verified"),
    (r"too many (\d+) error responses|error code (5\d\d)|^(5\d\d) Server Error", "server error {}"),
    (r"database is locked", "database is locked"),
    (r"Response body", "broken answer"),
)
"""Part of a message of an HTTP library or a database driver, and the same in plain text."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class UploadFailure:
    """Why part of a run is missing in MLflow.

    Attributes:
        reason: One line, secrets masked.
        is_refusal: The store answered, so that another attempt would fail as well.
    """

    reason: str
    is_refusal: bool


def upload_failure(error: Exception, redactor: Redactor) -> UploadFailure:
    """Describe and log what a call raised."""
    logger.info("MLflow: %s", redactor.text(first_line(error)))
    return UploadFailure(reason=failure_reason(error, redactor), is_refusal=not is_unreachable(error))


def failure_reason(error: Exception, redactor: Redactor) -> str:
    """Why a call failed, in one line for the terminal, without what HTTP libraries say of themselves.

    >>> failure_reason(OSError("HTTPConnectionPool(...): Max retries exceeded (Connection refused)"), Redactor())
    'connection refused'
    >>> failure_reason(ValueError("no such experiment"), Redactor())
    'no such experiment'
    """
    if is_unreachable(error):
        for pattern, reason in _REASONS:
            if found := re.search(pattern, str(error)):
                return reason.format(next(filter(None, found.groups()), "") if found.groups() else "")
        if any(name in str(error) for name in ("HTTPConnectionPool", "HTTPSConnectionPool", *HTTP_LIBRARIES)):
            return "no answer"
    return shortened(redactor.text(first_line(error)), MAX_REASON_LENGTH)


def first_line(error: Exception) -> str:
    """First line of an error's message, or its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def is_unreachable(error: Exception) -> bool:
    """Whether a store did not answer, as opposed to refusing."""
    causes = set()
    cause: BaseException | None = error
    while cause is not None:
        causes.add(type(cause).__module__.partition(".")[0])
        cause = cause.__cause__ or cause.__context__
    is_given_up = isinstance(error, TimeoutError | InterruptedError)
    is_http = any(name in causes for name in HTTP_LIBRARIES) or _BROKEN_ANSWER.search(str(error)) is not None
    return is_given_up or is_http or any(mark in str(error) for mark in UNREACHABLE)
