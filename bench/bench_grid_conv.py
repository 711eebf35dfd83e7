# SPDX-License-Identifier: Apache-2.0
import pytest
from _harness import entries, timed
from flexor.bench import grid


@timed
@pytest.mark.parametrize(("contest", "contestant"), entries(grid.contests(everything=True)))
def test_grid_conv(benchmark, scoreboard, contest, contestant):
    scoreboard.report(benchmark, "grid", contest, contestant)
