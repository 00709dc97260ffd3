"""Follow a stream as a browser's EventSource does, and write down what arrives.

Rules:
    - Resumes by itself from the last id seen; waits what the server's ``retry:`` says, longer and
      longer while there is no server at all.
    - A gap is shown where it lies. Heartbeats are silent, unless the source goes away or returns.
    - Ends on what will not change by waiting: a refusal (4xx), no event stream, 204.
    - Nothing that arrives can steer the terminal: controls are shown escaped.
"""

from __future__ import annotations

import asyncio
import codecs
import json
import random
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import aiohttp

from sse_gateway.errors import GatewayError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

SILENCE_S = 60.0
"""A stream that says nothing for so long is dead: four heartbeats of the default configuration."""

MAX_BLOCK = 16 * 1024 * 1024
"""Characters of one block; a server that sends more without a blank line is not followed."""

_RETRY_S = 3.0
_MIN_RETRY_S = 0.1
_MAX_RETRY_S = 300.0
_MAX_BACKOFF_S = 30.0
_TEMPORARY = frozenset({408, 425, 429})


class Tone(Enum):
    """How a line is meant."""

    EVENT = "event"
    GAP = "gap"
    NOTICE = "notice"


class TailError(GatewayError):
    """The stream cannot be followed, and waiting would not change it."""


@dataclass(frozen=True, slots=True)
class Block:
    """One dispatched block of an event stream."""

    type: str
    data: str


class StreamParser:
    """Parse an event stream piece by piece, however it is cut.

    Attributes:
        last_event_id: What to resume from; changes as ids arrive.
        retry_s: Reconnection time the server asked for, or None.

    Source: WHATWG HTML, 9.2.6 Interpreting an event stream.
    """

    def __init__(self, last_event_id: str = "") -> None:
        self.last_event_id = last_event_id
        self.retry_s: float | None = None
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._text = ""  # the line that has not ended yet
        self._after_cr = False  # the last line ended in CR: a LF now belongs to it
        self._id = last_event_id
        self._type = ""
        self._data: list[str] = []
        self._size = 0

    def feed(self, piece: bytes) -> Iterator[Block]:
        """Take the next bytes; yield the blocks they complete.

        Raises:
            TailError: A block exceeds `MAX_BLOCK`.
        """
        for line in self._lines(self._decoder.decode(piece)):
            if line:
                self._field(line)
            elif (block := self._dispatch()) is not None:
                yield block
        if self._size + len(self._text) > MAX_BLOCK:
            raise TailError(f"a block of more than {MAX_BLOCK} characters without an end")

    def _lines(self, text: str) -> list[str]:
        if self._after_cr and text:
            text = text.removeprefix("\n")
            self._after_cr = False
        self._after_cr = self._after_cr or text.endswith("\r")
        # Only these three end a line; str.splitlines knows eight more.
        *lines, self._text = (self._text + text.replace("\r\n", "\n").replace("\r", "\n")).split("\n")
        return lines

    def _field(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "data":
                self._data.append(value)
                self._size += len(value)
            case "event":
                self._type = value
            case "id" if "\0" not in value:
                self._id = value
            case "retry" if value.isascii() and value.isdigit():
                self.retry_s = int(value[:9]) / 1000

    def _dispatch(self) -> Block | None:
        self.last_event_id = self._id
        block = Block(self._type or "message", "\n".join(self._data)) if self._data else None
        self._type, self._data, self._size = "", [], 0
        return block


class Scribe:
    """Turn blocks into lines for a person.

    Args:
        out: Takes each line and how it is meant.
        now: The clock whose time of day stands before events.
    """

    def __init__(self, out: Callable[[str, Tone], None], now: Callable[[], datetime]) -> None:
        self._out = out
        self._now = now
        self._live = True

    def write(self, block: Block, retry_s: float) -> None:
        """Write one block down; a heartbeat only if it changes something."""
        told = _object(block.data) if block.type.startswith("gateway.") else {}
        match block.type:
            case "gateway.open":
                self.notice(f"open: {_names(told)}, replay {told.get('replay', 'unknown')}")
            case "gateway.heartbeat":
                self._heartbeat(live=told.get("live") is not False)
            case "gateway.gap":
                missed = told.get("missed")
                missed = "an unknown number" if missed is None else missed
                self._mark(f"gap: {told.get('reason')}, {_names(told)}, missed {missed}", Tone.GAP)
            case "gateway.close":
                self.notice(f"closed by the gateway: {told.get('reason')}, back in {retry_s:.1f} s")
            case "gateway.unavailable":
                self.notice(f"unavailable for now: {told.get('reason')}, again in {retry_s:.1f} s")
            case _:
                self._event(block)

    def notice(self, text: str) -> None:
        """Write a remark about the connection."""
        self._mark(text, Tone.NOTICE)

    def _mark(self, text: str, tone: Tone) -> None:
        self._out(_printable(f"--- {text} ---"), tone)

    def _heartbeat(self, *, live: bool) -> None:
        if live != self._live:
            self.notice("the source is back" if live else "the source is away, events are delayed")
        self._live = live

    def _event(self, block: Block) -> None:
        head = f"{self._now():%H:%M:%S.%f}"[:-3] + f"  {_printable(block.type):<12}  "
        first, *rest = block.data.split("\n")
        self._out(head + _printable(first), Tone.EVENT)
        for line in rest:
            self._out(" " * len(head) + _printable(line), Tone.EVENT)


def check_url(url: str) -> None:
    """Refuse what is not the address of a stream.

    Raises:
        ValueError: With the form expected; never with a part of `url`.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("must begin with http:// or https:// and name a host")


async def follow(
    url: str,
    out: Callable[[str, Tone], None],
    *,
    last_event_id: str = "",
    token: str | None = None,
    silence_s: float = SILENCE_S,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Follow a stream until it ends for good, which it says by 204; else for ever.

    Args:
        url: One that passes `check_url`.
        out: Takes each line and how it is meant.
        last_event_id: Where to resume; empty is now.
        token: Sent as ``Authorization: Bearer``, never shown, never to another origin.
        silence_s: A connection that says nothing for so long is given up.
        sleep: Waits between connections.

    Raises:
        TailError: The stream is refused.
    """
    scribe = Scribe(out, lambda: datetime.now(UTC).astimezone())
    tail = _Tail(url, scribe, last_event_id, token, silence_s)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=silence_s)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        while (wait_s := await tail.connect(session)) is not None:
            await sleep(wait_s)


class _Tail:
    """What outlives one connection: the last id, the reconnection time, the failures in a row."""

    def __init__(self, url: str, scribe: Scribe, last_event_id: str, token: str | None, silence_s: float) -> None:
        self._url = url
        self._where = _shown(url)
        self._scribe = scribe
        self._id = last_event_id
        self._token = token
        self._silence_s = silence_s
        self._retry_s = _RETRY_S
        self._failures = 0

    async def connect(self, session: aiohttp.ClientSession) -> float | None:
        """Follow one connection to its end; return how long to wait, None when it was the last."""
        try:
            async with session.get(self._url, headers=self._headers()) as response:
                if response.status == 204:
                    self._scribe.notice("the server has nothing more to say (204)")
                    return None
                if response.status != 200:
                    return await self._refused(response)
                _check_type(response.content_type)
                self._failures = 0
                return await self._read(response)
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError, ValueError):  # the last: an id no header may carry
            raise TailError(f"{self._where}: cannot be asked for: check the URL and the last event id") from None
        except (aiohttp.ClientError, TimeoutError) as error:
            return self._again(f"cannot reach {self._where}: {_reason(error)}", None)

    def _headers(self) -> dict[str, str]:
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-cache"}
        if self._id:
            headers["Last-Event-ID"] = self._id
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        return headers

    async def _read(self, response: aiohttp.ClientResponse) -> float:
        parser = StreamParser(self._id)
        ended = "the stream ended"
        told = False
        try:
            async for piece in response.content.iter_any():
                for block in parser.feed(piece):
                    self._keep(parser)
                    told = block.type in {"gateway.close", "gateway.unavailable"}
                    self._scribe.write(block, self._retry_s)
                self._keep(parser)
        except (aiohttp.SocketTimeoutError, TimeoutError):
            ended = f"no sign of life for {self._silence_s:.0f} s"
        except (aiohttp.ClientError, OSError) as error:
            ended = f"the connection broke: {_reason(error)}"
        if not told:
            self._scribe.notice(f"{ended}, back in {self._retry_s:.1f} s")
        return self._retry_s

    def _keep(self, parser: StreamParser) -> None:
        self._id = parser.last_event_id
        if parser.retry_s is not None:
            self._retry_s = min(max(parser.retry_s, _MIN_RETRY_S), _MAX_RETRY_S)

    async def _refused(self, response: aiohttp.ClientResponse) -> float:
        sentence = f"{self._where}: {response.status} {await _detail(response)}"
        if response.status < 500 and response.status not in _TEMPORARY:
            raise TailError(sentence)
        after = response.headers.get("Retry-After", "")
        return self._again(sentence, float(after[:6]) if after.isascii() and after.isdigit() else None)

    def _again(self, sentence: str, wait_s: float | None) -> float:
        """Back off: twice as long each time, drawn from the upper half, as many clients may wait."""
        self._failures += 1
        if wait_s is None:
            longest = max(_MAX_BACKOFF_S, self._retry_s)
            wait_s = min(self._retry_s * 2 ** min(self._failures - 1, 10), longest)
            wait_s *= random.uniform(0.5, 1)
        wait_s = min(max(wait_s, _MIN_RETRY_S), _MAX_RETRY_S)
        self._scribe.notice(f"{sentence}; again in {wait_s:.1f} s")
        return wait_s


def _shown(url: str) -> str:
    """Reduce a URL to what may be shown: no user, no password, no query."""
    parts = urlsplit(url)
    return _printable(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}")


def _reason(error: Exception) -> str:
    """Say what went wrong; the text of a response error would hold the URL with its query."""
    text = error.message if isinstance(error, aiohttp.ClientResponseError) else str(error)
    return text or type(error).__name__


def _check_type(content_type: str) -> None:
    if content_type != "text/event-stream":
        raise TailError(f"not an event stream, but {content_type}: is the URL right?")


async def _detail(response: aiohttp.ClientResponse) -> str:
    """Find the sentence meant for the person: problem+json's detail, or the reason phrase."""
    text = (await response.content.read(64 * 1024)).decode(errors="replace")
    problem = _object(text)
    return _printable(str(problem.get("detail") or problem.get("title") or response.reason or ""))


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _names(told: dict[str, Any]) -> str:
    channels = told.get("channels")
    names = [str(name) for name in channels] if isinstance(channels, list) else []
    return f"channel{'' if len(names) == 1 else 's'} {', '.join(names) or 'unknown'}"


def _printable(text: str) -> str:
    """Escape what could steer a terminal; a tab is a space."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode()
        for char in text.replace("\t", " ")
    )
