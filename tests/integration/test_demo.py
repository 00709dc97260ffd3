"""The demo as a newcomer runs it: one command, a page, a stream, and nothing left behind."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sse_gateway import demo_site
from sse_gateway.tail import StreamParser
from tests.support.valkey import free_port

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from sse_gateway.tail import Block


PAGE = Path(demo_site.__file__).parent / "demo_page"
NAME = "abcdefgh"


@dataclass(frozen=True, slots=True)
class Demo:
    """A running demo.

    Attributes:
        process: The command.
        port: Of its page.
        redis_port: Of its Valkey.
        directory: Where it may put temporary files.
    """

    process: subprocess.Popen[str]
    port: int
    redis_port: int
    directory: Path


@contextlib.contextmanager
def started(directory: Path) -> Iterator[Demo]:
    """Start the demo; the block begins when it has said that everything is up."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "sse_gateway", "demo", "--port", str(port)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(directory)},
    )
    try:
        assert process.stdout is not None
        welcome = ""
        while "Ctrl-C ends everything" not in welcome:
            line = process.stdout.readline()
            assert line, f"the demo ended with {process.wait(10)}"
            welcome += line
        assert f"http://127.0.0.1:{port}/\n" in welcome
        redis = re.search(r"Redis +redis://127\.0\.0\.1:(\d+)", welcome)
        assert redis is not None
        yield Demo(process, port, int(redis[1]), directory)
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    """A running demo."""
    with started(tmp_path) as running:
        yield running


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """One demo for the tests that leave it as it was."""
    with started(tmp_path_factory.mktemp("demo")) as running:
        yield running


@contextlib.contextmanager
def get(demo: Demo, path: str) -> Iterator[http.client.HTTPResponse]:
    """GET a path of the public listener."""
    connection = http.client.HTTPConnection("127.0.0.1", demo.port, timeout=30)
    with contextlib.closing(connection):
        connection.request("GET", path, headers={"Accept": "text/event-stream"})
        with connection.getresponse() as response:
            yield response


def blocks(demo: Demo, path: str) -> Generator[Block, None, None]:
    """Follow a stream; connects again where the gateway says that it is not ready yet."""
    while True:
        parser = StreamParser()
        with get(demo, path) as response:
            assert response.status == 200
            while piece := response.read1(65_536):
                yield from parser.feed(piece)


def test_the_page_and_its_parts_are_served(demo: Demo) -> None:
    """The page needs nothing from elsewhere, and says so to the browser."""
    with get(demo, "/") as response:
        page = response.read().decode()
        assert response.status == 200
        assert "default-src 'none'" in (response.headers["Content-Security-Policy"] or "")
    wanted = set(re.findall(r'(?:src|href)="([^":]+)"', page))
    assert wanted == {"icon.svg", "page.css", "page.js"}
    served: set[str] = set()
    while wanted - served:
        part = (wanted - served).pop()
        with get(demo, f"/{part}") as response:
            assert response.status == 200
            wanted |= set(re.findall(r'from "\./([^"]+)"', response.read().decode()))
        served.add(part)
    assert served == {path.name for path in PAGE.iterdir()} - {"index.html"}
    with get(demo, "/favicon.ico") as response:
        assert response.status == 404


def test_the_page_s_stream_brings_job_prices_and_what_one_publishes(demo: Demo) -> None:
    """One stream carries both samples and a message published from another terminal."""
    stream = blocks(demo, "/events?channel=job:report&channel=price:*&channel=hello&wrap=1&replay=20")
    waiting = {"job:report", "price", "hello"}
    while waiting:
        block = next(stream)
        if block.type == "gateway.open":
            publish = [sys.executable, "-m", "sse_gateway", "publish", "demo:hello", "hi"]
            subprocess.run(
                [*publish, "--redis", f"redis://127.0.0.1:{demo.redis_port}"],
                check=True,
                timeout=30,
                stdout=subprocess.DEVNULL,
            )
        if block.type != "message":
            continue
        event = json.loads(block.data)
        channel, data = event["channel"], event["data"]
        match channel:
            case "job:report" if channel in waiting:  # later ones too, while `publish` takes its time
                assert data["job"] == 1
                assert event["event"] in {"job.queued", "job.progress"}
            case "job:report":
                continue
            case "hello":
                assert (event["event"], data) == ("message", "hi")
            case _:
                assert channel == f"price:{data['symbol']}"
                assert data["price"] > 0
        waiting.discard(channel if channel in waiting else "price")
    stream.close()


def ask(demo: Demo, what: str, told: Any, **headers: str) -> tuple[int, dict[str, Any]]:
    """POST an instruction; the headers are those of the demo's own page unless others are given."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", demo.port, timeout=30)) as connection:
        host = f"127.0.0.1:{demo.port}"
        sent = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        body = told if isinstance(told, bytes) else json.dumps(told).encode()
        connection.request("POST", f"/demo/{what}", body, {name: value for name, value in sent.items() if value})
        with connection.getresponse() as response:
            return response.status, json.loads(response.read())


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({"Origin": "http://evil.example", "Sec_Fetch_Site": "cross-site"}, id="another site"),
        pytest.param({"Sec_Fetch_Site": "same-site"}, id="another port of this machine"),
        pytest.param({"Origin": "http://127.0.0.1:1", "Sec_Fetch_Site": ""}, id="an old browser, another port"),
        pytest.param({"Origin": "", "Sec_Fetch_Site": ""}, id="no browser"),
        pytest.param({"Host": "evil.example:80", "Origin": "http://evil.example:80"}, id="a name pointed at us"),
    ],
)
@pytest.mark.parametrize("what", ["publish", "cut", "stall", "stop-redis"])
def test_controls_are_for_the_demo_s_own_page(what: str, headers: dict[str, str], shared: Demo) -> None:
    """No other page, and no foreign name pointed at the loopback, can press a button."""
    told = {"page": NAME, "channel": "hello", "text": "x"}
    assert ask(shared, what, told, **headers)[0] == 403


@pytest.mark.parametrize(
    "told",
    [
        b"",
        b"no JSON",
        b"[" * 4000,
        [],
        {},
        {"page": "../../etc"},
        {"page": NAME, "channel": "tick", "text": "x"},
        {"page": NAME, "channel": "hello", "text": ""},
        {"page": NAME, "channel": "hello", "text": "x" * 501},
        {"page": NAME, "channel": "hello", "text": 1},
        {"page": NAME, "channel": "hello", "text": "x" * 5000},
    ],
)
def test_instructions_are_checked(told: Any, shared: Demo) -> None:
    """What is no instruction is refused with a sentence, whatever it is."""
    status, answer = ask(shared, "publish", told)
    assert status == 400
    assert answer["detail"]


def test_buttons_are_pressed_with_post(shared: Demo) -> None:
    """A link cannot press a button."""
    with get(shared, "/demo/stop-redis") as response:
        assert response.status == 405


def test_a_relayed_stream_is_the_gateway_s_own(shared: Demo) -> None:
    """Through the demo's bad network come the same blocks, and a cut ends them without a clean end."""
    path = "/events/tick"
    next(blocks(shared, path))  # it is up
    with get(shared, f"/relay/{NAME}/main{path}") as relayed, get(shared, path) as direct:
        assert relayed.headers["Content-Type"] == direct.headers["Content-Type"] == "text/event-stream"
        parsers = StreamParser(), StreamParser()
        ticks: list[list[Block]] = [[], []]
        while len(both := overlap(ticks)) < 3:
            for parser, response, of_one in zip(parsers, (relayed, direct), ticks, strict=True):
                of_one += [block for block in parser.feed(response.read1(65_536)) if block.type == "message"]
        common = [[block for block in of_one if number_of(block) in both] for of_one in ticks]
        assert common[0] == common[1]
        assert ask(shared, "cut", {"page": NAME}) == (200, {"cut": 1})
        with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
            relayed.read()
    assert ask(shared, "cut", {"page": NAME}) == (200, {"cut": 0})


def number_of(tick: Block) -> int:
    """The number of a tick."""
    number: int = json.loads(tick.data)["n"]
    return number


def overlap(ticks: list[list[Block]]) -> range:
    """The numbers that all have reached, from the first that all have."""
    if not all(ticks):
        return range(0)
    return range(max(number_of(of_one[0]) for of_one in ticks), 1 + min(number_of(of_one[-1]) for of_one in ticks))


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_stop_leaves_nothing_behind(name: str, demo: Demo) -> None:
    """The demo ends with 0; its Valkey and its files are gone."""
    with socket.create_connection(("127.0.0.1", demo.redis_port)) as link:
        link.sendall(b"PING\r\n")
        assert link.recv(7, socket.MSG_WAITALL) == b"+PONG\r\n"  # it has accepted us: its end is no reset
        demo.process.send_signal(signal.Signals[name])
        assert demo.process.wait(30) == 0
        link.settimeout(10)
        assert not link.recv(1)
    assert not list(demo.directory.iterdir())


def test_a_stop_in_the_midst_of_everything(demo: Demo) -> None:
    """Also while readers are stalled and Redis is away, the demo ends with 0, and nothing is left."""
    with get(demo, f"/relay/{NAME}/slow/events/slow:latest:{NAME}") as response:
        assert response.read1(1)
        assert ask(demo, "stall", {"page": NAME})[0] == 200
        assert ask(demo, "stop-redis", {"page": NAME}) == (200, {"seconds": 5.0})
        assert ask(demo, "stop-redis", {"page": NAME})[0] == 409
        while ask(demo, "publish", {"page": NAME, "channel": "hello", "text": "x"}) != (200, {"published": False}):
            pass  # it is about to end
        demo.process.send_signal(signal.SIGTERM)
        assert demo.process.wait(30) == 0
    assert not list(demo.directory.iterdir())


def test_a_killed_demo_leaves_no_server_behind(demo: Demo) -> None:
    """Also where no cleaning up is possible, the Valkey ends with the demo."""
    with socket.create_connection(("127.0.0.1", demo.redis_port), timeout=10) as link:
        demo.process.kill()
        with contextlib.suppress(ConnectionResetError):  # it may end before it has accepted us
            assert not link.recv(1)
