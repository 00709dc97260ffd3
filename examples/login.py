"""A service whose users log in, and whose pages then follow what is theirs: `uvicorn --app-dir examples login:app`.

It shares a secret with the gateway (login.yaml), and signs with it what each of its users may read.
Page and gateway stand behind one nginx, on one host: the cookie is for that host alone.
"""

from __future__ import annotations

import os
import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import jwt
from fastapi import Cookie, FastAPI, HTTPException, Response
from fastapi.responses import FileResponse

app = FastAPI()
pages = Path(__file__).parent
SECRET = os.environ["GATEWAY_SECRET"]  # the gateway's SSE_GATEWAY__AUTH__SECRET
LIFETIME_S = int(os.environ.get("TOKEN_LIFETIME_S", "900"))
sessions: dict[str, str] = {}

Session = Annotated[str, Cookie(alias="__Host-session")]


def token_for(user: str) -> str:
    """Sign what a user may read. Short lives: a right that is taken away ends with the token."""
    end = datetime.now(UTC) + timedelta(seconds=LIFETIME_S)
    claims = {"sub": user, "exp": end, "jti": secrets.token_hex(8)}
    return jwt.encode({**claims, "channels": [f"orders:{user}", "news*"]}, SECRET, "HS256")


def keep(response: Response, name: str, value: str) -> None:
    """Set a cookie that no script reads, that no other site sends, and that only this host gets."""
    response.set_cookie(name, value, secure=True, httponly=True, samesite="strict", path="/")


@app.post("/login/{user}", status_code=204)
async def log_in(user: str, response: Response) -> None:
    """Your own login stands here: a password, or an identity provider."""
    session = secrets.token_urlsafe(24)
    sessions[session] = user
    keep(response, "__Host-session", session)


@app.post("/renew")
async def renew(response: Response, session: Session = "") -> dict[str, int]:
    """A token in the cookie: the first, and a new one before it ends."""
    keep(response, "__Host-sse", token_for(user_of(session)))
    return {"expires_in": LIFETIME_S}


@app.post("/token")
async def give_token(session: Session = "") -> dict[str, str]:
    """A token for a page that sends it by itself: in a header, or in a URL."""
    return {"token": token_for(user_of(session))}


@app.get("/who")
async def say_who(session: Session = "") -> dict[str, object]:
    """Mode callback instead of tokens: the gateway asks here, with the client's cookie. 401 is an answer, too."""
    user = user_of(session)
    return {"channels": [f"orders:{user}", "news*"], "expires_in": LIFETIME_S, "subject": user}


def user_of(session: str) -> str:
    """Whose session it is."""
    if session not in sessions:
        raise HTTPException(401)
    return sessions[session]


@app.get("/{name}")
async def page(name: str) -> FileResponse:
    """The pages of this example."""
    if name not in {"login.html", "fetch_stream.js"}:
        raise HTTPException(404)
    return FileResponse(pages / name)
