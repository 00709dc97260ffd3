"""FastAPI's own SSE (`fastapi.sse`) on uvicorn: a path operation that yields, as its documentation shows."""

from __future__ import annotations

from collections.abc import AsyncIterable  # noqa: TC003 - FastAPI looks at the annotation
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.sse import EventSourceResponse, ServerSentEvent

from benchmarks.peers.serving import serve

if TYPE_CHECKING:
    from benchmarks.peers.broadcast import Broadcast


def make_app(broadcast: Broadcast, lifespan: Any) -> FastAPI:  # noqa: ANN401 - FastAPI's type
    """Return the application with its one route."""
    app = FastAPI(lifespan=lifespan)

    @app.get("/events/{channel}", response_class=EventSourceResponse)
    async def follow(channel: str) -> AsyncIterable[ServerSentEvent]:
        yield ServerSentEvent(comment="open")  # the client takes a stream for open at its first block
        async for number, data in broadcast.events(channel):
            yield ServerSentEvent(raw_data=data, id=number)

    return app


if __name__ == "__main__":
    serve(__doc__, make_app)
