from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hypothesis import given, strategies as st
from pydantic import SecretStr

from sse_gateway.config import Settings, effective_yaml, load_settings, settings_schema
from sse_gateway.document import read_document
from sse_gateway.errors import ConfigError
from sse_gateway.settings import item_of, keys_of

if TYPE_CHECKING:
    from pathlib import Path

AUTH = "auth: {mode: none}\n"


def load(folder: Path, text: str, **env: str) -> Settings:
    """The settings of a file with `text`; variables come without their prefix."""
    path = folder / "gw.yaml"
    path.write_text(text, encoding="utf-8")
    return load_settings(path, {f"SSE_GATEWAY__{name}": value for name, value in env.items()})


def problems(folder: Path, text: str, **env: str) -> list[str]:
    """Every problem of a file with `text`, without the folder's name."""
    with pytest.raises(ConfigError) as caught:
        load(folder, text, **env)
    return [problem.removeprefix(f"{folder}/") for problem in caught.value.problems]


def test_the_shortest_configuration_is_auth(tmp_path: Path) -> None:
    """Everything else has a default."""
    assert load(tmp_path, AUTH) == Settings.model_validate({"auth": {"mode": "none"}})


def test_auth_is_required(tmp_path: Path) -> None:
    """Nobody gets anonymous access by forgetting a line; the environment may say it."""
    (problem,) = problems(tmp_path, "workers: 1\n")
    assert problem.startswith("gw.yaml:1:1: auth: is required and has no default: write `auth: {mode: none}`")
    assert load(tmp_path, "workers: 1\n", AUTH__MODE="none").auth.mode == "none"


def test_the_file_of_the_public_key_is_judged_with_the_rest(tmp_path: Path) -> None:
    """At its place, like every other problem: not first by the process that needs the key."""
    text = f"auth:\n  mode: jwt\n  algorithms: [RS256]\n  public_key_file: {tmp_path}/key.pem\nworkers: 0\n"
    missing, _ = problems(tmp_path, text)
    assert missing == "gw.yaml:4:3: auth.public_key_file: cannot be read: No such file or directory"
    (tmp_path / "key.pem").write_text("no key")
    garbage, workers = problems(tmp_path, text)
    assert garbage.startswith("gw.yaml:4:3: auth.public_key_file: is not a public key in PEM")
    assert workers.startswith("gw.yaml:5:1: workers: ")


def test_every_problem_is_told_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    """Syntax traps, types, unknown keys, contradictions and the environment, each with its place and key."""
    text = """\
listen: {host: 127.0.0.1, port: 9080}
workers: many
log: {levle: info, mode: x}
log: {}
channels:
  - pattern: "a:*"
    strip_prefix: "b:"
    queue: {max_bytes: 64KiB, policy: slow}
  - pattern: "a:*"
    window: {max_age: 5}
  - x
  - strip_prefix: *x
stream:
cors: {origins: ["https://a.example", "*"]}
redis: [1]
cluster: 5
"""
    found = problems(tmp_path, text, SHUTDOWN__DRAIN="20", NOPE="1")
    assert [problem.partition(": ")[0] + " " + problem.split(": ")[1] for problem in found] == [
        "gw.yaml:1:1 auth",
        "gw.yaml:1:27 listen.port",
        "gw.yaml:2:1 workers",
        "gw.yaml:3:7 log.levle",
        "gw.yaml:3:20 log.mode",
        "gw.yaml:4:1 log",
        "gw.yaml:7:5 channels.0.strip_prefix",
        "gw.yaml:8:13 channels.0.queue.max_bytes",
        "gw.yaml:8:31 channels.0.queue.policy",
        "gw.yaml:9:5 channels.1.pattern",
        "gw.yaml:10:14 channels.1.window.max_age",
        "gw.yaml:11:5 channels.2",
        "gw.yaml:12:5 channels.3.strip_prefix",
        "gw.yaml:12:5 channels.3.pattern",
        "gw.yaml:13:1 stream",
        "gw.yaml:14:39 cors.origins.1",
        "gw.yaml:15:1 redis",
        "gw.yaml:16:1 cluster",
        "env SSE_GATEWAY__NOPE nope",
        "env SSE_GATEWAY__SHUTDOWN__DRAIN shutdown.drain",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("lisen: {}", "lisen: unknown key; did you mean listen?"),
        ("log: {color: x}", "log.color: unknown key; known here: level, format"),
        ("channels: [{patern: x, pattern: x}]", "channels.0.patern: unknown key; did you mean pattern?"),
        ("channels: [{pattern: x, window: {size: 1}}]", "channels.0.window.size: unknown key; known here: max_events, max"),
        ("listen: {port: '80'}", "listen.port: must be a whole number"),
        ("listen: {port: 0}", "listen.port: must be at least 1"),
        ("listen: {port: 70000}", "listen.port: must be at most 65535"),
        ("listen: {host: 5}", "listen.host: must be text: put it in quotes"),
        ("listen: {unix: 5}", "listen.unix: must be a path"),
        ("channels: [{pattern: x, prefix: yes}]", "channels.0.prefix: must be true or false"),
        ("channels: []", "channels: must have from 1 to 256 rules"),
        ("channels: {}", "channels: must be a list"),
        ("channels: [{pattern: x, format: xml}]", "channels.0.format: must be 'text' or 'json'"),
        ("log: {level: on}", "log.level: must be 'debug', 'info', 'warning' or 'error'"),
        ("log: json", "log: must be a mapping of keys"),
        ("log:", "log: is empty: give it a value, or remove the key"),
        ("limits: {message_size: 5MiB}", "limits.message_size: message_size (5MiB) must not be above a queue's max_bytes (4"),
    ],
)  # fmt: skip
def test_a_problem_says_what_to_write(tmp_path: Path, text: str, problem: str) -> None:
    """In words an operator knows, not those of a library."""
    assert problems(tmp_path, AUTH + text)[0].partition(": ")[2].startswith(problem)


def test_a_contradiction_is_told_where_the_operator_wrote_something(tmp_path: Path) -> None:
    """It names the other side too: a line, a variable, or a default."""
    channels = "channels:\n  - pattern: x\n    queue: {max_bytes: 64KiB}\n"
    (bound,) = problems(tmp_path, AUTH + channels)
    assert bound.startswith("gw.yaml:4:13: channels.0.queue.max_bytes: message_size (1MiB) must not be above")
    assert bound.endswith("; compare limits.message_size (default)")
    (line,) = problems(tmp_path, AUTH + "listen: {port: 81}\nadmin: {port: 81}\n")
    assert line.startswith("gw.yaml:3:9: admin.port: the admin listener must not be the public listener")
    assert line.endswith("; compare listen.port (line 2)")
    (variable,) = problems(tmp_path, AUTH + "admin: {port: 81}\n", LISTEN__PORT="81")
    assert variable.startswith("gw.yaml:2:9: admin.port: ")
    assert variable.endswith("; compare listen.port (env SSE_GATEWAY__LISTEN__PORT)")


def test_an_unordered_server_has_one_worker(tmp_path: Path) -> None:
    """Each of several would count a log of its own."""
    (problem,) = problems(tmp_path, AUTH + "workers: 2\nredis: {unordered: true}\n")
    assert problem.startswith("gw.yaml:2:1: workers: an unordered server is followed by one worker only")
    assert load(tmp_path, AUTH + "redis: {unordered: true}\n").redis.unordered


def test_an_unordered_server_has_no_store(tmp_path: Path) -> None:
    """Nothing could go on from it."""
    (problem,) = problems(tmp_path, AUTH + "persistence: {mode: redis}\nredis: {unordered: true}\n")
    assert problem.startswith("gw.yaml:2:15: persistence.mode: what an unordered server brings cannot be gone on from")


def test_a_value_that_is_wrong_by_itself_contradicts_nothing(tmp_path: Path) -> None:
    """Its default is not what the operator meant."""
    text = (
        AUTH
        + "limits: {message_size: 1MB}\nchannels: [{pattern: x, queue: {max_bytes: 64KiB}}, {pattern: 5}, {pattern: '*'}]\n"
    )
    assert [problem.split(": ")[1] for problem in problems(tmp_path, text)] == [
        "limits.message_size",
        "channels.1.pattern",
    ]


@pytest.mark.parametrize(
    ("text", "env"),
    [
        ("redis: {url: 'http://:hunter2@h'}", {}),
        ("redis: {url: 'redis://:hun/hunter2@h'}", {}),
        ("redis: 'redis://:hunter2@h'", {}),
        ("redis: {redis://:hunter2@h}", {}),
        ("redis: {url: [hunter2]}", {}),
        ("redis: {url: *hunter2}", {}),
        ("redis: {url: &hunter2 x}", {}),
        ("redis: {url: !hunter2 x}", {}),
        ("redis:\n  url: redis://:hunter2@h: x", {}),
        ("redis://:hunter2@h: 1", {}),
        ("'redis://:hunter2@h': 1\n'redis://:hunter2@h': 1", {}),
        ("workers: hunter2", {}),
        ("listen: {port: hunter2}", {}),
        ("stream: {heartbeat: hunter2}", {}),
        ("limits: {message_size: hunter2}", {}),
        ("log: {level: hunter2}", {}),
        ("auth: {mode: hunter2}", {}),
        ("", {"REDIS__URL": "redis://:hunter2"}),
        ("", {"REDIS": "{url: 'http://hunter2'"}),
        ("", {"REDIS__PASSWORD": "hunter2"}),
        ("", {"REDIS__URL": "redis://:hunter2\udcff@h"}),
        ("", {"CLUSTER__NAME": "hunter2\udcff"}),
        ("", {"CORS__ORIGINS": "[hunter2\udcff]"}),
    ],
)
def test_no_problem_shows_a_secret(tmp_path: Path, text: str, env: dict[str, str]) -> None:
    """Wherever a password slipped to."""
    assert "hunter2" not in "\n".join(problems(tmp_path, f"workers: 2\n{text}\n", **env))


def test_an_override_takes_the_place_of_a_wrong_value(tmp_path: Path) -> None:
    """What the file said there is not judged."""
    assert load(tmp_path, AUTH + "listen: {port: x}\n", LISTEN__PORT="81").listen.port == 81


def test_a_file_that_cannot_be_read_is_a_configuration_error(tmp_path: Path) -> None:
    """In the form of all problems."""
    with pytest.raises(ConfigError, match=r"nothing\.yaml:1:1: file: cannot be read: No such file"):
        load_settings(tmp_path / "nothing.yaml", {})


ELABORATE = """\
listen: {unix: /run/gw/gw.sock}
admin: {host: "::1", port: 81}
redis: {url: "rediss://user:hunter2@h:6380/0?password=hunter2", connect_timeout: 1500ms}
cluster: {name: "012"}
channels:
  - {pattern: "a:x*", strip_prefix: "a:", format: json, prefix: false, replay_on_connect: 3}
  - {pattern: "true", window: {max_bytes: 1048577, max_age: 90s}, queue: {policy: latest}}
stream: {max_age: 2d, send_buffer: 65537}
limits: {window_memory: 1GiB}
shutdown: {drain: 0s}
auth: {mode: none}
cors: {origins: ["https://a.example"]}
log: {level: debug, format: text}
"""


def test_the_effective_settings_can_be_loaded_again(tmp_path: Path) -> None:
    """They are the same, but for the secrets."""
    settings = load(tmp_path, ELABORATE)
    text = effective_yaml(settings)
    again = load(tmp_path, text)
    masked = SecretStr("rediss://user:***@h:6380/0?password=***")
    assert again == settings.model_copy(update={"redis": settings.redis.model_copy(update={"url": masked})})
    assert "hunter2" not in text
    assert effective_yaml(again) == text


def test_the_effective_settings_are_written_for_people(tmp_path: Path) -> None:
    """Units, every key, and what all workers together may hold."""
    text = effective_yaml(load(tmp_path, AUTH))
    for line in ("  heartbeat: 15s", "  window_memory: 512MiB", "    max_age: 5m", "  max_age: 0s", "  origins: []"):
        assert f"\n{line}\n" in text
    assert "\n# window_memory holds per worker: 1 x 512MiB = 512MiB\nlimits:\n" in text
    text = effective_yaml(load(tmp_path, f"{AUTH}workers: 3\n"))
    assert "\nworkers: 3\n" in text
    assert "\n# window_memory holds per worker: 3 x 512MiB = 1536MiB\nlimits:\n" in text
    assert "\nworkers: auto\n" in effective_yaml(load(tmp_path, f"{AUTH}workers: auto\n"))


@given(
    pattern=st.text(min_size=1).map(lambda text: "x" + text),
    name=st.from_regex(r"[A-Za-z0-9._-]{1,64}", fullmatch=True),
)
def test_any_text_survives_being_shown(tmp_path_factory: pytest.TempPathFactory, pattern: str, name: str) -> None:
    """Whatever is special in YAML, 1.1 or 1.2, comes back as it was."""
    settings = Settings.model_validate(
        {"auth": {"mode": "none"}, "cluster": {"name": name}, "channels": [{"pattern": pattern, "strip_prefix": "x"}]}
    )
    path = tmp_path_factory.mktemp("config") / "gw.yaml"
    path.write_text(effective_yaml(settings), encoding="utf-8", newline="")
    loaded = Settings.model_validate(read_document(path).value)
    assert loaded == settings


_LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.sampled_from(["none", "5s", "64KiB", "x", "", "*", "/run/x"])
)
_ANYTHING = st.recursive(
    _LEAVES, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2)
)


def trees(shape: object) -> st.SearchStrategy[Any]:
    """Trees that are nearly of a shape: keys left out, keys too many, values of the wrong type."""
    item, inner = item_of(shape), keys_of(shape)
    if item is not None:
        return st.lists(trees(item), max_size=3) | _ANYTHING
    if not inner:
        return _LEAVES | _ANYTHING
    known = st.fixed_dictionaries({}, optional={name: trees(inner[name]) for name in inner})
    unknown = st.dictionaries(st.sampled_from(["mode", "pattern", "auth", "foo"]), _LEAVES, max_size=1)
    return st.builds(lambda a, b: {**b, **a}, known, unknown) | _LEAVES


@given(trees(Settings).filter(lambda tree: isinstance(tree, dict)))
def test_any_tree_is_settings_or_problems(tmp_path_factory: pytest.TempPathFactory, tree: dict[str, Any]) -> None:
    """Judging ends, with nothing but ConfigError, each line of it in the form of a problem."""
    path = tmp_path_factory.mktemp("config") / "gw.yaml"
    path.write_text(yaml.safe_dump(tree, default_flow_style=None), encoding="utf-8")
    found = []
    try:
        load_settings(path, {})
    except ConfigError as error:
        found = list(error.problems)
    assert all(problem.startswith(f"{path}:") and "\n" not in problem for problem in found)
    assert not any("is not valid" in problem for problem in found)


def test_the_schema_has_the_keys_of_yaml_and_says_what_they_mean() -> None:
    """Editors complete from it."""
    schema: Any = settings_schema()
    stream = schema["$defs"]["StreamSettings"]["properties"]
    assert set(stream) == {"heartbeat", "retry", "write_timeout", "send_buffer", "max_age", "max_channels"}
    assert stream["heartbeat"]["default"] == "15s"
    assert all(entry["description"] for entry in stream.values())
    assert schema["required"] == ["auth"]
    assert schema["additionalProperties"] is False
    json.dumps(schema)
