# SPDX-License-Identifier: Apache-2.0
import pytest
from _harness import entries, timed
from flexor.bench import deform
from flexor.bench.contest import OURS
from flexor.bench.deform import CONV


@timed
@pytest.mark.parametrize(("contest", "contestant"), entries(deform.contests(everything=True)))
def test_deform_conv2d(benchmark, scoreboard, contest, contestant):
    scoreboard.report(benchmark, "deform", contest, contestant)


def test_peak_memory(scoreboard):
    peaks = deform.peak_memory()
    assert all(sizes[OURS] is not None for sizes in peaks.values())
    scoreboard.add("deform", "memory_bytes", peaks)


def test_small_call_latency(scoreboard):
    latency = deform.small_call_latency()
    assert latency[OURS] > 0 and latency[CONV] > 0
    scoreboard.add("deform", "latency_ns", latency)
