"""Measure each module of layers 0 to 2 by its own unit tests alone: ``python -m tests.coverage_by_module [NAME …]``.

A module that other modules' tests happen to run is not thereby tested. Fails under 100 % of branches.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.test_architecture import CORE_MODULES

PARALLEL = 2
PYTEST = ("pytest", "-q", "-p", "no:cacheprovider", "-p", "pytest_asyncio.plugin", "-p", "pytest_timeout")
"""Only the plugins that the configuration speaks of: the others take longer to load than most of these tests."""

ROOT = Path(__file__).parent.parent


def measure(name: str) -> str:
    """Run one module's tests; returns what is wrong, or nothing."""
    with tempfile.TemporaryDirectory() as directory:
        environment = os.environ | {"COVERAGE_FILE": f"{directory}/data", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}

        def coverage(*arguments: str) -> str:
            command = [sys.executable, "-m", "coverage", *arguments]
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
            return "" if done.returncode == 0 else f"{done.stdout}{done.stderr}\n"

        return coverage("run", "--branch", "-m", *PYTEST, f"tests/unit/test_{name}.py") or coverage(
            "report", "--show-missing", "--fail-under=100", f"--include=sse_gateway/{name}.py"
        )


def main(names: list[str]) -> int:
    """Measure some modules, or all; returns the exit code."""
    names = names or CORE_MODULES
    with ThreadPoolExecutor(PARALLEL) as pool:
        problems = [problem for problem in pool.map(measure, names) if problem]
    sys.stdout.writelines(problems)
    sys.stdout.write(f"{len(names) - len(problems)} of {len(names)} modules are covered by their own tests\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
