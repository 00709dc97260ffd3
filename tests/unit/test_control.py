from __future__ import annotations

import hashlib
import hmac
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import example, given, strategies as st

from sse_gateway.channels import QueueBounds, Rule, WindowBounds
from sse_gateway.control import MAX_MESSAGE_BYTES, MAX_NODES, Control, Ignored, Kind, Message, fingerprint
from sse_gateway.cursor import Cursor
from sse_gateway.reasons import Format, Policy

FINGERPRINT = "0123456789abcdef"
SECRET = b"a secret"
NODE = "n0de00000001"
OTHER = "n0de00000002"
HANDOVER = "t0ken0000001"
EPOCH = "ep0ch0000001"
NEXT = "ep0ch0000002"
CURSOR = f"{EPOCH}-42-0123456789ab"

FIELDS: dict[Kind, tuple[str, ...]] = {
    Kind.JOIN: (HANDOVER, CURSOR),
    Kind.OFFER: (HANDOVER, OTHER, "unix"),
    Kind.CLAIM: (EPOCH,),
    Kind.VETO: (EPOCH,),
    Kind.CONFIRM: (EPOCH,),
    Kind.CHECKPOINT: (CURSOR,),
    Kind.DIVERGED: (f"{EPOCH},{NEXT}", NEXT, OTHER),
}
MESSAGES = [*FIELDS.items(), (Kind.JOIN, (HANDOVER, "-")), (Kind.OFFER, (HANDOVER, OTHER, "list"))]
MESSAGES += [(Kind.DIVERGED, (EPOCH, NEXT, OTHER)), (Kind.DIVERGED, (",".join([EPOCH] * 8), NEXT, OTHER))]


def control(node: str = OTHER, secret: bytes = b"") -> Control:
    """Make a node's end of the conversation."""
    return Control(node, FINGERPRINT, secret)


def counted(reader: Control) -> dict[Ignored, int]:
    """What a reader has ignored, by reason, without zeros."""
    return {reason: count for reason, count in reader.ignored.items() if count}


def signed(body: bytes) -> bytes:
    """Put a right MAC behind anything."""
    return body + b" " + hmac.new(SECRET, body, hashlib.sha256).hexdigest()[:32].encode()


names = st.text("0123456789abcdefghijklmnopqrstuvwxyz", min_size=12, max_size=12)
cursors = st.builds(
    lambda epoch, offset, check: str(Cursor(epoch, offset, f"{check:012x}")),
    names,
    st.integers(0, 2**63),
    st.integers(0, 2**48 - 1),
)
spoken = st.one_of(
    st.tuples(st.just(Kind.JOIN), st.tuples(names, cursors | st.just("-"))),
    st.tuples(st.just(Kind.OFFER), st.tuples(names, names, st.sampled_from(["unix", "list"]))),
    st.tuples(st.sampled_from([Kind.CLAIM, Kind.VETO, Kind.CONFIRM]), st.tuples(names)),
    st.tuples(st.just(Kind.CHECKPOINT), st.tuples(cursors)),
    st.tuples(
        st.just(Kind.DIVERGED),
        st.tuples(st.lists(names, min_size=1, max_size=8).map(",".join), names, names),
    ),
)


@pytest.mark.parametrize("secret", [b"", SECRET])
@pytest.mark.parametrize(("kind", "fields"), MESSAGES)
def test_what_one_writes_another_reads(kind: Kind, fields: tuple[str, ...], secret: bytes) -> None:
    """A message of every kind arrives as it was meant."""
    message = control(secret=secret).read(control(NODE, secret).write(kind, *fields))

    assert message == Message(kind, NODE, 1, fields)


def test_the_text() -> None:
    """The text is the protocol: other versions of this program read it."""
    assert control(NODE).write(Kind.JOIN, HANDOVER, "-") == f"1 JOIN {FINGERPRINT} {NODE} 1 {HANDOVER} -".encode()


def test_the_text_with_a_secret() -> None:
    """With a secret the first 32 digits of the HMAC-SHA256 of all before it are the last word."""
    body = f"1 CLAIM {FINGERPRINT} {NODE} 1 {EPOCH}".encode()

    assert control(NODE, SECRET).write(Kind.CLAIM, EPOCH) == signed(body)


@given(st.lists(spoken, min_size=1, max_size=20), st.booleans())
def test_a_conversation_is_read_as_written(said: list[tuple[Kind, tuple[str, ...]]], has_secret: bool) -> None:
    """Whatever a node says comes back as it was said, to itself too, and once."""
    secret = SECRET if has_secret else b""
    speaker, listener = control(NODE, secret), control(OTHER, secret)
    payloads = [speaker.write(kind, *fields) for kind, fields in said]
    expected = [Message(kind, NODE, serial, fields) for serial, (kind, fields) in enumerate(said, 1)]

    assert [listener.read(payload) for payload in payloads] == expected
    assert [speaker.read(payload) for payload in payloads] == expected
    assert [listener.read(payload) for payload in payloads] == [None] * len(said)
    assert counted(listener) == {Ignored.STALE: len(said)}
    assert max(map(len, payloads)) <= MAX_MESSAGE_BYTES


@given(spoken, st.data())
def test_one_wrong_byte_is_enough(said: tuple[Kind, tuple[str, ...]], data: st.DataObject) -> None:
    """With a secret no byte can be changed on the way, wherever it stands."""
    payload = bytearray(control(NODE, SECRET).write(said[0], *said[1]))
    place = data.draw(st.integers(0, len(payload) - 1))
    payload[place] ^= data.draw(st.integers(1, 255))
    listener = control(secret=SECRET)

    assert listener.read(bytes(payload)) is None
    assert sum(listener.ignored.values()) == 1


@given(
    st.binary(max_size=1100) | st.binary(max_size=100).map(lambda tail: b"1 JOIN " + tail) | st.text().map(str.encode)
)
@example(b"")
@example(b"1")
@example(b"1 ")
@example(b"\xff" * 2000)
def test_garbage_does_no_harm(payload: bytes) -> None:
    """Whatever comes, nothing raises; it is counted, once."""
    for secret in (b"", SECRET):
        listener = control(secret=secret)

        assert listener.read(payload) is None
        assert sum(listener.ignored.values()) == 1


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize(
    "wrong",
    ["", "x", "-", EPOCH.upper(), f"{EPOCH}0", f"{EPOCH},", f"{EPOCH}\n", CURSOR[:-1], "0-0-0", "lists", "e\u0301poch"],
)
def test_every_field_has_its_form(kind: Kind, wrong: str) -> None:
    """A field without the form that its kind demands is neither written nor read, whichever it is."""
    right = FIELDS[kind]
    for place in range(len(right)):
        if (kind, place, wrong) == (Kind.JOIN, 1, "-"):
            continue
        fields = (*right[:place], wrong, *right[place + 1 :])
        body = " ".join(("1", kind, FINGERPRINT, NODE, "1", *fields)).encode()
        reader = control(secret=SECRET)

        with pytest.raises(ValueError, match="not a control message"):
            control(NODE).write(kind, *fields)
        assert reader.read(signed(body)) is None
        assert counted(reader) == {Ignored.MALFORMED: 1}


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_has_its_number_of_fields(kind: Kind) -> None:
    """One field too many or too few is not the message."""
    for fields in (FIELDS[kind][:-1], (*FIELDS[kind], HANDOVER)):
        reader = control()

        with pytest.raises(ValueError, match="not a control message"):
            control(NODE).write(kind, *fields)
        assert reader.read(" ".join(("1", kind, FINGERPRINT, NODE, "1", *fields)).encode()) is None
        assert counted(reader) == {Ignored.MALFORMED: 1}


def test_a_message_that_was_not_written_takes_no_serial() -> None:
    """Serials of what is sent leave none out."""
    speaker = control(NODE)
    with pytest.raises(ValueError, match="not a control message"):
        speaker.write(Kind.CLAIM, "x")

    assert b" 1 " in speaker.write(Kind.CLAIM, EPOCH)


def test_no_more_than_eight_epochs_are_accused() -> None:
    """The one field that is a list is bounded."""
    with pytest.raises(ValueError, match="not a control message"):
        control(NODE).write(Kind.DIVERGED, ",".join([EPOCH] * 9), NEXT, OTHER)


@pytest.mark.parametrize(
    "text",
    [
        f"1 MARK {HANDOVER}:1",
        f"1 join {FINGERPRINT} {NODE} 1 {HANDOVER} -",
        f"1 LEAVE {FINGERPRINT} {NODE} 1 {HANDOVER}",
        f"1  CLAIM {FINGERPRINT} {NODE} 1 {EPOCH}",
        f"1 CLAIM {FINGERPRINT} {NODE} 1 {EPOCH} ",
        f" 1 CLAIM {FINGERPRINT} {NODE} 1 {EPOCH}",
        f"1 CLAIM {FINGERPRINT} {NODE} 1 {EPOCH}\n",
        f"1 CLAIM {FINGERPRINT}0 {NODE} 1 {EPOCH}",
        f"1 CLAIM {FINGERPRINT.upper()} {NODE} 1 {EPOCH}",
        f"1 CLAIM {FINGERPRINT} {NODE}0 1 {EPOCH}",
        f"1 CLAIM {FINGERPRINT} {NODE} 0 {EPOCH}",
        f"1 CLAIM {FINGERPRINT} {NODE} 01 {EPOCH}",
        f"1 CLAIM {FINGERPRINT} {NODE} -1 {EPOCH}",
        f"1 CLAIM {FINGERPRINT} {NODE} \u0661 {EPOCH}",
        f"1 CLAIM {FINGERPRINT} {NODE} {'9' * 20} {EPOCH}",
        f"01 CLAIM {FINGERPRINT} {NODE} 1 {EPOCH}",
        f"-1 CLAIM {FINGERPRINT} {NODE} 1 {EPOCH}",
        f"1\tCLAIM {FINGERPRINT} {NODE} 1 {EPOCH}",
    ],
)
def test_nothing_is_guessed(text: str) -> None:
    """What is nearly a message is none."""
    reader = control()

    assert reader.read(text.encode()) is None
    assert counted(reader) == {Ignored.MALFORMED: 1}


def test_a_payload_has_a_size() -> None:
    """A payload of more than 1,024 bytes is not looked at, not even for its version."""
    reader = control()
    reader.read(b"2 " + b"x" * (MAX_MESSAGE_BYTES - 2))
    reader.read(b"2 " + b"x" * (MAX_MESSAGE_BYTES - 1))

    assert counted(reader) == {Ignored.VERSION: 1, Ignored.MALFORMED: 1}


@pytest.mark.parametrize("version", ["2", "10", "999999999"])
@pytest.mark.parametrize("secret", [b"", SECRET])
def test_another_version_is_not_interpreted(version: str, secret: bytes) -> None:
    """A message of another version is counted as that, whatever else it holds and however it is signed."""
    reader = control(secret=secret)

    assert reader.read(f"{version} \u00fcber JOIN".encode()) is None
    assert counted(reader) == {Ignored.VERSION: 1}


def test_another_fingerprint_is_another_log() -> None:
    """A message of nodes that count differently is foreign, and takes nobody's serial."""
    reader = control()
    foreign = Control(NODE, "fedcba9876543210").write(Kind.CLAIM, EPOCH)

    assert reader.read(foreign) is None
    assert counted(reader) == {Ignored.FOREIGN: 1}
    assert reader.read(control(NODE).write(Kind.CLAIM, EPOCH)) is not None


@pytest.mark.parametrize("secret", [b"", b"another", SECRET + b"!"])
def test_without_the_secret_nobody_speaks(secret: bytes) -> None:
    """A MAC that is missing or of another key is a forgery, whatever it pretends."""
    reader = control(secret=SECRET)

    assert reader.read(control(NODE, secret).write(Kind.CLAIM, EPOCH)) is None
    assert counted(reader) == {Ignored.FORGED: 1}


def test_a_forgery_takes_nobodys_serial() -> None:
    """Who cannot sign cannot silence a node either."""
    reader = control(secret=SECRET)
    body = f"1 CLAIM {FINGERPRINT} {NODE} 999999 {EPOCH}".encode()
    reader.read(body + b" " + b"0" * 32)

    assert reader.read(control(NODE, SECRET).write(Kind.CLAIM, EPOCH)) is not None


def test_a_mac_where_none_is_due_is_one_field_too_many() -> None:
    """Without a secret a signed message is malformed: it cannot be judged."""
    for kind, fields in FIELDS.items():
        reader = control()

        assert reader.read(control(NODE, SECRET).write(kind, *fields)) is None
        assert counted(reader) == {Ignored.MALFORMED: 1}


def test_serials_ascend() -> None:
    """A message that comes twice, or behind a later one of its node, counts no more; other nodes' do."""
    reader, speaker = control(), control(NODE)
    first, second, third = (speaker.write(Kind.CLAIM, EPOCH) for _ in range(3))
    other = control("n0de00000003").write(Kind.CLAIM, EPOCH)

    assert reader.read(second) is not None
    assert reader.read(first) is None
    assert reader.read(second) is None
    assert reader.read(other) is not None
    assert reader.read(third) is not None
    assert counted(reader) == {Ignored.STALE: 2}


def test_ill_formed_messages_take_no_serial() -> None:
    """Only what was accepted counts as heard."""
    reader = control()
    reader.read(f"1 CLAIM {FINGERPRINT} {NODE} 5 {CURSOR}".encode())

    assert reader.read(control(NODE).write(Kind.CLAIM, EPOCH)) is not None


def test_the_node_that_was_silent_longest_is_forgotten() -> None:
    """Memory is bounded (I5): beyond 1,024 nodes the most silent goes, one that speaks stays."""
    reader = control()
    speakers = [control(f"{number:012d}") for number in range(MAX_NODES + 1)]
    early = [speaker.write(Kind.CLAIM, EPOCH) for speaker in speakers[:2]]
    for payload in early:
        reader.read(payload)
    again = speakers[0].write(Kind.CLAIM, EPOCH)
    reader.read(again)
    for speaker in speakers[2:]:
        reader.read(speaker.write(Kind.CLAIM, EPOCH))

    assert reader.read(again) is None
    assert reader.read(early[1]) is not None
    assert counted(reader) == {Ignored.STALE: 1}


# -- The fingerprint

RULE = Rule(
    index=0,
    pattern="sse:*",
    strip_prefix="sse:",
    format=Format.TEXT,
    prefix=True,
    window=WindowBounds(1000, 300.0, 4 << 20),
    queue=QueueBounds(2000, 4 << 20, Policy.DROP_OLDEST),
    replay_on_connect=0,
)
SECOND = replace(RULE, index=1, pattern="x:*", strip_prefix="x:", format=Format.JSON)


def test_a_fingerprint_is_sixteen_digits() -> None:
    """It fits its field, and is the same wherever it is taken."""
    assert fingerprint([RULE, SECOND], 1 << 20, b"key") == "0e4487e482f5c1ec"


def test_whatever_makes_an_event_changes_the_fingerprint() -> None:
    """Patterns, their order, prefixes, formats, the size of a message and the hash key are all in it."""
    prints = [
        fingerprint([RULE, SECOND], 1 << 20, b"key"),
        fingerprint([SECOND, RULE], 1 << 20, b"key"),
        fingerprint([RULE], 1 << 20, b"key"),
        fingerprint([RULE, replace(SECOND, pattern="x:y*")], 1 << 20, b"key"),
        fingerprint([RULE, replace(SECOND, strip_prefix="")], 1 << 20, b"key"),
        fingerprint([RULE, replace(SECOND, format=Format.TEXT)], 1 << 20, b"key"),
        fingerprint([RULE, SECOND], 1 << 19, b"key"),
        fingerprint([RULE, SECOND], 1 << 20, b"another"),
        fingerprint([replace(RULE, pattern="a", strip_prefix="bc")], 1 << 20, b"key"),
        fingerprint([replace(RULE, pattern="ab", strip_prefix="c")], 1 << 20, b"key"),
    ]

    assert all(one != two for one, two in pairwise(sorted(prints)))


def test_what_makes_no_event_does_not_change_the_fingerprint() -> None:
    """Windows, queues, replays and who may follow prefixes may differ between nodes of one log."""
    other = replace(
        RULE,
        prefix=False,
        window=WindowBounds(1, 1.0, 1),
        queue=QueueBounds(1, 1, Policy.LATEST),
        replay_on_connect=5,
    )

    assert fingerprint([other, SECOND], 1 << 20, b"key") == fingerprint([RULE, SECOND], 1 << 20, b"key")
