"""The stored log on real servers: what is written, what is refused, and what is left when writing breaks off."""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest

from sse_gateway.errors import SourceError, StoreError
from sse_gateway.persistence import Persistence
from sse_gateway.primary import open_link
from sse_gateway.settings import Settings
from sse_gateway.store import GROUP, LEASE_S, PAGE, Store, opened
from sse_gateway.stored import Keys
from tests.support.core import Core, rule
from tests.support.keyspace import KEYS
from tests.support.lateness import lateness
from tests.support.proxy import proxied
from tests.support.resp3_server import resp3_server
from tests.unit.test_mirror import mirror_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sse_gateway.mirror import Mirror
    from sse_gateway.recollection import Recollection
    from tests.support.valkey import Valkey

EPOCH = "epoch0000001"
PRIVILEGES = (
    "on >secret resetkeys resetchannels -@all +watch +multi +exec +discard +get +mget +set +setrange +del +pexpire "
    "+hset +hdel +hscan +zadd +zscore +zrange +zrevrange +zremrangebyscore +zremrangebyrank ~sse-gateway:test:*"
)
"""All that the gateway's user needs to keep a store."""


def wall() -> float:
    """Unix seconds, as they are now: what was stored ages while other tests run."""
    return time.time()  # noqa: TID251 - ages of what is stored


def unforeseen(error: BaseException) -> None:
    """Nothing may fail for a reason that nobody foresaw."""
    raise AssertionError(error)


@asynccontextmanager
async def store(
    url: str, node: str = "n0de00000001", keys: Keys = KEYS, timeout_s: float = 20.0
) -> AsyncIterator[Store]:
    """Open a store."""
    open_ = partial(open_link, url, timeout_s=timeout_s)
    async with opened(open_, keys, node, timeout_s=timeout_s, failed=unforeseen) as found:
        yield found


async def write(target: Store, mirror: Mirror, core: Core) -> bool:
    """Write all there is; False if it is not ours to write."""
    state = await target.state(EPOCH)
    if not mirror.is_valid:
        assert mirror.begin(None, {}, 1, core.now)
    while (batch := mirror.batch(core.now, wall())) is not None:
        if not await target.transact(EPOCH, state, batch.commands, batch.expected):
            return False
        state = batch.state
        if not batch.has_more:
            break
    return True


async def load(url: str, keys: Keys = KEYS) -> Recollection | None:
    """Read what is stored, as a node that starts does."""
    settings = Settings.model_validate({"auth": {"mode": "none"}, "persistence": {"mode": "redis"}})
    persistence = Persistence(
        settings,
        Core(rule()).hub,
        partial(open_link, url, timeout_s=20.0),
        node="n0de00000009",
        fingerprint="f1ngerpr1nt",
        key=b"key",
        is_live=lambda: False,
        failed=unforeseen,
    )
    persistence._keys = keys
    return await persistence.load()


async def test_what_was_written_is_read(own_server: Valkey) -> None:
    """More channels than are asked for at once, and more events than a page."""
    core = Core(rule(events=3000), message_bytes=1 << 20)
    core.publish("long", *(f"d{number}" for number in range(PAGE + 5)))
    for number in range(2 * GROUP + 1):
        core.publish(f"c{number}", "x")
    async with store(own_server.url) as target:
        assert await target.newest() == ("", 0)
        assert await target.order(EPOCH) is None
        assert await target.take_lease(EPOCH)
        assert await write(target, mirror_of(core), core)
        assert await target.newest() == (EPOCH, 1)
        assert await target.order(EPOCH) == 1
    found = await load(own_server.url)
    assert found is not None
    assert found.events == PAGE + 5 + 2 * GROUP + 1
    heir = Core(rule(events=3000), is_begun=False)
    found.restore(heir.hub.log, heir.hub.history, time.monotonic())
    assert heir.cursor == core.cursor
    for name, window in core.hub.history.windows.items():
        held = heir.hub.history.windows[name].after(-1, 3000)
        assert [event.frame for event in held] == [event.frame for event in window.after(-1, 3000)]


async def test_it_is_in_the_database_that_the_url_names(own_server: Valkey) -> None:
    """And nowhere else; a database that there is not is told."""
    async with store(f"{own_server.url}/3") as target:
        assert await target.take_lease(EPOCH)
    assert own_server.link.call("EXISTS", KEYS.lease) == 0
    own_server.link.call("SELECT", 3)
    assert own_server.link.call("EXISTS", KEYS.lease) == 1
    with pytest.raises(SourceError, match="out of range"):
        async with store(f"{own_server.url}/9999"):
            pass


async def test_the_lease_is_one_nodes(own_server: Valkey) -> None:
    """Until it expires, is given back, or a younger epoch has begun elsewhere."""
    async with store(own_server.url) as first, store(own_server.url, "n0de00000002") as second:
        assert await first.take_lease(EPOCH)
        assert await first.take_lease(EPOCH)
        assert not await second.take_lease(EPOCH)
        await first.release()
        assert await second.take_lease(EPOCH)
        assert not await first.take_lease(EPOCH)
        await first.release()
        assert await first.take_lease("epoch0000002")
        assert not await second.take_lease(EPOCH)
        ttl = own_server.link.call("PTTL", KEYS.lease)
        assert isinstance(ttl, int)
        assert 0 < ttl <= 1000 * LEASE_S


async def test_writers_never_mix(own_server: Valkey) -> None:
    """A transaction is void without the lease, or with a state that somebody else has written."""
    core = Core(rule())
    core.publish("a", "d1")
    async with store(own_server.url) as first, store(own_server.url, "n0de00000002") as second:
        assert not await write(first, mirror_of(core), core)
        assert await first.take_lease(EPOCH)
        assert await write(first, mirror_of(core), core)
        assert not await first.transact(EPOCH, b"another state", [(b"SET", b"x", b"y")], {})
        own_server.link.call("DEL", KEYS.lease)
        assert await second.take_lease(EPOCH)
        core.publish("a", "d2")
        assert not await write(first, mirror_of(core), core)
        assert own_server.link.call("EXISTS", "x") == 0
        assert await write(second, mirror_of(core), core)


async def test_keys_that_have_gone_are_noticed(own_server: Valkey) -> None:
    """The index, and the last block of the ring: Redis would begin them anew without a word."""
    for key in (KEYS.channels(EPOCH), KEYS.ring(EPOCH, 0)):
        own_server.link.call("FLUSHALL")
        core = Core(rule())
        core.publish("a", "d1")
        mirror = mirror_of(core)
        async with store(own_server.url) as target:
            assert await target.take_lease(EPOCH)
            assert await write(target, mirror, core)
            own_server.link.call("DEL", key)
            core.publish("a", "d2")
            with pytest.raises(StoreError, match="have gone"):
                await write(target, mirror, core)


async def test_keys_of_another_type_are_refused(own_server: Valkey) -> None:
    """Whoever put them there."""
    core = Core(rule())
    core.publish("a", "d1")
    async with store(own_server.url) as target:
        assert await target.take_lease(EPOCH)
        own_server.link.call("SET", KEYS.epochs, "x")
        with pytest.raises(StoreError, match="WRONGTYPE"):
            await write(target, mirror_of(core), core)
        with pytest.raises(StoreError, match="WRONGTYPE"):
            await target.newest()


@pytest.mark.parametrize("setting", ["oom", "readonly", "misconf"])
async def test_a_server_that_refuses_to_write_takes_nothing(own_server: Valkey, setting: str) -> None:
    """All of a transaction, or none of it."""
    core = Core(rule())
    core.publish("a", "d1")
    async with store(own_server.url) as target:
        assert await target.take_lease(EPOCH)
        if setting == "oom":
            own_server.config_set("maxmemory", 1)
        elif setting == "readonly":
            own_server.link.call("REPLICAOF", "127.0.0.1", "1")
        else:
            own_server.fail_to_save()
        with pytest.raises(SourceError, match=setting.upper()):
            await write(target, mirror_of(core), core)
        assert own_server.link.call("EXISTS", KEYS.state(EPOCH)) == 0


async def test_a_server_that_is_silent_is_left(own_server: Valkey) -> None:
    """The connection ends with the first answer that does not come in time."""
    async with store(own_server.url, timeout_s=0.3) as target:
        assert await target.take_lease(EPOCH)
        own_server.freeze()
        try:
            with lateness() as late:
                began = time.monotonic()
                with pytest.raises(SourceError, match="in time"):
                    await target.newest()
                assert time.monotonic() - began < 2.0 + late.total_s
            with pytest.raises(SourceError):
                await target.newest()
            with pytest.raises(SourceError, match="in time"):
                async with store(own_server.url, timeout_s=0.3):
                    pass
        finally:
            own_server.thaw()
    own_server.kill()
    with pytest.raises(SourceError):
        async with store(own_server.url):
            pass


async def test_a_writer_that_breaks_off_leaves_a_state_that_is_whole(own_server: Valkey) -> None:
    """Wherever its connection is cut: what can be read is a beginning of the log, and nothing else."""
    core = Core(rule(events=5))
    with proxied(("127.0.0.1", own_server.port)) as proxy:
        url = f"redis://127.0.0.1:{proxy.port}"
        mirror, heads = mirror_of(core), set()
        for cut in range(500, 9000, 340):
            for number in range(4):
                core.publish(f"c{number % 3}", f"of {cut}")
            proxy.to_server.cut_after = cut
            try:
                async with store(url) as target:
                    if await target.take_lease(EPOCH):
                        await write(target, mirror, core)
            except SourceError:
                mirror.drop()
            proxy.to_server.cut_after = None
            own_server.link.call("DEL", KEYS.lease)
            found = await load(own_server.url)
            if found is not None:
                heads.add(found.state.head)
                heir = Core(rule(events=5), is_begun=False)
                found.restore(heir.hub.log, heir.hub.history, time.monotonic())
                assert core.hub.log.cursor(found.state.head) == heir.cursor
                for name in heir.hub.history.windows:
                    held = [event.position for event in heir.hub.history.windows[name].after(-1, 9)]
                    truth = core.hub.history.windows[name]
                    assert [p for p in held if p > truth.newest_loss] == [
                        e.position for e in truth.after(-1, 9) if e.position <= found.state.head
                    ]
            mirror.drop()
    assert len(heads) > 3


async def test_the_least_privileged_user_will_do(own_server: Valkey) -> None:
    """These commands on these keys are enough, also to trim, to forget, and to read."""
    own_server.link.call("ACL", "SETUSER", "gateway", *PRIVILEGES.split())
    url = own_server.url.replace("://", "://gateway:secret@")
    keys = Keys("sse-gateway", "test", "f1ngerpr1nt")
    core = Core(rule(events=2), channels=2)
    mirror = mirror_of(core)
    mirror._keys = keys
    mirror.drop()
    await do_everything(url, keys, mirror, core)
    found = await load(url, keys)
    assert found is not None
    assert found.events == 2


@pytest.mark.parametrize(
    "without", [word for word in PRIVILEGES.split() if word.startswith("+")] + ["~sse-gateway:test:*"]
)
async def test_every_privilege_is_needed(own_valkey: Valkey, without: str) -> None:
    """Whichever is missing, something is refused, and its name is told."""
    words = [word for word in PRIVILEGES.split() if word != without]
    own_valkey.link.call("ACL", "SETUSER", "gateway", *words)
    url = own_valkey.url.replace("://", "://gateway:secret@")
    keys = Keys("sse-gateway", "test", "f1ngerpr1nt")
    core = Core(rule(events=2), channels=2)
    mirror = mirror_of(core)
    mirror._keys = keys
    mirror.drop()
    with pytest.raises(SourceError, match="NOPERM"):
        await do_everything(url, keys, mirror, core)


async def do_everything(url: str, keys: Keys, mirror: Mirror, core: Core) -> None:
    """Use every command."""
    async with store(url, keys=keys) as target:
        assert await target.take_lease(EPOCH)
        for name in "aaaabc":
            core.publish(name, "d")
            assert await write(target, mirror, core)
        async for _ in target.rows(EPOCH):
            pass
        await target.ring(EPOCH, [0])
        async for _ in target.windows(EPOCH, ["a"], 1000):
            pass
        await target.newest()
        await target.order(EPOCH)
        assert not await target.transact(EPOCH, b"another", [], {})
        await target.release()


async def test_a_store_of_another_version_is_refused(own_server: Valkey, caplog: pytest.LogCaptureFixture) -> None:
    """With a line that says so, and nothing of it is touched."""
    own_server.link.call("ZADD", KEYS.epochs, 1, EPOCH)
    own_server.link.call("SET", KEYS.state(EPOCH), b"\x02" + b"whatever a later version writes")
    before = own_server.link.call("DUMP", KEYS.state(EPOCH))
    assert await load(own_server.url) is None
    assert any("of version 2, not 1" in str(vars(record)) for record in caplog.records)
    assert own_server.link.call("DUMP", KEYS.state(EPOCH)) == before


async def test_a_store_whose_state_is_gone_is_refused(own_server: Valkey) -> None:
    """Redis has evicted what says what is valid."""
    own_server.link.call("ZADD", KEYS.epochs, 1, EPOCH)
    assert await load(own_server.url) is None


@pytest.mark.parametrize("score", ["inf", "1.5"])
async def test_a_score_that_is_none_of_ours_is_damage(own_server: Valkey, score: str) -> None:
    """It is refused, by whoever reads and by whoever writes, and ends no process."""
    own_server.link.call("ZADD", KEYS.epochs, score, EPOCH)
    assert await load(own_server.url) is None
    async with store(own_server.url) as target:
        with pytest.raises(StoreError, match="whole number"):
            await target.order(EPOCH)


async def ask(target: Store, command: str) -> object:
    """Read what is read with this command."""
    match command:
        case "ZREVRANGE":
            return await target.newest()
        case "MGET":
            return await target.ring(EPOCH, [0, 1])
        case "HSCAN":
            return await anext(target.rows(EPOCH))
        case _:
            return await anext(target.windows(EPOCH, ["a"], 1000))


@pytest.mark.parametrize("command", ["ZREVRANGE", "HSCAN", "MGET", "ZRANGE"])
async def test_a_server_that_answers_in_another_form_is_told_so(command: str) -> None:
    """Nobody judges whose store it is before it is used: what calls itself Redis may say anything."""
    async with resp3_server() as server:
        server.answers[command] = b"*1\r\n*1\r\n$1\r\na\r\n"
        async with store(server.url) as target:
            with pytest.raises(StoreError, match="another form"):
                await ask(target, command)


async def test_what_is_larger_than_it_may_be_is_not_read_to_its_end(own_server: Valkey) -> None:
    """Whoever has put it there: it does not have to fit into memory."""
    core = Core(rule(events=3 * PAGE))
    core.publish("a", *(f"d{number}" for number in range(3 * PAGE)))
    async with store(own_server.url) as target:
        assert await target.take_lease(EPOCH)
        assert await write(target, mirror_of(core), core)
        with pytest.raises(StoreError, match="too large"):
            [name async for name, _ in target.windows(EPOCH, ["a"], 2 * PAGE * 50)]
        assert [len(found) async for _, found in target.windows(EPOCH, ["a"], 3 * PAGE * 250)] == [3 * PAGE]


async def test_what_is_written_while_it_is_read_is_read_again(
    own_server: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What does not fit together then is no damage: it is of two moments."""
    core = Core(rule(events=2))
    core.publish("a", "d1", "d2")
    mirror = mirror_of(core)
    async with store(own_server.url) as target:
        assert await target.take_lease(EPOCH)
        assert await write(target, mirror, core)
        state = Store.state
        looks = 0

        async def state_before_the_next_batch(self: Store, epoch: str) -> bytes | None:
            nonlocal looks
            value = await state(self, epoch)
            looks += 1
            if looks == 1:
                core.publish("b", "d3")
                batch = mirror.batch(core.now, wall())
                assert batch is not None
                assert await target.transact(EPOCH, value, batch.commands, batch.expected)
            return value

        monkeypatch.setattr(Store, "state", state_before_the_next_batch)
        found = await load(own_server.url)
    assert found is not None
    assert found.events == 3
