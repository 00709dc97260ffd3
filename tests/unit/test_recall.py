from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import ref

from sse_gateway.decisions import Load
from sse_gateway.recall import Recall
from tests.support.core import Core, rule
from tests.support.keyspace import Keyspace
from tests.unit.test_mirror import mirror_of, write

if TYPE_CHECKING:
    from sse_gateway.decisions import Decision


def recall_of(core: Core, *, has_store: bool = True) -> tuple[Recall, list[Decision]]:
    """A recall, and what it decides."""
    decisions: list[Decision] = []
    return Recall(core.hub, decisions.append, has_store=has_store), decisions


def test_a_node_without_a_log_looks_once() -> None:
    """Until what was found is there, it is not settled; another link is another look."""
    recall, decisions = recall_of(Core(rule(), is_begun=False))
    assert not recall.is_settled
    assert not recall.look()
    assert not recall.look()
    assert decisions == [Load()]
    recall.found(None)
    assert recall.look()
    recall.reset()
    assert not recall.look()
    assert decisions == [Load(), Load()]


def test_a_look_that_began_on_another_link_does_not_count() -> None:
    """Others may have had a log meanwhile, and stored it."""
    old, store = Core(rule()), Keyspace()
    write(mirror_of(old), old, store)
    core = Core(rule(), is_begun=False)
    recall, decisions = recall_of(core)
    recall.look()
    recall.reset()
    assert not recall.look()
    recall.found(store.load(0.0))
    recall.use(0.0)
    assert not core.hub.log.epochs
    assert not recall.look()
    assert decisions == [Load(), Load()]
    recall.found(store.load(0.0))
    assert recall.look()
    recall.use(0.0)
    assert core.hub.log.knows("epoch0000001")


def test_who_has_a_log_or_no_store_need_not_look() -> None:
    """There is nothing to wait for."""
    for recall, decisions in (recall_of(Core(rule())), recall_of(Core(rule(), is_begun=False), has_store=False)):
        assert recall.look()
        assert decisions == []


def test_nothing_is_held_that_will_not_be_used() -> None:
    """What was found is as large as the windows: it goes where the log comes from a peer, before it or after it."""
    old, store = Core(rule()), Keyspace()
    old.publish("a", "d1")
    write(mirror_of(old), old, store)
    for comes_late in (False, True):
        core = Core(rule(), is_begun=comes_late)
        recall, _ = recall_of(core)
        found = store.load(0.0)
        assert found is not None
        gone = ref(found)
        recall.found(found)
        del found
        assert (gone() is None) is comes_late
        recall.drop()
        assert gone() is None


def test_what_was_found_is_used_once_and_only_in_an_empty_log() -> None:
    """A node that has got a log meanwhile needs no other."""
    old, store = Core(rule()), Keyspace()
    old.publish("a", "d1")
    write(mirror_of(old), old, store)
    for begun, known in ((False, True), (True, False)):
        core = Core(rule(), is_begun=False)
        recall, _ = recall_of(core)
        recall.found(store.load(0.0))
        if begun:
            core.hub.begin_epoch("other0000001", old.hub.log.epoch.reason, 0.0)
        recall.use(0.0)
        assert core.hub.log.knows("epoch0000001") is known
        recall.use(0.0)
