from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from sse_gateway.redis_url import SCHEMES, check_redis_url, mask_redis_url


@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1:6379",
        "redis://cache",
        "redis://user:p%40ss@cache:6379/0?protocol=3",
        "redis://:p@ss@cache",
        "rediss://[2001:db8::1]:6380/2",
        "unix:///run/redis/redis.sock",
        "unix://user:secret@/run/redis.sock?db=1",
        "redis+sentinel://a:26379,b,[::1]:26379/main",
        "redis+sentinel://user:secret@a:26379/main",
    ],
)
def test_every_form_of_the_address_is_accepted(url: str) -> None:
    """One host, a socket, or sentinels and the service they watch."""
    check_redis_url(url)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("", "must begin with"),
        ("hunter2", "must begin with"),
        ("http://:hunter2@h", "must begin with"),
        ("REDIS://h", "must begin with"),
        ("redis://:hunter2@", "one host"),
        ("redis://:hun/ter2@h:6379", "one host"),
        ("redis://:hun#ter2@h", "percent-encode"),
        ("redis://:hun ter2@h", "percent-encode"),
        ("redis://h\n", "percent-encode"),
        ("redis://:h?unter2@h", "one host"),
        ("redis://h:0", "ports from 1 to 65535"),
        ("redis://h:65536", "ports from 1 to 65535"),
        ("redis://h:port", "ports from 1 to 65535"),
        ("redis://a,b", "one host"),
        ("redis://a..b", "one host"),
        (f"redis://{'a' * 64}", "one host"),
        ("redis://[::1::]", "one host"),
        ("redis://h/hunter2", "database number"),
        ("unix://run/redis.sock", "absolute path"),
        ("unix:///", "absolute path"),
        ("redis+sentinel://a,b", "name of the service"),
        ("redis+sentinel://a,b/", "name of the service"),
        ("redis+sentinel://a,,b/main", "hosts and ports"),
    ],
)
def test_other_addresses_are_refused_with_the_form_expected(url: str, problem: str) -> None:
    """The message helps without a word of the URL, each of which may be the password."""
    with pytest.raises(ValueError, match=problem) as caught:
        check_redis_url(url)
    assert "hun" not in str(caught.value)
    assert "ter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://h:6379/0", "redis://h:6379/0"),
        ("redis://user:secret@h", "redis://user:***@h"),
        ("redis://:secret@h", "redis://:***@h"),
        ("redis://secret@h", "redis://***@h"),
        ("redis://:se@cret@h", "redis://:***@h"),
        ("redis://h?password=secret&db=1", "redis://h?password=***&db=1"),
        ("rediss://h?a=1&ssl_password=secret", "rediss://h?a=1&ssl_password=***"),
        ("unix://u:secret@/run/x.sock", "unix://u:***@/run/x.sock"),
        ("redis+sentinel://u:secret@a,b/main", "redis+sentinel://u:***@a,b/main"),
    ],
)
def test_secrets_are_masked_and_the_rest_is_shown(url: str, shown: str) -> None:
    """The masked URL is a URL of the same form."""
    assert mask_redis_url(url) == shown
    check_redis_url(shown)


@given(st.sampled_from(SCHEMES), st.text())
def test_any_text_is_accepted_or_refused(scheme: str, rest: str) -> None:
    """Nothing but ValueError comes out, and what is accepted stays so when masked."""
    url = f"{scheme}://{rest}"
    try:
        check_redis_url(url)
    except ValueError:
        return
    check_redis_url(mask_redis_url(url))
