"""sse-starlette on uvicorn: `EventSourceResponse` over an async generator, as its README shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.applications import Starlette
from starlette.requests import Request  # noqa: TC002 - Starlette's handlers are looked at
from starlette.routing import Route

from benchmarks.peers.serving import serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from benchmarks.peers.broadcast import Broadcast


def make_app(broadcast: Broadcast, lifespan: Any) -> Starlette:  # noqa: ANN401 - Starlette's type
    """Return the application with its one route."""

    async def events(channel: str) -> AsyncIterator[ServerSentEvent]:
        yield ServerSentEvent(comment="open")  # the client takes a stream for open at its first block
        async for number, data in broadcast.events(channel):
            yield ServerSentEvent(data=data, id=number)

    async def follow(request: Request) -> EventSourceResponse:
        return EventSourceResponse(events(request.path_params["channel"]))

    return Starlette(routes=[Route("/events/{channel}", follow)], lifespan=lifespan)


if __name__ == "__main__":
    serve(__doc__, make_app)
