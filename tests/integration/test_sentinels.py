"""Whom sentinels name: whose word counts, how soon news are heard, and what is told if nobody can be believed."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest

from sse_gateway.errors import SourceError
from sse_gateway.link import Link
from sse_gateway.place import Address, Watch
from sse_gateway.primary import Primary, open_link
from sse_gateway.sentinels import ANSWER_S, POLL_S, Sentinels, Word
from tests.conftest import SERVER
from tests.integration.test_source import Following
from tests.support.documents import DOCS, read
from tests.support.resp3_server import REPLICA, Recorder, Resp3Server, bulk, message, resp3_server
from tests.support.sentinels import SERVICE, SentinelSet, sentinel_set

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

PASSWORD = "watch me"  # noqa: S105 - of a server of the test's own
NOQUORUM = b"-NOQUORUM 1 usable Sentinels. Not enough available Sentinels to reach the majority\r\n"


def says(
    server: Resp3Server, port: int, *, epoch: int = 1, flags: str = "master", quorum: bytes = b"+OK 3\r\n"
) -> None:
    """Let a scripted sentinel name a primary from now on."""
    known = {"name": SERVICE, "ip": "127.0.0.1", "port": str(port), "flags": flags, "config-epoch": str(epoch)}
    word = b"%%%d\r\n" % len(known) + b"".join(bulk(key) + bulk(value) for key, value in known.items())
    server.answers["SENTINEL"] = lambda words: quorum if words[1].upper() == b"CKQUORUM" else word


@pytest.fixture
async def three() -> AsyncIterator[list[Resp3Server]]:
    """Run three scripted sentinels that agree on port 1."""
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(resp3_server()) for _ in range(3)]
        for server in servers:
            says(server, 1)
        yield servers


class Ear:
    """Sentinels that are followed, and what was heard of moves."""

    def __init__(self, servers: Sequence[Resp3Server], *, timeout_s: float = 20.0) -> None:
        watch = Watch(SERVICE, tuple(Address("127.0.0.1", server.port) for server in servers))
        self.moves: list[Address] = []
        self.failures: list[BaseException] = []
        self.sentinels = Sentinels(watch, timeout_s=timeout_s, moved=self.moves.append)

    async def __aenter__(self) -> Ear:
        self._followed = self.sentinels.followed(self.failures.append)
        await self._followed.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._followed.__aexit__(None, None, None)
        assert self.failures == []

    async def until(self, is_so: Callable[[Sentinels], bool], timeout_s: float = 20.0) -> None:
        """Wait until something about them is true."""
        async with asyncio.timeout(timeout_s):
            while not is_so(self.sentinels):
                self.sentinels._news.clear()
                await self.sentinels._news.wait()

    async def until_known(self, count: int = 3) -> None:
        """Wait until so many have said something, or were found not to."""
        await self.until(lambda s: sum(sentinel.is_known for sentinel in s._sentinels) >= count)

    async def until_named(self, port: int, timeout_s: float = 20.0) -> None:
        """Wait until they name another."""
        await self.until(lambda s: s.primary == Address("127.0.0.1", port), timeout_s)

    async def located(self) -> int:
        """The port of the primary."""
        return (await self.sentinels.locate()).port


async def test_the_newest_configuration_is_right(three: list[Resp3Server]) -> None:
    """Two that have not heard of the failover yet do not outvote the one that has."""
    says(three[1], 2, epoch=5)
    async with Ear(three) as ear:
        await ear.until_known()
        assert await ear.located() == 2


async def test_who_sees_no_majority_does_not_count(three: list[Resp3Server]) -> None:
    """A sentinel that is cut off would name the old primary for ever, however new its configuration."""
    says(three[0], 1, epoch=9, quorum=NOQUORUM)
    says(three[1], 2, epoch=5)
    says(three[2], 2, epoch=5)
    async with Ear(three) as ear:
        await ear.until_known()
        assert await ear.located() == 2
        assert ear.sentinels.heard == 2


async def test_one_that_sees_a_majority_is_enough(three: list[Resp3Server]) -> None:
    """The others need not be within reach of ours."""
    three[0].answers.clear()
    says(three[1], 1, quorum=NOQUORUM)
    async with Ear(three) as ear:
        assert await ear.located() == 1


async def test_nobody_to_believe_is_told_with_each_reason(three: list[Resp3Server]) -> None:
    """Silent, without a majority, without the service: each is named with what it says."""
    three[0].answers.clear()
    says(three[1], 1, quorum=NOQUORUM)
    three[2].answers["SENTINEL"] = b"-ERR No such master with that name\r\n"
    async with Ear(three, timeout_s=0.3) as ear:
        await ear.until_known()
        with pytest.raises(SourceError) as caught:
            await ear.located()
    told = str(caught.value)
    for part in (f"no primary of {SERVICE!r}", "no answer", "NOQUORUM 1 usable", "No such master"):
        assert part in told
    for server in three:
        assert f"127.0.0.1:{server.port}: " in told


@pytest.mark.parametrize("answer", [b"*0\r\n", b"%1\r\n$2\r\nip\r\n$1\r\nx\r\n", b":1\r\n", b"+OK\r\n"])
async def test_what_is_no_sentinel_is_told(three: list[Resp3Server], answer: bytes) -> None:
    """I9: whatever somebody answers, it ends no process."""
    three[0].answers["SENTINEL"] = lambda words: b"+OK\r\n" if words[1].upper() == b"CKQUORUM" else answer
    async with Ear(three[:1]) as ear:
        with pytest.raises(SourceError, match=SERVICE):
            await ear.located()


async def test_a_primary_that_is_down_is_not_begun_with(three: list[Resp3Server]) -> None:
    """A failover is about to come, or there is nobody to fail over to."""
    for server in three:
        says(server, 1, flags="master,o_down")
    async with Ear(three) as ear:
        with pytest.raises(SourceError, match="is down"):
            await ear.located()


async def test_a_frozen_sentinel_delays_nobody(three: list[Resp3Server]) -> None:
    """Those who answer are enough, after a moment in which the others could have."""
    three[2].answers.clear()
    async with Ear(three, timeout_s=30) as ear:
        began = time.monotonic()
        assert await ear.located() == 1
        assert time.monotonic() - began < ANSWER_S


async def test_news_are_heard_at_once(three: list[Resp3Server], monkeypatch: pytest.MonkeyPatch) -> None:
    """`+switch-master` makes us ask, long before it is time to."""
    monkeypatch.setattr("sse_gateway.sentinels.POLL_S", 60.0)
    async with Ear(three, timeout_s=30) as ear:
        await ear.until_known()
        asked = len(three[0].commands)
        says(three[0], 2, epoch=2)
        await three[0].send(message("+switch-master", "+switch-master", f"{SERVICE} 127.0.0.1 1 127.0.0.1 2"))
        await ear.until_named(2)
        assert len(three[0].commands) > asked

    assert ear.moves == [Address("127.0.0.1", 2)]
    assert ear.sentinels.moves == 1


async def test_unheard_news_are_found_by_asking(three: list[Resp3Server]) -> None:
    """Pub/sub may miss what was said; a second later it is known all the same."""
    async with Ear(three) as ear:
        await ear.located()
        for server in three:
            says(server, 2, epoch=2)
        await ear.until_named(2)


async def test_they_stay_named_while_all_are_away(three: list[Resp3Server]) -> None:
    """That nobody answers is no news of another primary."""
    async with Ear(three, timeout_s=0.2) as ear:
        await ear.until_named(1)
        for server in three:
            server.answers.pop("SENTINEL")
        await ear.until(lambda s: s.heard == 0)

    assert ear.sentinels.primary == Address("127.0.0.1", 1)
    assert ear.moves == []


async def test_an_older_word_counts_only_from_most_of_them(three: list[Resp3Server]) -> None:
    """One that has come back with an old configuration is not followed; sentinels that were set up anew are."""
    for server in three:
        says(server, 2, epoch=5)
    async with Ear(three, timeout_s=0.2) as ear:
        await ear.until_named(2)
        for server in three[1:]:
            server.answers.pop("SENTINEL")
        says(three[0], 1, epoch=4)
        await ear.until(
            lambda s: s.heard == 1 and s._sentinels[0].word == Word(Address("127.0.0.1", 1), 4, is_down=False)
        )
        with pytest.raises(SourceError, match="older than what was heard"):
            await ear.located()
        assert ear.moves == []

        says(three[1], 1, epoch=0)
        says(three[2], 1, epoch=0)
        await ear.until_named(1)


# -- real sentinels with passwords


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentinelSet]:
    """Run a set whose sentinels have a password of their own."""
    with sentinel_set(tmp_path_factory.mktemp("s"), kind=SERVER, sentinel_password=PASSWORD) as started:
        yield started


async def test_the_least_privileged_user_of_a_sentinel_will_do(guarded: SentinelSet) -> None:
    """What the operators' page grants is enough."""
    (granted,) = re.findall(r"a user needs no more than `([^`]+)`", read(DOCS / "operations.md"))
    for sentinel in guarded.sentinels:
        sentinel.call("ACL", "SETUSER", "gw", "on", f">{PASSWORD}", *granted.split())
    addresses = tuple(Address("127.0.0.1", sentinel.port) for sentinel in guarded.sentinels)
    sentinels = Sentinels(Watch(SERVICE, addresses, "gw", PASSWORD), timeout_s=20.0, moved=lambda _: None)
    async with sentinels.followed(lambda error: pytest.fail(str(error))):
        assert (await sentinels.locate()).port == guarded.primary.proxy.port


async def test_sentinels_have_credentials_of_their_own(guarded: SentinelSet) -> None:
    """They are options of the URL; without them it is told that they are needed."""
    addresses = tuple(Address("127.0.0.1", sentinel.port) for sentinel in guarded.sentinels)
    for password, told in ((PASSWORD, ""), ("", "NOAUTH"), ("wrong", "WRONGPASS|invalid")):
        sentinels = Sentinels(Watch(SERVICE, addresses, password=password), timeout_s=20.0, moved=lambda _: None)
        async with sentinels.followed(lambda error: pytest.fail(str(error))):
            with pytest.raises(SourceError, match=told) if told else contextlib.nullcontext():
                assert (await sentinels.locate()).port == guarded.primary.proxy.port


# -- a connection


def link_of(url: str) -> Awaitable[Link]:
    """Open one connection."""
    return open_link(url, lambda: Link(Recorder(), b"control", b"token"), timeout_s=20.0)


async def test_one_connection_asks_the_sentinels_once(three: list[Resp3Server]) -> None:
    """It goes to whom they name, and nobody is asked any more when it is open."""
    async with resp3_server() as primary:
        for server in three:
            says(server, primary.port)
        link = await link_of(f"redis+sentinel://{','.join(f'127.0.0.1:{s.port}' for s in three)}/{SERVICE}")
        assert await link.call(b"PING") == b"PONG"
        asked = [len(server.commands) for server in three]
        await asyncio.sleep(2 * POLL_S)
        link.close()

    assert [len(server.commands) for server in three] == asked


async def test_every_connection_leaves_a_former_primary(three: list[Resp3Server]) -> None:
    """What goes beside the source, a hand-over or the store, must not go on at a server that is none any more."""
    hosts = ",".join(f"127.0.0.1:{server.port}" for server in three)
    async with resp3_server() as old, resp3_server() as new:
        await name(three, old.port, 1)
        primary = Primary(f"redis+sentinel://{hosts}/{SERVICE}", timeout_s=20.0)
        async with primary.followed(lambda error: pytest.fail(str(error))):
            links = [await primary.open(lambda: Link(Recorder(), b"control", b"token")) for _ in range(2)]
            await name(three, new.port, 2)
            for link in links:
                await asyncio.wait_for(link.lost.wait(), 5)
                assert link.why == f"the sentinels name another primary: 127.0.0.1:{new.port}"
            link = await primary.open(lambda: Link(Recorder(), b"control", b"token"))
            assert await link.call(b"PING") == b"PONG"
            link.close()


async def test_a_primary_that_is_not_there_is_told_by_its_address(three: list[Resp3Server]) -> None:
    """The operator sees whom the sentinels name."""
    with pytest.raises(SourceError, match=r"127\.0\.0\.1:1, which the sentinels name: "):
        await link_of(f"redis+sentinel://127.0.0.1:{three[0].port}/{SERVICE}")


# -- a source that follows them


@pytest.fixture
async def follow(three: list[Resp3Server]) -> AsyncIterator[Callable[[], Following]]:
    """Start sources that know the three sentinels, and end with the test."""
    started: list[Following] = []
    hosts = ",".join(f"127.0.0.1:{server.port}" for server in three)

    def start() -> Following:
        started.append(Following(f"redis+sentinel://{hosts}/{SERVICE}", connect_s=30, liveness_s=30))
        return started[-1]

    yield start
    for following in started:
        following.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following.task


async def name(three: list[Resp3Server], port: int, epoch: int) -> None:
    """Let all three name another primary, and announce it."""
    for server in three:
        says(server, port, epoch=epoch)
        await server.send(message("+switch-master", "+switch-master", f"{SERVICE} 127.0.0.1 1 127.0.0.1 {port}"))


async def test_a_primary_that_still_answers_is_left(three: list[Resp3Server], follow: Callable[[], Following]) -> None:
    """2.3.6: cut off from its sentinels it would go on for ever, with nobody who publishes there."""
    async with resp3_server() as old, resp3_server() as new:
        await name(three, old.port, 1)
        following = follow()
        await following.until_live()
        await name(three, new.port, 2)
        await following.until_lost()
        await following.recorder.until_call("began", 2)
        assert new.names()[:1] == ["HELLO"]
        await new.send(message("sse:*", "sse:a", "hello"))
        await following.recorder.until_call("hello")


@pytest.mark.parametrize("silent", ["HELLO", "PSUBSCRIBE", "PUBLISH"])
async def test_news_end_an_attempt_that_hangs(
    three: list[Resp3Server], follow: Callable[[], Following], silent: str
) -> None:
    """Whatever step of the way to an old primary gets no answer: its time-out is not waited for."""
    async with resp3_server() as old, resp3_server() as new:
        del old.answers[silent]
        await name(three, old.port, 1)
        following = follow()
        await old.until(lambda s: silent in s.names())
        await name(three, new.port, 2)

        await following.until_live()


async def test_news_end_the_wait_between_attempts(
    three: list[Resp3Server], follow: Callable[[], Following], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it would be until the next attempt."""
    monkeypatch.setattr("sse_gateway.source.BACKOFF_S", (60.0, 60.0))
    async with resp3_server() as new:
        following = follow()
        await three[0].until(lambda s: s.names().count("SENTINEL") >= 4)  # asked twice: the first attempt is over
        await name(three, new.port, 2)

        await following.recorder.until_call("began")


async def test_a_replica_that_they_name_is_waited_for(
    three: list[Resp3Server], follow: Callable[[], Following]
) -> None:
    """It is not a primary yet, or no more: not live, and tried again."""
    async with resp3_server() as named:
        primary, named.answers["ROLE"] = named.answers["ROLE"], REPLICA
        await name(three, named.port, 1)
        following = follow()
        await named.until(lambda s: s.names().count("ROLE") >= 2)
        assert not following.source.live
        named.answers["ROLE"] = primary

        await following.until_live()
