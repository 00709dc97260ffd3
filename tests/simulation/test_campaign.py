"""A long campaign that is ended early loses nothing of what it has found."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections import Counter

import pytest

from tests.simulation.campaign import Campaign
from tests.support.cluster_run import fails

OFTEN = "import sys, tests.simulation.campaign as c; c.TOLD = 20; sys.exit(c.main(sys.argv[1:]))"
"""A campaign that tells more often what has happened."""


def test_what_happened_is_counted_alike_on_every_number_of_processes(capsys: pytest.CaptureFixture[str]) -> None:
    """The same seeds are the same schedules, and all are counted once."""
    counts: Counter[str] = Counter()
    assert [seed for seed in range(100, 130) if fails(seed, profile="calm", counts=counts)] == []
    campaign = Campaign(100, 30, "calm", processes=2)

    assert campaign.run() == 0
    assert campaign.counts == +counts + Counter(schedules=30)
    assert capsys.readouterr().out.startswith("seeds 100 to 129: ")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_campaign_that_is_stopped_tells_what_it_has_seen(number: signal.Signals) -> None:
    """A signal ends it soon, with the totals, and it is no success."""
    command = [sys.executable, "-c", OFTEN, "100000", "--processes", "1", "--profile", "calm"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        process.send_signal(number)
        rest = process.stdout.read().splitlines()

    assert re.match(r"so far: seeds 0 to (?:19|39): ", first)  # two portions, if both had ended when it looked
    match = re.match(r"stopped: seeds 0 to ([0-9]+): .* ([0-9]+) schedules, ", rest[-2])
    assert match is not None
    assert int(match[2]) == int(match[1]) + 1 < 1000
    assert rest[-1] == "failed: none"
    assert process.returncode == 1
