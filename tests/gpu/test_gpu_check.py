# SPDX-License-Identifier: Apache-2.0
"""bench/gpu_check.py rehearsed in the interpreter, so that it runs the day there is a GPU."""

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
import gpu_cases
import gpu_check
import gpu_deform
import gpu_report
import gpu_routes
import gpu_sparse
import gpu_times
import interpreter

interpreter.install()


DYNAMIC = [
    gpu_cases.odconv(1, 2, 2, 2),
    gpu_cases.matching(2, 2, 3, 0, 3),
    gpu_cases.grid(1, 2, 2, "cz", size=1),
]
SPARSE = [
    gpu_sparse.SparseCase(3, 2, 4, window=2, stride=2, inverse=True, groups=2),
    gpu_sparse.SparseCase(3, 2, 2, window=2, stride=2, pool="max"),
]
SHAPES = {"small": gpu_deform.Shape(1, 4, 5, 6), "groups": gpu_deform.Shape(1, 8, 4, 4, groups=2, offset_groups=4)}


def rehearse(monkeypatch, tmp_path, shapes, dynamic=(), sparse=(), only=""):
    for module in (gpu_report, gpu_deform):
        monkeypatch.setattr(module, "LIMITS", {torch.float32: 1e-5, torch.bfloat16: 1.6e-2})
    monkeypatch.setattr(gpu_report, "DEVICE", "cpu")
    monkeypatch.setattr(gpu_report, "CHANNELS_LAST", (True,))
    monkeypatch.setattr(gpu_deform, "CHECKED", shapes)
    monkeypatch.setattr(gpu_deform, "EDGES", gpu_deform.Shape(1, 4, 5, 6))
    monkeypatch.setattr(gpu_deform, "WARPED", (1, 3, 6, 7))
    monkeypatch.setattr(gpu_deform, "TIMED", dict(list(shapes.items())[:1]))
    monkeypatch.setattr(gpu_cases, "CHECKED", dynamic)
    monkeypatch.setattr(gpu_cases, "TIMED", dynamic[1:2])
    monkeypatch.setattr(gpu_sparse, "CHECKED", sparse)
    monkeypatch.setattr(gpu_sparse, "TIMED", sparse)
    monkeypatch.setattr(gpu_sparse, "SIDES", (1, 5))
    monkeypatch.setattr(gpu_routes, "ROUTED", tuple(shapes)[:1])
    monkeypatch.setattr(gpu_check, "machine", lambda: {"gpu": "none"})
    monkeypatch.setattr(gpu_times, "milliseconds", lambda run: run() is not None and 1.0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_check, "run_apart", lambda names, report, jobs: gpu_check.run_here(names, report))
    # What the interpreter cannot do, or not soon enough; CUDA C++ is test_cuda.py's.
    skipped = ("compiled", "autocast", "past", "intra")
    groups = {k: v for k, v in gpu_check.all_groups().items() if not k.startswith(skipped) and only in k}
    monkeypatch.setattr(gpu_check, "all_groups", lambda: groups)
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--out", str(tmp_path / "out.json")])
    code = gpu_check.main()
    return code, json.loads((tmp_path / "out.json").read_text())


def test_all_checks_pass(monkeypatch, tmp_path):
    code, result = rehearse(monkeypatch, tmp_path, SHAPES, DYNAMIC, SPARSE)
    assert [c for c in result["checks"] if not c["passed"]] == []
    assert code == 0 and result["finished"]
    assert {t["library"] for t in result["times"]} >= {"flexor", "torch"}


def test_a_wrong_kernel_fails(monkeypatch, tmp_path):
    from flexor.kernels import deform_conv2d

    forward = deform_conv2d.forward
    monkeypatch.setattr(deform_conv2d, "forward", lambda *args: forward(*args) * 1.01)
    code, result = rehearse(monkeypatch, tmp_path, {}, only="deform edges")
    assert code == 1 and any(not c["passed"] for c in result["checks"])


def test_a_group_that_dies_is_a_failed_check(monkeypatch):
    monkeypatch.setattr(gpu_check.sys, "executable", "false")
    report = gpu_report.Report(60)
    gpu_check.run_apart(["deform edges"], report, 1)
    (check,) = report.checks
    assert check["name"] == "deform edges" and not check["passed"] and "exit status 1" in check["message"]


def test_without_a_gpu_it_does_nothing(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--out", str(tmp_path / "out.json")])
    assert gpu_check.main() == 0
    assert "needs a GPU" in capsys.readouterr().out
    assert not (tmp_path / "out.json").exists()
