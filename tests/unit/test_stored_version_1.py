"""What version 1 of the stored form looks like, byte by byte, and that it can still be read.

`stored_version_1.json` was written by the code that made version 1, and does not change any more: a store
outlives the gateway that wrote it. Another form is another version, with a file of its own beside this one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sse_gateway.reasons import Format
from tests.support.core import Core, rule
from tests.support.keyspace import KEYS, Keyspace
from tests.unit.test_mirror import mirror_of, write

RULES = (rule("t*", events=2), rule("j*", format_=Format.JSON))


def frozen() -> tuple[Keyspace, list[str], float]:
    """The store, the cursors of its epoch from its beginning on, and the time at which it was written."""
    said: dict[str, Any] = json.loads(Path(__file__).with_name("stored_version_1.json").read_text(encoding="utf-8"))
    store = Keyspace()
    for name, value in said["keys"].items():
        store.values[name.encode()] = _value(name, value)
    return store, said["cursors"], said["now"]


def _value(name: str, value: Any) -> bytes | dict[bytes, bytes] | dict[bytes, float]:
    if isinstance(value, str):
        return bytes.fromhex(value)
    if name.endswith(":channels"):
        return {field.encode(): bytes.fromhex(row) for field, row in value.items()}
    return {bytes.fromhex(member): score for member, score in value.items()}


def test_version_1_is_read() -> None:
    """Every event with its id, its type and its data, and every loss: a client goes on from there."""
    store, cursors, now = frozen()
    heir = Core(*RULES, is_begun=False)
    found = store.load(now, rules=len(RULES))
    assert found is not None
    found.restore(heir.hub.log, heir.hub.history, now)
    heir.epochs, heir.now = 1000, now
    heir.begin_epoch()
    client = heir.connect("channel=t1&channel=t2&channel=j*", cursors[0])
    told = [(block.id, block.type, block.data) for block in client.blocks()]
    assert [event for event in told if not event[1].startswith("gateway.")] == [
        (cursors[2], "message", "one\ntwo\nthree"),
        (cursors[3], "kind", '{"x": 1.0}'),
        (cursors[4], "message", "zwei Öre"),
        (cursors[5], "message", "last"),
        (cursors[6], "message", "text"),
    ]
    gaps = [(id_, json.loads(data)["reason"]) for id_, type_, data in told if type_ == "gateway.gap"]
    assert gaps == [(cursors[1], "window"), (heir.cursor, "source")]
    heir.publish("j1", '{"data":1,"id":"k1"}')
    assert heir.hub.tally.duplicates == [0, 1]


def test_version_1_is_written() -> None:
    """To the byte, as long as it is called version 1."""
    store, _, now = frozen()
    core, written = Core(*RULES), Keyspace()
    core.publish("t1", "of the epoch before")
    core.begin_epoch()
    for channel, payload in (
        ("t1", "lost"),
        ("t1", "one\r\ntwo\rthree"),
        ("j1", '{"data": {"x": 1.0}, "event": "kind", "id": "k1"}'),
        ("t2", "zwei Öre"),
        ("t1", "last"),
        ("j1", '{"data":"text"}'),
    ):
        core.tick(1)
        core.publish(channel, payload)
    assert core.now == now
    write(mirror_of(core), core, written)
    assert written.values[KEYS.state("epoch0000002")] == store.values[KEYS.state("epoch0000002")]
    assert written.values == store.values
