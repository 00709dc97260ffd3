"""The token of a request: where it may stand, and what two of them mean.

Rules:
    - Places are those that the operator has named: the ``Authorization`` header, one cookie, one query parameter.
    - The same token in two places is one. Two that differ are refused (400): somebody else may have put one of them there.
    - What is in no place of its own is not looked at: another scheme than Bearer, other cookies.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sse_gateway.errors import AccessError
from sse_gateway.reasons import AccessFailure

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_BEARER = re.compile(r"bearer(?: +(.*))?", re.IGNORECASE | re.DOTALL)


def bearer_tokens(fields: Sequence[str]) -> Iterator[str]:
    """The tokens of ``Authorization`` fields.

    Source: RFC 6750 section 2.1.
    """
    for field in fields:
        match = _BEARER.fullmatch(field.strip(" \t"))
        if match is not None:
            yield match[1] or ""


def cookie_values(fields: Sequence[str], name: str) -> Iterator[str]:
    """The values of one cookie; quotes around a value are not part of it, and an empty one is none.

    Source: RFC 6265 section 4.2.1. Not `http.cookies`, which stops at the first cookie of another's that it cannot read.
    """
    for field in fields:
        for pair in field.split(";"):
            key, separator, value = pair.partition("=")
            text = value.strip(" \t")
            if separator and text and key.strip(" \t") == name:
                is_quoted = len(text) > 1 and text[0] == text[-1] == '"'
                yield text[1:-1] if is_quoted else text


def only_token(found: Sequence[str]) -> str:
    """The one token among those found.

    Raises:
        AccessError: There is none, or there are several.
    """
    if not found:
        raise AccessError(AccessFailure.MISSING)
    if len(set(found)) > 1:
        raise AccessError(AccessFailure.AMBIGUOUS)
    return found[0]
