# SPDX-License-Identifier: Apache-2.0
import pytest
from _harness import entries, timed
from flexor.bench import pose
from flexor.bench.contest import OURS


@timed
@pytest.mark.parametrize(("contest", "contestant"), entries(pose.contests(everything=True)))
def test_pose(benchmark, scoreboard, contest, contestant):
    scoreboard.report(benchmark, "pose", contest, contestant)


def test_peak_memory(scoreboard):
    peaks = pose.peak_memory()
    assert all(sizes[OURS] is not None for sizes in peaks.values())
    scoreboard.add("pose", "memory_bytes", peaks)


def test_parts(scoreboard):
    scoreboard.add("pose", "parts_ms", pose.parts())
