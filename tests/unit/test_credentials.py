"""Where a request's token is found."""

from __future__ import annotations

import pytest

from sse_gateway.credentials import bearer_tokens, cookie_values, only_token
from sse_gateway.errors import AccessError
from sse_gateway.reasons import AccessFailure


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ([], []),
        (["Bearer abc"], ["abc"]),
        (["bearer abc", "BEARER  def "], ["abc", "def"]),
        (["Basic abc"], []),
        (["Bearerabc"], []),
        (["Bearer"], [""]),
        (["Bearer a b"], ["a b"]),
    ],
)
def test_bearer_tokens(fields: list[str], found: list[str]) -> None:
    """Whatever follows the word, be it a token or not; other schemes are none of ours."""
    assert list(bearer_tokens(fields)) == found


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ([], []),
        (["sid=abc"], ["abc"]),
        (["a=1; sid=abc; b=2"], ["abc"]),
        (["a=1;sid = abc ;b"], ["abc"]),
        (['sid="abc"'], ["abc"]),
        (['sid="'], ['"']),
        (['sid="abc'], ['"abc']),
        (["sid=a=b"], ["a=b"]),
        (["sid=a; sid=b", "sid=c"], ["a", "b", "c"]),
        (["SID=a; xsid=b; sid"], []),
        (["sid="], []),
        (['{"broken": [; sid=abc'], ["abc"]),
    ],
)
def test_cookie_values(fields: list[str], found: list[str]) -> None:
    """Of this cookie alone, in their order; an empty one is a cookie that was taken back."""
    assert list(cookie_values(fields, "sid")) == found


def test_one_token_is_left() -> None:
    """None is missing, the same one twice is one, and two are too many."""
    assert only_token(["a", "a"]) == "a"
    for found, why in (([], AccessFailure.MISSING), (["a", "b"], AccessFailure.AMBIGUOUS)):
        with pytest.raises(AccessError) as caught:
            only_token(found)
        assert caught.value.why is why
