"""What stands behind a gateway's questions: an issuer's keys, or an application, over plain HTTP on loopback."""

from __future__ import annotations

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Answer = tuple[int, "Mapping[str, str]", bytes]
"""Status, headers, body."""


def json_answer(document: object, status: int = 200) -> Answer:
    """An answer in JSON."""
    return status, {"Content-Type": "application/json"}, json.dumps(document).encode()


def key_set(**keys: Any) -> dict[str, Any]:
    """A JWK set with the public parts of some private keys, by their ids."""
    entries = []
    for key_id, key in keys.items():
        public = key.public_key()
        if isinstance(public, RSAPublicKey):
            text = RSAAlgorithm.to_jwk(public)
        elif isinstance(public, EllipticCurvePublicKey):
            text = ECAlgorithm.to_jwk(public)
        else:
            text = OKPAlgorithm.to_jwk(public)
        entries.append({**json.loads(text), "kid": key_id, "use": "sig"})
    return {"keys": entries}


class Issuer:
    """A server that gives one answer to whatever is asked.

    Attributes:
        answer: What it says.
        requests: Headers of what was asked, oldest first.
        url: Where.
        gate: While it is not set, nobody is answered.
        most: Questions that were open at once, at most.
    """

    def __init__(self) -> None:
        self.answer: Answer = json_answer({})
        self.requests: list[dict[str, str]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.most = 0
        self._open = 0
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/keys"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                issuer.take(self)

            def log_message(self, *_: Any) -> None:
                pass

        return Handler

    def take(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer one question."""
        with self._lock:
            self.requests.append(dict(handler.headers.items()))
            self._open += 1
            self.most = max(self.most, self._open)
        self.gate.wait(20)
        status, headers, body = self.answer
        with contextlib.suppress(OSError):
            handler.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(body)
        with self._lock:
            self._open -= 1

    def close(self) -> None:
        """End it: nobody answers any more. Idempotent."""
        self.gate.set()
        self._server.shutdown()
        self._server.server_close()


@contextlib.contextmanager
def issuing() -> Iterator[Issuer]:
    """Run one for the length of a ``with`` block."""
    issuer = Issuer()
    try:
        yield issuer
    finally:
        issuer.close()
