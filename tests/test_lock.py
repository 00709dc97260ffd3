"""The lock files hold what pyproject.toml asks for, hashed, and name no place to get it from."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
RUNTIME, DEVELOPMENT, BENCHMARKS, BUILD = (f"requirements{kind}.lock" for kind in ("", "-dev", "-benchmarks", "-build"))

PIN = re.compile(r"(?P<name>[a-z0-9-]+)(?:\[[a-z0-9,-]+\])?==(?P<version>[0-9a-z.]+)(?: ; (?P<marker>[^\\]+?))? \\")
HASH = re.compile(r"    --hash=sha256:[0-9a-f]{64}(?: \\)?")
COMMENT = re.compile(r"    #.*")


def pins(lock: str) -> dict[str, str]:
    """The version of each package in a lock file."""
    lines = (ROOT / lock).read_text(encoding="utf-8").splitlines()
    return {match["name"]: match["version"] for line in lines if (match := PIN.fullmatch(line))}


def asked(lock: str) -> list[Requirement]:
    """What pyproject.toml asks a lock file to hold."""
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    groups = dict(project["dependency-groups"])
    benchmarks = groups.pop("benchmarks")  # not scripts/test's
    wanted = {
        RUNTIME: project["project"]["dependencies"] + project["project"]["optional-dependencies"]["demo"],
        DEVELOPMENT: [
            requirement
            for group in groups.values()
            for requirement in group
            if isinstance(requirement, str)  # not the inclusion of another group
        ],
        BENCHMARKS: benchmarks,
        BUILD: project["build-system"]["requires"],
    }
    return [Requirement(text) for text in wanted[lock]]


@pytest.mark.parametrize("lock", [RUNTIME, DEVELOPMENT, BENCHMARKS, BUILD])
def test_every_dependency_is_locked_at_a_version_that_fits(lock: str) -> None:
    """Each is there, within its bounds; if not, run `scripts/lock`."""
    locked = pins(lock)
    for requirement in asked(lock):
        name = canonicalize_name(requirement.name)
        assert name in locked
        assert requirement.specifier.contains(locked[name])


@pytest.mark.parametrize("lock", [RUNTIME, DEVELOPMENT, BENCHMARKS, BUILD])
def test_a_lock_is_pins_with_hashes_and_nothing_else(lock: str) -> None:
    """No option, address or path: where packages come from is the machine's business."""
    text = (ROOT / lock).read_text(encoding="utf-8")
    assert "://" not in text
    assert "/" not in text
    previous = ""
    for line in text.splitlines():
        assert PIN.fullmatch(line) or HASH.fullmatch(line) or COMMENT.fullmatch(line)
        assert not PIN.fullmatch(previous) or HASH.fullmatch(line), f"{previous} has no hash"
        previous = line


def test_the_locks_agree() -> None:
    """They are installed together."""
    versions: dict[str, str] = {}
    for lock in (RUNTIME, DEVELOPMENT, BENCHMARKS, BUILD):
        for name, version in pins(lock).items():
            assert versions.setdefault(name, version) == version
