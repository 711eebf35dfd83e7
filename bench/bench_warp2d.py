# SPDX-License-Identifier: Apache-2.0
import pytest
from _harness import entries, timed
from flexor.bench import warp


@timed
@pytest.mark.parametrize(("contest", "contestant"), entries(warp.contests(everything=True)))
def test_warp2d(benchmark, scoreboard, contest, contestant):
    scoreboard.report(benchmark, "warp", contest, contestant)
