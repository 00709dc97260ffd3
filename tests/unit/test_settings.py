from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from sse_gateway.channels import QueueBounds, Rule, WindowBounds
from sse_gateway.reasons import Format, Policy
from sse_gateway.settings import ListenSettings, Settings, item_of, keys_of


def settings(**sections: Any) -> Settings:
    """Settings as YAML would give them; `auth` is there unless a test gives its own."""
    return Settings.model_validate({"auth": {"mode": "none"}} | sections)


def refusal(**sections: Any) -> str:
    """The one error of settings that are wrong: its kind, or our own sentence."""
    with pytest.raises(ValidationError) as caught:
        settings(**sections)
    (detail,) = caught.value.errors()
    return str(detail["ctx"]["error"]) if detail["type"] == "value_error" else detail["type"]


def test_the_defaults_are_the_documented_ones() -> None:
    """Durations count in seconds and sizes in bytes; the names say so."""
    found = settings()
    assert (found.listen.host, found.listen.port, found.listen.unix) == ("127.0.0.1", 8080, None)
    assert (found.admin.host, found.admin.port, found.admin.unix) == ("127.0.0.1", 9080, None)
    assert found.workers == 1
    assert found.redis.url.get_secret_value() == "redis://127.0.0.1:6379"
    assert (found.redis.connect_timeout_s, found.redis.liveness_timeout_s) == (5.0, 5.0)
    assert found.cluster.name == "default"
    assert (found.persistence.mode, found.persistence.url, found.persistence.max_lag_s) == ("none", None, 2.0)
    assert found.persistence.key_prefix == "sse-gateway"
    assert (found.stream.heartbeat_s, found.stream.retry_s, found.stream.write_timeout_s) == (15.0, 3.0, 30.0)
    assert (found.stream.send_buffer_bytes, found.stream.max_age_s, found.stream.max_channels) == (262_144, 0.0, 64)
    assert (found.limits.connections, found.limits.channels) == (50_000, 100_000)
    assert (found.limits.window_memory_bytes, found.limits.queue_memory_bytes) == (512 << 20, 512 << 20)
    assert found.limits.message_bytes == 1 << 20
    assert (found.limits.connections_per_address, found.limits.connections_per_subject) == (0, 0)
    assert (found.limits.connections_per_second, found.limits.replay_per_subject) == (0, 0)
    assert found.limits.trusted_proxies == ("127.0.0.0/8", "::1", "unix")
    assert (found.admin.token.get_secret_value(), found.admin.anonymous) == ("", False)
    assert found.shutdown.drain_s == 20.0
    assert found.auth.mode == "none"
    assert found.cors.origins == ()
    assert (found.log.level, found.log.format) == ("info", "json")


def test_the_default_rule_strips_sse() -> None:
    """One rule of the kind the core knows."""
    window = WindowBounds(max_events=1000, max_age_s=300.0, max_bytes=4 << 20)
    queue = QueueBounds(max_events=2000, max_bytes=4 << 20, policy=Policy.DROP_OLDEST)
    assert settings().rules == (Rule(0, "sse:*", "sse:", Format.TEXT, True, window, queue, 0),)


def test_rules_keep_their_order() -> None:
    """A rule knows its place, and what it leaves out has its default."""
    audit = {
        "pattern": "a:*",
        "format": "json",
        "prefix": False,
        "queue": {"policy": "disconnect"},
        "replay_on_connect": 7,
    }
    first, second = settings(channels=[audit, {"pattern": "*"}]).rules
    assert (first.index, first.format, first.prefix, first.replay_on_connect) == (0, Format.JSON, False, 7)
    assert first.queue == QueueBounds(2000, 4 << 20, Policy.DISCONNECT)
    assert (second.index, second.pattern, second.strip_prefix) == (1, "*", "")


def test_anonymous_access_is_said_aloud() -> None:
    """`auth` has no default, and neither has its mode."""
    with pytest.raises(ValidationError, match="auth"):
        Settings.model_validate({})
    assert refusal(auth={}) == "missing"


@pytest.mark.parametrize(
    ("section", "value", "kind"),
    [
        ("foo", 1, "extra_forbidden"),
        ("stream", {"heartbeat_s": "1s"}, "extra_forbidden"),
        ("listen", {"port": "80"}, "int_type"),
        ("listen", {"port": True}, "int_type"),
        ("listen", {"port": 0}, "greater_than_equal"),
        ("listen", {"port": 65536}, "less_than_equal"),
        ("listen", {"host": 1}, "string_type"),
        ("listen", {"unix": 1}, "path_type"),
        ("listen", [], "model_type"),
        ("channels", {}, "tuple_type"),
        ("channels", ["a"], "model_type"),
        ("channels", [{}], "missing"),
        ("channels", [{"pattern": "a", "prefix": "yes"}], "bool_type"),
        ("channels", [{"pattern": "a", "prefix": 1}], "bool_type"),
        ("channels", [{"pattern": "a", "format": "xml"}], "enum"),
        ("channels", [{"pattern": "a", "access": "secret"}], "literal_error"),
        ("auth", {"mode": "hunter2"}, "literal_error"),
        ("auth", {"mode": []}, "literal_error"),
        ("auth", {"mode": "jwt", "algorithms": ["none"]}, "literal_error"),
        ("auth", {"mode": "jwt", "algorithms": "HS256"}, "tuple_type"),
        ("auth", {"mode": "jwt", "token_from": {"header": "yes"}}, "bool_type"),
        ("channels", [{"pattern": "a", "queue": {"policy": "slow"}}], "enum"),
        ("channels", [{"pattern": "a", "queue": {"max_events": 0}}], "greater_than_equal"),
        ("channels", [{"pattern": "a", "window": {"max_events": 0}}], "greater_than_equal"),
        ("channels", [{"pattern": "a", "replay_on_connect": -1}], "greater_than_equal"),
        ("stream", {"max_channels": 0}, "greater_than_equal"),
        ("stream", {"max_channels": 1025}, "less_than_equal"),
        ("limits", {"connections": 0}, "greater_than_equal"),
        ("limits", {"channels": 0}, "greater_than_equal"),
        ("limits", {"connections_per_address": -1}, "greater_than_equal"),
        ("limits", {"connections_per_subject": "5"}, "int_type"),
        ("limits", {"connections_per_second": 1_000_001}, "less_than_equal"),
        ("limits", {"trusted_proxies": "unix"}, "tuple_type"),
        ("limits", {"trusted_proxies": [1]}, "string_type"),
        ("log", {"level": "INFO"}, "literal_error"),
        ("log", {"format": "xml"}, "literal_error"),
    ],
)
def test_types_and_ranges_are_strict(section: str, value: object, kind: str) -> None:
    """Nothing is converted, nothing unknown is ignored."""
    assert refusal(**{section: value}) == kind


@pytest.mark.parametrize(
    ("section", "value", "sentence"),
    [
        ("workers", 0, "must be from 1 to 256, or auto"),
        ("workers", 257, "must be from 1 to 256, or auto"),
        ("workers", True, "must be from 1 to 256, or auto"),
        ("workers", "1", "must be from 1 to 256, or auto"),
        ("workers", [1], "must be from 1 to 256, or auto"),
        ("auth", {"mode": "jwt", "secret": "x" * 31}, "at least 32 bytes"),
        ("auth", {"mode": "jwt", "secret": "-----BEGIN PUBLIC KEY-----\nMIIB…"}, "which anybody may have"),
        ("auth", {"mode": "jwt", "secret": '{"kty": "RSA", "n": "0123456789abcdef"}'}, "which anybody may have"),
        ("auth", {"mode": "jwt", "audience": ""}, "must not be empty"),
        ("auth", {"mode": "jwt", "channels_claim": ""}, "must not be empty"),
        ("auth", {"mode": "jwt", "public_key_file": ""}, "must not be empty"),
        ("auth", {"mode": "jwt", "jwks_url": "http://issuer.example/keys"}, "must begin with https://"),
        ("auth", {"mode": "jwt", "jwks_url": "file:///etc/passwd"}, "must be an http:// or https:// address"),
        ("auth", {"mode": "jwt", "jwks_url": "https://u:p@issuer.example/"}, "without user, password"),
        (
            "auth",
            {"mode": "jwt", "jwks_url": "https://issuer.example:65536/"},
            "must be an http:// or https:// address",
        ),
        (
            "auth",
            {"mode": "callback", "callback": {"url": "http://[1.2.3.4]/"}},
            "must be an http:// or https:// address",
        ),
        ("auth", {"mode": "jwt", "token_from": {"query": "channel"}}, "none of channel"),
        ("auth", {"mode": "jwt", "token_from": {"query": "a b"}}, "of letters"),
        ("auth", {"mode": "jwt", "token_from": {"cookie": "a=b"}}, "a name as HTTP allows it"),
        ("auth", {"mode": "callback", "callback": {"headers": ["Cookie"]}}, "name the cookies"),
        ("auth", {"mode": "callback", "callback": {"headers": ["Host"]}}, "belongs to the connection"),
        ("auth", {"mode": "callback", "callback": {"headers": ["a b"]}}, "a name as HTTP allows it"),
        ("auth", {"mode": "callback", "callback": {"url": "ftp://a/"}}, "must be an http:// or https:// address"),
        ("listen", {"host": ""}, "must be a host name"),
        ("listen", {"host": "[::1]"}, "without brackets"),
        ("admin", {"host": "a b"}, "must be a host name"),
        ("listen", {"unix": "gw.sock"}, "absolute path"),
        ("admin", {"unix": "/" + "x" * 107}, "absolute path of at most 107 bytes"),
        ("cluster", {"name": ""}, "1 to 64"),
        ("persistence", {"key_prefix": "a b"}, "1 to 64"),
        ("persistence", {"key_prefix": "__a"}, "not begin with __"),
        ("persistence", {"mode": "disk"}, "literal_error"),
        ("persistence", {"max_lag": "0s"}, "more than 0s"),
        ("persistence", {"url": "http://h"}, "must begin with redis://"),
        ("cluster", {"name": "a" * 65}, "1 to 64"),
        ("cluster", {"name": "a b"}, "1 to 64"),
        ("cluster", {"name": "a\n"}, "1 to 64"),
        ("redis", {"url": "http://h"}, "must begin with"),
        ("redis", {"connect_timeout": "0s"}, "more than 0s"),
        ("redis", {"liveness_timeout": "0s"}, "more than 0s"),
        ("stream", {"heartbeat": "0s"}, "more than 0s"),
        ("stream", {"retry": "0s"}, "more than 0s"),
        ("stream", {"write_timeout": "0s"}, "more than 0s"),
        ("stream", {"heartbeat": 15}, "needs a unit"),
        ("stream", {"heartbeat": None}, "must be a duration"),
        ("stream", {"send_buffer": "2GiB"}, "at most 1GiB"),
        ("limits", {"message_size": "1MB"}, "write 1MiB"),
        ("limits", {"replay_per_subject": "64MB"}, "write 64MiB"),
        ("limits", {"replay_per_subject": -1}, "must be a size"),
        ("limits", {"replay_per_subject": False}, "must be a size"),
        ("limits", {"trusted_proxies": ["10.0.0.1/8"]}, "without host bits"),
        ("limits", {"trusted_proxies": ["0.0.0.0/0"]}, "would trust everybody"),
        ("admin", {"token": "short"}, "at least 16 characters"),
        ("channels", [{"pattern": "a", "window": {"max_age": "0s"}}], "more than 0s"),
        ("channels", [], "from 1 to 256 rules"),
        ("channels", [{"pattern": "a"}] * 257, "from 1 to 256 rules"),
        ("cors", {"origins": ["*"]}, "exact origin"),
        ("cors", {"origins": ["null"]}, "exact origin"),
        ("cors", {"origins": ["https://*.example"]}, "exact origin"),
        ("cors", {"origins": ["https://app.example/"]}, "exact origin"),
        ("cors", {"origins": ["https://App.example"]}, "exact origin"),
        ("cors", {"origins": ["app.example"]}, "exact origin"),
        ("cors", {"origins": ["https://u:p@app.example"]}, "exact origin"),
        ("cors", {"origins": ["https://app.example:443"]}, "scheme's own port"),
    ],
)
def test_what_a_type_cannot_say_is_said_in_a_sentence(section: str, value: object, sentence: str) -> None:
    """Each refusal says what to write."""
    assert sentence in refusal(**{section: value})


def test_what_is_possible_is_accepted() -> None:
    """The ends of the ranges, and the forms that look odd."""
    found = settings(
        listen={"unix": "/run/gw.sock"},
        admin={"host": "::1", "port": 65535},
        cors={"origins": ["https://app.example", "http://localhost:3000", "https://[::1]:8443"]},
        cluster={"name": "a" * 64},
        shutdown={"drain": "0s"},
        stream={"max_age": "1h", "send_buffer": 4096},
        limits={"replay_per_subject": "64MiB", "trusted_proxies": []},
    )
    assert (found.limits.replay_per_subject, found.limits.trusted_proxies) == (64 << 20, ())
    assert settings(limits={"replay_per_subject": "0"}).limits.replay_per_subject == 0
    assert found.listen.unix == Path("/run/gw.sock")
    assert len(found.cors.origins) == 3
    assert (found.shutdown.drain_s, found.stream.max_age_s, found.stream.send_buffer_bytes) == (0.0, 3600.0, 4096)


def test_settings_do_not_change() -> None:
    """A reload makes new ones."""
    with pytest.raises(ValidationError, match="frozen"):
        settings().listen.port = 1


def test_workers_are_a_number() -> None:
    """Or as many as there are cores to run on, each of which may take a connection at least."""
    assert settings(workers=256).worker_count == 256
    assert settings(workers="auto").worker_count == len(os.sched_getaffinity(0))
    assert settings(workers="auto", limits={"connections": 1}).worker_count == 1


def test_a_document_is_for_our_own_processes() -> None:
    """It makes the same settings again, with their secrets."""
    found = settings(redis={"url": "redis://:hunter2@h"}, cluster={"secret": "hunter2" * 4}, listen={"unix": "/run/s"})
    found = found.model_copy(update={"admin": found.admin.model_copy(update={"token": SecretStr("hunter2" * 3)})})
    document = json.loads(json.dumps(found.document()))
    assert Settings.model_validate(document) == found
    assert str(document).count("hunter2") == 8


def test_the_url_of_redis_is_not_shown() -> None:
    """Neither by `repr` nor when dumped."""
    found = settings(redis={"url": "redis://:hunter2@h"})
    assert "hunter2" not in repr(found)
    assert "hunter2" not in str(found.model_dump())


def test_shapes_are_walked_by_the_names_of_yaml() -> None:
    """Sections have keys, lists have items, the rest has neither."""
    assert keys_of(Settings)["listen"] is ListenSettings
    assert "heartbeat" in keys_of(keys_of(Settings)["stream"])
    assert "pattern" in keys_of(item_of(keys_of(Settings)["channels"]))
    assert item_of(keys_of(Settings)["listen"]) is None
    assert keys_of(int) == {}
