from __future__ import annotations

import pytest

from sse_gateway.errors import (
    AccessError,
    ConfigError,
    GatewayError,
    MessageError,
    RequestError,
    SnapshotError,
    SourceError,
    StoreError,
    TemporaryError,
)
from sse_gateway.reasons import AccessFailure, RejectReason, Unavailable


def test_a_configuration_error_holds_every_problem() -> None:
    """An operator sees all of them at once, one on a line."""
    error = ConfigError(["f:1:1: a: wrong", "f:2:1: b: missing"])
    assert error.problems == ("f:1:1: a: wrong", "f:2:1: b: missing")
    assert str(error) == "f:1:1: a: wrong\nf:2:1: b: missing"


def test_a_request_error_knows_its_status() -> None:
    """A client gets a status and a sentence."""
    error = RequestError(404, "no such channel")
    assert (error.status, error.detail, str(error)) == (404, "no such channel", "no such channel")


def test_a_request_error_may_have_headers() -> None:
    """They go into the answer."""
    assert RequestError(401, "").headers == {}
    assert RequestError(401, "", {"WWW-Authenticate": "Bearer"}).headers == {"WWW-Authenticate": "Bearer"}


def test_what_is_not_let_in_is_counted_by_its_reason() -> None:
    """The reason is the metric's label; the client is told no more than to come back, or not."""
    assert AccessError(AccessFailure.EXPIRED).why is AccessFailure.EXPIRED
    assert TemporaryError(Unavailable.SOURCE).reason is Unavailable.SOURCE


def test_a_message_error_knows_what_it_is_counted_as() -> None:
    """The reason is the metric's label, the detail the log's."""
    error = MessageError(RejectReason.SIZE, "9 bytes")
    assert (error.reason, str(error)) == (RejectReason.SIZE, "9 bytes")


@pytest.mark.parametrize(
    "error",
    [
        ConfigError([]),
        RequestError(400, ""),
        MessageError(RejectReason.TYPE, ""),
        SourceError("away"),
        SnapshotError("damaged"),
        StoreError("damaged"),
    ],
)
def test_every_error_on_purpose_has_one_base(error: Exception) -> None:
    """What is not one of them is a fault of ours and ends the process (I9)."""
    assert isinstance(error, GatewayError)
