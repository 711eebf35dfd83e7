# SPDX-License-Identifier: Apache-2.0
"""The HEVC encoder short of memory: an error, and nobody who waits for ever."""

import os
import shutil
import subprocess
import sys

import pytest

# Where `scarce` is set, no thread but the first gets memory from aligned_alloc, which is where kernels get theirs.
SHORTAGE = """
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>
int scarce = 0, refused = 0;
void* aligned_alloc(size_t alignment, size_t size) {
  if (scarce && syscall(SYS_gettid) != getpid()) {
    __atomic_add_fetch(&refused, 1, __ATOMIC_RELAXED);
    return NULL;
  }
  void* memory = NULL;
  return posix_memalign(&memory, alignment, size) == 0 ? memory : NULL;
}
"""
ENCODE = """
import ctypes, sys
import numpy as np
from flexor.codec import hevc

memory = ctypes.CDLL(sys.argv[1])
scarce, refused = (ctypes.c_int.in_dll(memory, name) for name in ("scarce", "refused"))
picture = np.random.default_rng(0).integers(0, 255, (640, 192), np.uint8)
encoder = hevc.Encoder(chroma="400", preset="fast", threads=3)
whole = encoder.encode(picture)
scarce.value = 1
try:
    encoder.encode(picture)
except MemoryError:
    print("no memory", refused.value > 0)
try:
    hevc.encode([picture] * 3, chroma="400", preset="fast", threads=3)  # side by side
except MemoryError:
    print("no memory")
scarce.value = 0
again = encoder.encode(picture)
print(whole.endswith(again), len(hevc.decode(whole + again)))
"""


@pytest.mark.skipif(
    shutil.which("cc") is None or not sys.platform.startswith("linux"), reason="needs cc and the dynamic linker's ways"
)
def test_rows_without_memory_do_not_wait_for_ever(tmp_path):
    source, library = tmp_path / "shortage.c", tmp_path / "shortage.so"
    source.write_text(SHORTAGE)
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source)], check=True)
    done = subprocess.run(
        [sys.executable, "-c", ENCODE, str(library)],
        env={**os.environ, "LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["no memory True", "no memory", "True 2"]
