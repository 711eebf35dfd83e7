# SPDX-License-Identifier: Apache-2.0
import pytest
from _harness import entries, timed
from flexor.bench import intra


@timed
@pytest.mark.parametrize(("contest", "contestant"), entries(intra.contests(everything=True)))
def test_intra(benchmark, scoreboard, contest, contestant):
    scoreboard.report(benchmark, "intra", contest, contestant)
