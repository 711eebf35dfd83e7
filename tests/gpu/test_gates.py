# SPDX-License-Identifier: Apache-2.0
"""The GPU gates that need no GPU, each in a process of its own, since TRITON_INTERPRET decides at import."""

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


def test_kernels_in_the_strict_interpreter():
    run("-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE), TRITON_INTERPRET="1", OMP_NUM_THREADS="1")


def test_manifest():
    run(str(HERE / "manifest.py"), "--check", "--quick")
