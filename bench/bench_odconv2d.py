# SPDX-License-Identifier: Apache-2.0
import pytest
from _harness import entries, timed
from flexor.bench import dynamic
from flexor.bench.contest import OURS


@timed
@pytest.mark.parametrize(("contest", "contestant"), entries(dynamic.contests(everything=True)))
def test_odconv2d(benchmark, scoreboard, contest, contestant):
    scoreboard.report(benchmark, "dynamic", contest, contestant)


def test_peak_memory(scoreboard):
    peaks = dynamic.peak_memory()
    assert all(sizes[OURS] is not None for sizes in peaks.values())
    scoreboard.add("dynamic", "memory_bytes", peaks)
