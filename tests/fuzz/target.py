# SPDX-License-Identifier: Apache-2.0
"""Builds a fuzz target under the address and undefined-behaviour sanitizers, and runs it.

    python tests/fuzz/target.py --seconds 3600
    python tests/fuzz/target.py --target hevc_encoder

clang++ brings libFuzzer; without it, g++ replays the corpus and random changes of it. The decoder's corpus is
tests/data/hevc, tests/fuzz/corpus and what once failed, tests/fuzz/found; the encoder's is written from `recipes`. New
inputs go to build/fuzz/corpus and build/fuzz/hevc_encoder, failures to build/fuzz/failures.
"""

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "tests" / "fuzz"
OUT = ROOT / "build" / "fuzz"
DECODER, ENCODER = "hevc_decoder", "hevc_encoder"
CORPUS = {
    DECODER: [ROOT / "tests" / "data" / "hevc", HERE / "corpus", HERE / "found"],
    ENCODER: [OUT / "recipes"],
}
FOUND = {DECODER: OUT / "corpus", ENCODER: OUT / "hevc_encoder"}
FLAGS = ["-std=c++17", "-O1", "-g1", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all", "-I", str(ROOT / "csrc")]
# One instruction set is enough, and the oldest is there everywhere; tests/test_hevc_kernels.py compares them.
FLAGS += ["-DFLEXOR_ISA=baseline", "-DFLEXOR_ISA_baseline=1"]
FLAGS += ["-march=x86-64-v2"] if platform.machine() in ("x86_64", "AMD64") else []
SANITIZERS = "-fsanitize=address,undefined"
LIMITS = {"ASAN_OPTIONS": "max_allocation_size_mb=512:detect_leaks=1", "UBSAN_OPTIONS": "print_stacktrace=1"}


def sources(name: str) -> list[Path]:
    """What CMakeLists.txt lists for the codec, without its Python bindings, and the target itself."""
    used = r"csrc/(?:hevc/\w+|intra/intra_(?:predict|reference|search)_cpu|core/(?:cpu|parallel))\.cpp"
    listed = sorted(set(re.findall(used, (ROOT / "CMakeLists.txt").read_text())))
    if name == DECODER:
        listed = [path for path in listed if not re.search("encode|writer|search", path)]
    return [path for path in map(ROOT.joinpath, listed) if "pybind11" not in path.read_text()] + [HERE / f"{name}.cpp"]


def recipes() -> None:
    """Writes the encoder's first inputs: every format, preset, extension and pattern, other sizes and QPs."""
    (folder,) = CORPUS[ENCODER]
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(128):
        header = [i * 5 % 128, i * 7 % 16, i * 13 % 52, i * 29 % 96, i * 41 % 96, i * 11 % 64, i % 4, i * 3 % 32]
        text = [255 * (i * j * j // 7 % 3 > 0) for j in range(8 + i)]
        (folder / f"{i:03}").write_bytes(bytes(header + text))


def compiles(compiler: str | None, *flags: str) -> bool:
    """Whether a program can be linked with these flags."""
    if compiler is None:
        return False
    program = 'extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }\n'
    program += "" if any("fuzzer" in flag for flag in flags) else "int main() {}\n"
    command = [compiler, "-x", "c++", "-", "-o", os.devnull, *flags]
    return subprocess.run(command, input=program, text=True, capture_output=True).returncode == 0


def libfuzzer() -> str | None:
    for name in ("clang++", *(f"clang++-{version}" for version in range(22, 11, -1))):
        if compiles(shutil.which(name), SANITIZERS + ",fuzzer"):
            return name
    return None


def gcc() -> str | None:
    return "g++" if compiles(shutil.which("g++"), SANITIZERS) else None


def build(compiler: str, with_libfuzzer: bool, name: str = DECODER) -> Path:
    """The target's path; compiled anew where a source has changed."""
    out = OUT / ("libfuzzer" if with_libfuzzer else "replay")
    out.mkdir(parents=True, exist_ok=True)
    sanitizers = SANITIZERS + (",fuzzer-no-link" if with_libfuzzer else "")
    files = [*sources(name), *([] if with_libfuzzer else [HERE / "replay.cpp"])]
    folders = [HERE, *(ROOT / "csrc" / name for name in ("core", "hevc", "intra"))]
    headers = max(path.stat().st_mtime for folder in folders for path in folder.glob("*.h"))

    def compile_one(source: Path) -> Path:
        made = out / f"{source.stem}.o"
        if not made.exists() or made.stat().st_mtime < max(headers, source.stat().st_mtime):
            subprocess.run([compiler, *FLAGS, sanitizers, "-c", str(source), "-o", str(made)], check=True)
        return made

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, files))
    target = out / name
    link = SANITIZERS + (",fuzzer" if with_libfuzzer else "")
    subprocess.run([compiler, link, *map(str, objects), "-o", str(target), "-ldl", "-pthread"], check=True)
    return target


def replay(target: Path, seconds: float, seed: int) -> subprocess.CompletedProcess[str]:
    """Runs a target without libFuzzer. A failure's input is in build/fuzz/failures/seed-<seed>."""
    failures = OUT / "failures"
    failures.mkdir(parents=True, exist_ok=True)
    command = [str(target), str(failures / f"seed-{seed}"), str(seconds), str(seed), *map(str, CORPUS[target.name])]
    return subprocess.run(command, env={**os.environ, **LIMITS}, capture_output=True, text=True)


def fuzz(target: Path, seconds: int) -> int:
    """Runs libFuzzer; the exit status is not 0 if something failed."""
    failures, corpus = OUT / "failures", FOUND[target.name]
    failures.mkdir(parents=True, exist_ok=True)
    corpus.mkdir(exist_ok=True)
    limits = ["-max_len=4096", "-timeout=60", "-rss_limit_mb=1500", f"-max_total_time={seconds}"]
    command = [str(target), *limits, "-print_final_stats=1", f"-artifact_prefix={failures}/", str(corpus)]
    return subprocess.run([*command, *map(str, CORPUS[target.name])], env={**os.environ, **LIMITS}).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--replay", action="store_true", help="g++, without libFuzzer, even if it is there")
    parser.add_argument("--target", choices=CORPUS, default=DECODER)
    options = parser.parse_args()
    if options.target == ENCODER:
        recipes()
    if not options.replay and (compiler := libfuzzer()):
        return fuzz(build(compiler, True, options.target), options.seconds)
    compiler = gcc()
    if compiler is None:
        sys.exit("fuzz: neither clang++ with libFuzzer nor g++ with the address sanitizer is here")
    result = replay(build(compiler, False, options.target), options.seconds, 0)
    print(result.stdout + result.stderr)
    return result.returncode


if __name__ == "__main__":
    sys.exit(main())
