# SPDX-License-Identifier: Apache-2.0
"""The HEVC codec short of memory: an error, nobody who waits for ever, and afterwards all is as before."""

import os
import shutil
import subprocess
import sys

import pytest

# The memory of C++, of which there is none for any thread but the first while `scarce` is set, and none for the
# allocation of the number `refused`.
MEMORY = """
#include <cstddef>
#include <cstdlib>
#include <new>
#include <sys/syscall.h>
#include <unistd.h>
extern "C" {
int scarce = 0;
long counted = 0, refused = -1;
}
static void* get(size_t alignment, size_t size) {
  if (scarce && syscall(SYS_gettid) != getpid()) return nullptr;
  if (__atomic_add_fetch(&counted, 1, __ATOMIC_RELAXED) == refused) return nullptr;
  void* memory = nullptr;
  return posix_memalign(&memory, alignment, size) == 0 ? memory : nullptr;
}
extern "C" void* aligned_alloc(size_t alignment, size_t size) { return get(alignment, size); }
void* operator new(size_t size) {
  if (void* const memory = get(alignof(std::max_align_t), size)) return memory;
  throw std::bad_alloc();
}
"""
HEAD = """
import ctypes, sys
import numpy as np
from flexor import _C
from flexor.codec import hevc

memory = ctypes.CDLL(sys.argv[1])
scarce = ctypes.c_int.in_dll(memory, "scarce")
counted, refused = (ctypes.c_long.in_dll(memory, name) for name in ("counted", "refused"))
noise = np.random.default_rng(0)
"""
ROWS = """
picture = noise.integers(0, 255, (640, 192), np.uint8)
encoder = hevc.Encoder(chroma="400", preset="fast", threads=3)
whole = encoder.encode(picture)
scarce.value = 1
options = {"chroma": "400", "preset": "fast", "threads": 3}
for call in (lambda: encoder.encode(picture), lambda: hevc.encode([picture] * 3, **options)):  # rows; side by side
    try:
        call()
    except MemoryError:
        print("no memory")
scarce.value = 0
again = encoder.encode(picture)
print(whole.endswith(again), len(hevc.decode(whole + again)))
"""
EVERY = """
picture = (noise.integers(0, 255, (80, 40), np.uint8),)
core = hevc.Encoder(chroma="400", preset="fast")._new_core(40, 80, hevc.Colour())
stream = core.parameter_sets() + core.encode(picture, 1)

def refuse(number):  # 0: none
    counted.value, refused.value = 0, number

def encode(threads, number):
    refuse(number)
    return core.encode(picture, threads)

def decode(threads, number):
    refuse(0)  # pybind11 needs memory for the object
    decoder = hevc.Decoder(threads=threads)
    refuse(number)
    return [plane.tobytes() for picture in decoder.feed(stream) + decoder.flush() for plane in picture.planes]

for call in (encode, decode):
    for threads in (1, 2):
        wanted = call(threads, 0)
        allocations, errors = counted.value, 0
        for number in range(1, allocations + 1):
            try:
                assert call(threads, number) == wanted
            except MemoryError:
                errors += 1
        print(call.__name__, threads, allocations > 20, errors > allocations // 2)
"""


@pytest.fixture(scope="module")
def short_of_memory(tmp_path_factory):
    """Runs a script in a process with the memory of above; what it prints, by lines."""
    if shutil.which("c++") is None or not sys.platform.startswith("linux"):
        pytest.skip("needs c++ and the dynamic linker's ways")
    folder = tmp_path_factory.mktemp("memory")
    source, library = folder / "memory.cpp", folder / "memory.so"
    source.write_text(MEMORY)
    subprocess.run(["c++", "-shared", "-fPIC", "-O1", "-o", str(library), str(source)], check=True)

    def run(script):
        command = [sys.executable, "-c", HEAD + script, str(library)]
        environment = {**os.environ, "LD_PRELOAD": str(library)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return run


def test_rows_without_memory_do_not_wait_for_ever(short_of_memory):
    assert short_of_memory(ROWS) == ["no memory", "no memory", "True 2"]


def test_every_allocation_may_fail(short_of_memory):
    """An error or, where it was for another thread, the same result with fewer."""
    assert short_of_memory(EVERY) == [
        f"{name} {threads} True True" for name in ("encode", "decode") for threads in (1, 2)
    ]
