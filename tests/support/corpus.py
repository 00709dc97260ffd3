"""Requests that two servers might read differently: whoever reads a second one in them lets it be smuggled.

Each has a second request hidden in it, which must never be answered: behind, or inside, a first one that is not sound.

Source: RFC 9112 sections 5, 6, 7 and 11.2; the advisories of HTTP libraries, by what they let pass.
"""

from __future__ import annotations

from typing import Final

HIDDEN: Final = b"OPTIONS /events/hidden HTTP/1.1\r\nHost: x\r\n\r\n"
"""Answered with 204, if anybody reads it as a request."""

_CHUNKED = b"Transfer-Encoding: chunked"


def _post(*fields: bytes, body: bytes = b"", method: bytes = b"POST") -> bytes:
    return b"\r\n".join([method + b" /events/a HTTP/1.1", b"Host: x", *fields, b"", b""]) + body


def _length(value: bytes) -> bytes:
    """A length that is no number, or not a decimal one."""
    return _post(b"Content-Length: " + value, body=b"hello" + HIDDEN)


def _get(*fields: bytes) -> bytes:
    return _post(*fields, body=HIDDEN, method=b"GET")


AMBIGUOUS: Final[dict[str, bytes]] = {
    # Two lengths
    "CL.TE": _post(b"Content-Length: %d" % (5 + len(HIDDEN)), _CHUNKED, body=b"0\r\n\r\n" + HIDDEN),
    "TE.CL": _post(_CHUNKED, b"Content-Length: 4", body=b"%x\r\n" % len(HIDDEN) + HIDDEN + b"\r\n0\r\n\r\n"),
    "CL.CL": _post(b"Content-Length: 0", b"Content-Length: %d" % len(HIDDEN), body=HIDDEN),
    "CL.CL, the other way": _post(b"Content-Length: %d" % len(HIDDEN), b"Content-Length: 0", body=HIDDEN),
    "CL in a list": _post(b"Content-Length: 0, %d" % len(HIDDEN), body=HIDDEN),
    "GET, CL.TE": _post(b"Content-Length: 5", _CHUNKED, body=b"0\r\n\r\n" + HIDDEN, method=b"GET"),
    # Transfer-Encoding in disguise
    "TE.TE, unknown": _post(_CHUNKED, b"Transfer-Encoding: x", body=b"0\r\n\r\n" + HIDDEN),
    "TE, not last": _post(b"Transfer-Encoding: chunked, identity", body=b"0\r\n\r\n" + HIDDEN),
    "TE xchunked": _post(b"Transfer-Encoding: xchunked", body=b"0\r\n\r\n" + HIDDEN),
    "TE with a space before the colon": _post(b"Transfer-Encoding : chunked", body=b"0\r\n\r\n" + HIDDEN),
    "TE behind a bare LF": _post(b"X: x\nTransfer-Encoding: chunked", body=b"0\r\n\r\n" + HIDDEN),
    "TE behind a bare CR": _post(b"X: x\rTransfer-Encoding: chunked", body=b"0\r\n\r\n" + HIDDEN),
    "TE folded": _post(b"Transfer-Encoding:\r\n chunked", body=b"0\r\n\r\n" + HIDDEN),
    "TE with a vertical tab": _post(b"Transfer-Encoding: \x0bchunked", body=b"0\r\n\r\n" + HIDDEN),
    "TE with a NUL": _post(b"Transfer-Encoding: chunked\0", body=b"0\r\n\r\n" + HIDDEN),
    "TE in HTTP/1.0": _post(_CHUNKED, body=b"0\r\n\r\n" + HIDDEN).replace(b"HTTP/1.1", b"HTTP/1.0", 1),
    # Lengths that are none
    "CL +5": _length(b"+5"),
    "CL -1": _length(b"-1"),
    "CL 0x5": _length(b"0x5"),
    "CL 5_0": _length(b"5_0"),
    "CL in fullwidth digits": _length("\N{FULLWIDTH DIGIT FIVE}".encode()),
    "CL 5 with a letter": _length(b"5a"),
    "CL in two words": _length(b"5 0"),
    "CL with a vertical tab": _length(b"5\x0b"),
    "CL empty": _length(b""),
    "CL beyond 64 bits": _length(b"1" * 30),
    "CL with a space before the colon": _post(b"Content-Length : 5", body=b"hello" + HIDDEN),
    # Chunks that are none
    "chunk size 0x0": _post(_CHUNKED, body=b"0x0\r\n\r\n" + HIDDEN),
    "chunk size +0": _post(_CHUNKED, body=b"+0\r\n\r\n" + HIDDEN),
    "chunk size -1": _post(_CHUNKED, body=b"-1\r\n\r\n" + HIDDEN),
    "chunk size 0_0": _post(_CHUNKED, body=b"0_0\r\n\r\n" + HIDDEN),
    "chunk size beyond 64 bits": _post(_CHUNKED, body=b"1" + b"0" * 20 + b"\r\n\r\n" + HIDDEN),
    "chunk without its line end": _post(_CHUNKED, body=b"2\r\nabcd0\r\n\r\n" + HIDDEN),
    "chunk extension with a bare LF": _post(_CHUNKED, body=b"0;x\n\r\n" + HIDDEN),
    "chunk extension with a bare CR": _post(_CHUNKED, body=b"0;x\r\r\n\r\n" + HIDDEN),
    "trailer with a bare LF": _post(_CHUNKED, body=b"0\r\nX: x\n\r\n" + HIDDEN),
    # Field lines that are none
    "a space before a colon": _get(b"X : x"),
    "a bare LF at the end of a line": _get(b"X: x\nY: y"),
    "a bare CR in a value": _get(b"X: x\ry"),
    "a NUL in a value": _get(b"X: x\0y"),
    "a NUL in a name": _get(b"X\0: x"),
    "folding": _get(b"X: x\r\n y"),
    "no colon": _get(b"nothing"),
    "no name": _get(b": x"),
    "a name with a bracket": _get(b"X[: x"),
    "a first line that is folded": b"GET /events/a HTTP/1.1\r\n X: x\r\nHost: x\r\n\r\n" + HIDDEN,
    "two hosts": _get(b"Host: y"),
    # Request lines that are none
    "a version that is none": b"GET /events/a HTTP/1.10\r\nHost: x\r\n\r\n" + HIDDEN,
    "a version in small letters": b"GET /events/a http/1.1\r\nHost: x\r\n\r\n" + HIDDEN,
    "HTTP/0.9": b"GET /events/a\r\n\r\n" + HIDDEN,
    "a bare LF behind the request line": b"GET /events/a HTTP/1.1\nHost: x\n\n" + HIDDEN,
    "a bare CR in the request line": b"GET /events/a\rHTTP/1.1\r\nHost: x\r\n\r\n" + HIDDEN,
    "a NUL in the target": b"GET /events/\0a HTTP/1.1\r\nHost: x\r\n\r\n" + HIDDEN,
    "a CR in the target": b"GET /events/a\r HTTP/1.1\r\nHost: x\r\n\r\n" + HIDDEN,
    "a target of two words": b"GET /events/a b HTTP/1.1\r\nHost: x\r\n\r\n" + HIDDEN,
    "no target": b"GET HTTP/1.1\r\nHost: x\r\n\r\n" + HIDDEN,
    "HTTP/2 with prior knowledge": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + HIDDEN,
    # Bodies where there is none to be
    "GET with a length": _post(b"Content-Length: %d" % len(HIDDEN), body=HIDDEN, method=b"GET"),
    "GET in chunks": _post(_CHUNKED, body=b"%x\r\n" % len(HIDDEN) + HIDDEN + b"\r\n0\r\n\r\n", method=b"GET"),
    # Another protocol
    "h2c": _get(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAAP__"),
}
"""By what is wrong with it. There is one answer, or none; and if there is one it is no stream's."""
