# SPDX-License-Identifier: Apache-2.0
import pytest
from _harness import entries, timed
from flexor.bench import match


@timed
@pytest.mark.parametrize(("contest", "contestant"), entries(match.contests(everything=True)))
def test_xcorr2d(benchmark, scoreboard, contest, contestant):
    scoreboard.report(benchmark, "match", contest, contestant)
