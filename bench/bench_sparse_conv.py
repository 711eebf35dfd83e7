# SPDX-License-Identifier: Apache-2.0
from _harness import entries, timed
from flexor.bench import sparse
from flexor.bench.contest import OURS


def pytest_generate_tests(metafunc):
    if "contest" in metafunc.fixturenames:
        scans = metafunc.config.getoption("--scan")
        metafunc.parametrize(("contest", "contestant"), entries(sparse.contests(everything=True, scans=scans)))


@timed
def test_sparse_conv(benchmark, scoreboard, contest, contestant):
    scoreboard.report(benchmark, "sparse", contest, contestant)


def test_peak_memory(scoreboard):
    peaks = sparse.peak_memory()
    assert all(sizes[OURS] is not None for sizes in peaks.values())
    scoreboard.add("sparse", "memory_bytes", peaks)
