# SPDX-License-Identifier: Apache-2.0
"""The GPU gates that need no GPU, each in a process of its own, since TRITON_INTERPRET decides at import."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
HERE = Path(__file__).parent


def run(*command, **environment):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("TRITON_", "PYTEST_"))}
    done = subprocess.run(
        [sys.executable, *command], env=kept | environment, capture_output=True, text=True, cwd=HERE.parent.parent
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]
    return done.stdout


def test_kernels_in_the_strict_interpreter():
    run("-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE), TRITON_INTERPRET="1", OMP_NUM_THREADS="1")


def test_manifest():
    run(str(HERE / "manifest.py"), "--check", "--quick")


BITES = """
import sys
sys.path.insert(0, "tests/gpu")
import json, manifest
key = "r50-256.bf16.nhwc/deform_conv2d_bwd_sample.deterministic/sm_90"
facts = dict.fromkeys(["spills", "stack", "wide_loads", "float_atomics", "atomics"], 0)
facts |= json.loads(manifest.MANIFEST.read_text())["launches"][key]
print(json.dumps({
    "as committed": manifest.broken_promises(key, facts) + manifest.differences(key, facts, facts),
    "spill": manifest.broken_promises(key, facts | {"spills": 2, "stack": 8}),
    "shared": manifest.broken_promises(key, facts | {"shared": 300000}),
    "matrix": manifest.broken_promises(key, facts | {"HMMA": 0, "HGMMA": 0}),
    "wide": manifest.broken_promises(key, facts | {"wide_loads": 0}),
    "order": manifest.broken_promises(key, facts | {"float_atomics": 4}),
    "gather": manifest.broken_promises(key.replace("bwd_sample.deterministic", "fwd"), facts),
    "registers": manifest.differences(key, facts | {"registers": facts["registers"] + 9}, facts),
    "lines": manifest.differences(key, facts | {"lines": facts["lines"] * 6 // 5}, facts),
    "vanished": manifest.differences(key, facts | {"async_copies": 0 if facts["async_copies"] else 1}, facts),
}))
"""


def test_manifest_gates_bite():
    found = json.loads(run("-c", BITES))
    assert found.pop("as committed") == []
    assert {name for name, problems in found.items() if len(problems) != 1} == set()
