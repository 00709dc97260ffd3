"""What clients of other hands make of the gateway's streams, and what each of them does otherwise."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING

import pytest

from tests.clients import tools
from tests.clients.driver import following
from tests.clients.table import CHARACTERS, CLIENTS, LINES, LONG, After, Client, CutEvent
from tests.support.gateway_process import CONNECTIONS, configuration, rule
from tests.support.proxy import proxied
from tests.support.valkey import Valkey, running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tests.clients.conftest import Refuser
    from tests.clients.driver import Following
    from tests.conftest import Connect
    from tests.support.gateway_process import Config, GatewayProcess, Gateways

pytestmark = [pytest.mark.clients, pytest.mark.timeout(300)]

RULES = (
    rule("sse:json:*", format="json"),
    rule("sse:small:*", window={"max_events": 3}),
    rule("sse:*"),
)


@pytest.fixture(params=CLIENTS, ids=lambda client: client.name)
def client(request: pytest.FixtureRequest) -> Client:
    """Take one client after the other; those whose tools are missing are skipped."""
    chosen: Client = request.param
    if reason := tools.missing(chosen.tool):
        pytest.skip(f"{chosen.name}: {reason}")
    return chosen


@pytest.fixture(scope="module")
def gateway(valkey: Valkey, module_gateways: Gateways) -> GatewayProcess:
    """Run a gateway that lets streams be."""
    return module_gateways.start(config_for(valkey))


def config_for(server: Valkey, **sections: Config) -> Config:
    """Build a configuration with which clients come back soon."""
    sections["stream"] = {"retry": "100ms", **sections.get("stream", {})}
    return configuration(server.url, *RULES, shutdown={"drain": "200ms"}, **sections)


def url(gateway: GatewayProcess, channel: str, *, port: int | None = None) -> str:
    """Return the URL of a channel's stream, perhaps through a proxy's port."""
    return f"http://127.0.0.1:{port or gateway.config['listen']['port']}/events/{channel}"


def head(connect: Connect, gateway: GatewayProcess, channel: str) -> str:
    """Return a cursor that stands at the log's head now."""
    stream = connect(gateway, f"/events/{channel}")
    cursor = stream.wait_open().id
    stream.close()
    assert cursor is not None
    return cursor


class Publisher:
    """Publishes to one channel, and knows what a client of it should have got.

    Attributes:
        sent: Data of all events so far.
    """

    def __init__(self, server: Valkey, channel: str) -> None:
        self.sent: list[str] = []
        self._server = server
        self._channel = f"sse:{channel}"

    def __call__(self, *data: str) -> None:
        """Publish each as one event."""
        self.sent += data
        self._server.publish_many([(self._channel, text) for text in data])


# -- what a stream holds


def test_a_client_gets_events_with_their_type_and_their_cursor(
    client: Client, gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """Named and unnamed events, the gateway's own first block and its heartbeats, as a strict client sees them."""
    name = f"json:{channel}"
    strict = connect(gateway, f"/events/{name}")
    strict.wait_open()
    with following(client, url(gateway, name)) as followed:
        opened = followed.wait_type("gateway.open")
        valkey.publish(f"sse:{name}", json.dumps({"event": "price", "data": {"x": [1, "é"]}}))
        valkey.publish(f"sse:{name}", json.dumps({"data": "unnamed"}))
        strict.wait_data("unnamed")
        followed.wait_data("unnamed")
        seen = [(event.type, event.data, event.id) for event in followed.events]
        heartbeat = followed.wait_type("gateway.heartbeat")

    assert json.loads(opened.data) == {"channels": [name], "replay": "none"}
    assert opened.id
    assert seen == [(block.type, block.data, block.id) for block in strict.events]
    assert json.loads(heartbeat.data) == {"live": True}
    assert heartbeat.id


@pytest.mark.parametrize("texts", [LINES, CHARACTERS], ids=["lines", "characters"])
def test_a_client_delivers_text_as_it_was_published(
    client: Client, gateway: GatewayProcess, valkey: Valkey, channel: str, texts: Mapping[str, str]
) -> None:
    """Several lines, empty ones, spaces and any character survive, but for what the table says."""
    publish = Publisher(valkey, channel)
    with following(client, url(gateway, channel)) as followed:
        followed.wait_type("gateway.open")
        for name, text in texts.items():
            publish(text, f"after {name}")
        followed.wait_data(publish.sent[-1])
        got = followed.data

    expected = []
    for name, text in texts.items():
        expected += [client.alters.get(name, text.replace("\r\n", "\n").replace("\r", "\n")), f"after {name}"]
    assert got == expected


def test_a_client_can_read_lines_up_to_a_length(
    client: Client, gateway: GatewayProcess, valkey: Valkey, channel: str
) -> None:
    """A line of almost a mebibyte, or what the table says; beyond, its connection breaks and no event comes."""
    with contextlib.ExitStack() as stack:
        streams = {size: stack.enter_context(following(client, url(gateway, f"{channel}{size}"))) for size in LONG}
        for size, followed in streams.items():
            followed.wait_type("gateway.open")
            Publisher(valkey, f"{channel}{size}")("x" * size, "end")
        for size, followed in streams.items():
            if size <= client.longest:
                followed.wait_data("end")
                assert [len(data) for data in followed.data] == [size, 3]
            else:
                followed.wait_kind("error")
                assert followed.data == []


# -- coming back


def check_return(client: Client, followed: Following, after: After) -> None:
    """Hold a client to what the table says about coming back by itself."""
    assert followed.ended is (after not in client.returns), followed.reports


def test_a_client_resumes_after_a_cut(client: Client, gateway: GatewayProcess, valkey: Valkey, channel: str) -> None:
    """Cut inside an event, and between events: nothing is lost and nothing comes twice, or as the table says."""
    publish = Publisher(valkey, channel)
    with (
        proxied(("127.0.0.1", gateway.config["listen"]["port"])) as proxy,
        following(client, url(gateway, channel, port=proxy.port), again=True) as followed,
    ):
        followed.wait_type("gateway.open")
        publish("a", "b", "c")
        followed.wait_data("c")
        cut_at = proxy.to_client.cut_after = proxy.to_client.passed + 5_000
        publish("d" * 20_000, "e")
        followed.wait(lambda: proxy.to_client.passed >= cut_at, "cut")
        proxy.to_client.cut_after = None
        followed.wait_data("e")
        for data in ("f", "g"):
            proxy.reset_all()
            publish(data)
            followed.wait_data(data)
        got = followed.data
        check_return(client, followed, After.CUT)
        assert followed.of_type("gateway.gap") == []

    assert cut_event(publish.sent, got) is client.cut_event


def cut_event(sent: list[str], got: list[str]) -> CutEvent:
    """Tell what became of the long one among `sent`; the others must all be there."""
    if got == sent:
        return CutEvent.WHOLE
    assert [data for data in got if len(data) == 1] == [data for data in sent if len(data) == 1]
    rest = [data for data in got if len(data) > 1]
    if not rest:
        return CutEvent.LOST
    assert len(rest) == 1
    assert sent[3].startswith(rest[0])
    return CutEvent.TRUNCATED


def test_a_client_is_told_of_a_gap(
    client: Client, gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """It sees `gateway.gap` as an event, before the events that are left."""
    name = f"small:{channel}"
    cursor = head(connect, gateway, name)
    Publisher(valkey, name)(*"abcdefgh")
    with following(client, url(gateway, name), cursor=cursor) as followed:
        followed.wait_data("h")
        told = [report for report in followed.reports if report.type in {"gateway.gap", "message"}]

    gap, *rest = told
    assert json.loads(gap.data) == {"reason": "window", "channels": [name], "missed": 5}
    assert gap.id
    assert [event.data for event in rest] == ["f", "g", "h"]


@pytest.fixture(scope="module")
def brief_gateway(valkey: Valkey, module_gateways: Gateways) -> GatewayProcess:
    """Run a gateway that soon ends every stream."""
    return module_gateways.start(config_for(valkey, stream={"max_age": "400ms"}))


def test_a_client_resumes_after_a_clean_end(
    client: Client, brief_gateway: GatewayProcess, valkey: Valkey, channel: str
) -> None:
    """It is told why the stream ends; what is published meanwhile comes once, when it is back."""
    publish = Publisher(valkey, channel)
    with following(client, url(brief_gateway, channel), again=True) as followed:
        for number, data in enumerate("ab", 1):
            followed.wait_type("gateway.close", number)
            publish(data)
            followed.wait_data(data)
        closed, got = followed.of_type("gateway.close")[0], followed.data
        check_return(client, followed, After.END)
        assert followed.of_type("gateway.gap") == []

    assert json.loads(closed.data) == {"reason": "max_age"}
    assert got == publish.sent


@pytest.fixture(scope="module")
def mortal_gateway(valkey: Valkey, module_gateways: Gateways) -> GatewayProcess:
    """Run a gateway that a test may stop."""
    return module_gateways.start(config_for(valkey))


@pytest.fixture
def passing_gateway(mortal_gateway: GatewayProcess) -> GatewayProcess:
    """Have it run, whatever the test before has left."""
    return mortal_gateway if mortal_gateway.running else mortal_gateway.start()


def test_a_client_survives_a_restart_of_the_gateway(
    client: Client, passing_gateway: GatewayProcess, valkey: Valkey, channel: str
) -> None:
    """It is told to go, finds nobody there, and once the gateway is back is told that the log began anew."""
    publish = Publisher(valkey, channel)
    with following(client, url(passing_gateway, channel), again=True) as followed:
        followed.wait_type("gateway.open")
        publish("before")
        followed.wait_data("before")
        assert passing_gateway.stop() == 0
        closed = followed.wait_type("gateway.close")
        errors = len(followed.of_kind("error"))
        followed.wait(lambda: len(followed.of_kind("error")) >= errors + 2, "attempts while nobody is there")
        passing_gateway.start()
        gap = followed.wait_type("gateway.gap")
        publish("after")
        followed.wait_data("after")
        got = followed.data
        ends, after_the_end = len(followed.of_kind("end")), int(After.END not in client.returns)
        assert ends == after_the_end if After.AWAY in client.returns else ends > after_the_end, followed.reports

    assert json.loads(closed.data) == {"reason": "drain"}
    assert json.loads(gap.data)["reason"] == "epoch"
    assert got == publish.sent


# -- refusals


@pytest.fixture(scope="module")
def lone_valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """Run a Valkey for the gateway that is to lose it."""
    with running(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture(scope="module")
def lone_gateway(lone_valkey: Valkey, module_gateways: Gateways) -> GatewayProcess:
    """Run a gateway that is to lose its source."""
    return module_gateways.start(config_for(lone_valkey))


def test_a_client_comes_back_from_a_temporary_refusal(
    client: Client, lone_gateway: GatewayProcess, lone_valkey: Valkey, channel: str
) -> None:
    """While the source is away it is told so, and once that is back it follows the stream."""
    publish = Publisher(lone_valkey, channel)
    lone_valkey.kill()
    lone_gateway.wait_not_ready()
    with following(client, url(lone_gateway, channel), again=True) as followed:
        refused = followed.wait_type("gateway.unavailable")
        lone_valkey.start()
        followed.wait_type("gateway.open")
        publish("a")
        followed.wait_data("a")
        got = followed.data
        check_return(client, followed, After.END)

    assert json.loads(refused.data) == {"reason": "source"}
    assert got == publish.sent


@pytest.fixture(scope="module")
def full_gateway(valkey: Valkey, module_gateways: Gateways) -> GatewayProcess:
    """Run a gateway with room for one stream."""
    return module_gateways.start(config_for(valkey, limits={"connections": 1}))


def test_a_temporary_refusal_costs_a_client_nothing(
    client: Client, full_gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """It has no id, so the client resumes from where it was; but for one that then forgets its first cursor."""
    full_gateway.wait_metric(CONNECTIONS, 0)
    occupant = connect(full_gateway, f"/events/{channel}")
    cursor = occupant.wait_open().id
    assert cursor is not None
    publish = Publisher(valkey, channel)
    publish("missed")
    with following(client, url(full_gateway, channel), cursor=cursor, again=True) as followed:
        refused = followed.wait_type("gateway.unavailable")
        occupant.close()
        opened = followed.wait_type("gateway.open")
        publish("live")
        followed.wait_data("live")
        got = followed.data

    assert json.loads(refused.data) == {"reason": "full"}
    assert json.loads(opened.data)["replay"] == ("complete" if client.keeps_cursor else "none")
    assert got == (publish.sent if client.keeps_cursor else ["live"])


def test_a_client_takes_other_answers_for_final_or_not(client: Client, refuser: Refuser) -> None:
    """What it does after a status other than 200 is what the table says."""
    statuses = [After.NO_CONTENT, After.NOT_FOUND, After.UNAVAILABLE]
    with contextlib.ExitStack() as stack:
        tries = {after: stack.enter_context(following(client, refuser.url(int(after)))) for after in statuses}
        for after, followed in tries.items():
            followed.wait(settled(followed, refuser, int(after)), "second request, or the end")
            check_return(client, followed, after)


def settled(followed: Following, refuser: Refuser, status: int) -> Callable[[], bool]:
    """Build a probe for the end of a client, or for its second request."""
    return lambda: followed.ended or refuser.requests[status] > 1
