# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

from _harness import entries, timed
from flexor.bench import hevc_encode
from flexor.bench.contest import OURS

TERMINAL = Path(__file__).resolve().parent.parent / "docs" / "images" / "terminal.png"


def pytest_generate_tests(metafunc):
    if "contest" in metafunc.fixturenames:
        images = [str(TERMINAL), *metafunc.config.getoption("--image")]
        metafunc.parametrize(("contest", "contestant"), entries(hevc_encode.contests(everything=True, images=images)))


@timed
def test_hevc_encode(benchmark, scoreboard, contest, contestant):
    scoreboard.report(benchmark, "hevc_encode", contest, contestant)


def test_memory(scoreboard):
    memory = hevc_encode.memory()
    scoreboard.add("hevc_encode", "memory_bytes", memory)
    few, many = (
        max(sizes[OURS] for case, sizes in memory.items() if case.startswith(f"{pictures} "))
        for pictures in hevc_encode.STREAMED
    )
    assert many < 1.1 * few


def test_versions(scoreboard):
    scoreboard.add("hevc_encode", "encoders", hevc_encode.versions())
