# SPDX-License-Identifier: Apache-2.0
"""A minute of fuzzing under sanitizers: the corpus, what once failed, and random changes of both, the same every time.

`make fuzz` runs longer and with libFuzzer where there is clang++.
"""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from fuzz import target

SECONDS = float(os.environ.get("FUZZ_SECONDS", "30"))


def test_hostile_streams():
    compiler = target.gcc()
    if compiler is None:
        pytest.skip("needs g++ with the address and undefined-behaviour sanitizers (libasan, libubsan)")
    built = target.build(compiler, False)
    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(lambda seed: target.replay(built, SECONDS, seed), (1, 2)))
    for seed, run in enumerate(runs, 1):
        assert run.returncode == 0, f"build/fuzz/failures/seed-{seed} breaks the decoder:\n{run.stdout}{run.stderr}"
        assert int(run.stdout.split()[2]) > 0
