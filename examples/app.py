"""A small service whose pages follow what it does: run it with `uvicorn --app-dir examples app:app`.

It knows nothing of the gateway. It keeps its state, answers requests, and says what changed with
plain `PUBLISH`. Its two parts, stock and reports, have nothing to do with each other.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastapi import BackgroundTasks, FastAPI, HTTPException
from fastapi.responses import FileResponse
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

app = FastAPI()
log = logging.getLogger("uvicorn.error")
redis = Redis.from_url(
    os.environ.get("REDIS_URL", "redis://127.0.0.1:6379"),
    socket_timeout=2,  # work goes on without Redis: readers are told, and ask for the state
    retry=Retry(NoBackoff(), 1),
)
pages = Path(__file__).parent


async def publish(channel: str, event: str, data: dict[str, Any], key: str) -> None:
    """Say what changed; whoever follows the channel gets it.

    The key makes a retry harmless: of two messages with one key the gateway delivers one. A message
    that Redis does not take is lost, and that is fine: readers are told a gap, and ask for the state.
    """
    message = {"event": event, "data": data, "id": key, "ts": datetime.now(UTC).timestamp()}
    try:
        await redis.publish(f"sse:{channel}", json.dumps(message))
    except RedisError:
        log.warning("not published: %s on %s", event, channel)


# Stock: small values that change. eventsource.html follows it.

# Versions must grow, also over a restart: a database's are kept, these begin with the clock.
FIRST = int(datetime.now(UTC).timestamp() * 1000)
stock = {"apples": {"left": 12, "version": FIRST}, "pears": {"left": 7, "version": FIRST}}


@app.get("/api/stock")
async def read_stock() -> dict[str, dict[str, int]]:
    """The state, for a page that opens, or that was told a gap."""
    return stock


@app.put("/api/stock/{item}")
async def change_stock(item: str, left: int) -> dict[str, int]:
    """Change first, then publish. The version lets a page ignore what is older than what it knows."""
    if item not in stock:
        raise HTTPException(404)
    stock[item] = {"left": left, "version": stock[item]["version"] + 1}
    await publish("stock", "stock.changed", {"item": item, **stock[item]}, f"{item}-{stock[item]['version']}")
    return stock[item]


# Reports: long-running jobs with progress. report_job.html follows one.

reports: dict[str, dict[str, Any]] = {}
STEPS = ("reading accounts", "joining ledgers", "summing up", "drawing charts", "writing pages")


@app.post("/api/reports", status_code=202)
async def begin_report(background: BackgroundTasks, step_s: float = 0.5) -> dict[str, Any]:
    """Begin a report; the answer comes at once, the progress through the gateway."""
    job = secrets.token_urlsafe(12)  # who knows the name may follow it: it cannot be guessed
    reports[job] = {"job": job, "percent": 0, "step": "queued"}
    background.add_task(write_report, job, step_s)
    return reports[job]


@app.get("/api/reports/{job}")
async def read_report(job: str) -> dict[str, Any]:
    """The state, for a page that was told a gap."""
    if job not in reports:
        raise HTTPException(404)
    return reports[job]


async def write_report(job: str, step_s: float) -> None:
    """Do the work, and say how far it is."""
    for done, step in enumerate(STEPS):
        for part in range(4):
            await asyncio.sleep(step_s / 4)
            percent = (done * 4 + part) * 100 // (len(STEPS) * 4)
            reports[job] = {"job": job, "percent": percent, "step": step}
            await publish(f"job:{job}", "job.progress", reports[job], f"{job}-{percent}")
    reports[job] = {"job": job, "percent": 100, "step": "done"}
    await publish(f"job:{job}", "job.done", reports[job], f"{job}-done")


@app.get("/{name}")
async def page(name: str) -> FileResponse:
    """The pages of this folder."""
    if name not in {file.name for file in pages.glob("*.html")} | {file.name for file in pages.glob("*.js")}:
        raise HTTPException(404)
    return FileResponse(pages / name)
