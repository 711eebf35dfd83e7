# SPDX-License-Identifier: Apache-2.0
from _harness import entries, timed
from flexor.bench import hevc


def pytest_generate_tests(metafunc):
    if "contest" in metafunc.fixturenames:
        images = metafunc.config.getoption("--image")
        metafunc.parametrize(("contest", "contestant"), entries(hevc.contests(everything=True, images=images)))


@timed
def test_hevc(benchmark, scoreboard, contest, contestant):
    scoreboard.report(benchmark, "hevc", contest, contestant)


def test_versions(scoreboard):
    scoreboard.add("hevc", "decoders", hevc.versions())
