# SPDX-License-Identifier: Apache-2.0
"""The package as a whole: imports, backends, info, one OpenMP runtime, the cost of a small call."""

import ast
import logging
import subprocess
import sys
from pathlib import Path

import flexor
import pytest
import torch
from flexor import _backend

ROOT = Path(__file__).parents[1]
PACKAGE = Path(flexor.__file__).parent
LAYERS = ("reference", "_cuda", "kernels", "ops", "nn", "sparse", "models", "codec")  # each may import those before it


def imports(path: Path) -> set[str]:
    """Absolute names that a source file imports, relative imports resolved."""
    package = (
        ("flexor", *path.relative_to(PACKAGE).parts[:-1]) if path.is_relative_to(PACKAGE) else ("flexor", "kernels")
    )
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            base += (node.module or "").split(".") if node.module else []
            found |= {".".join([*base, alias.name]) for alias in node.names}
    return found


SOURCES = [*PACKAGE.rglob("*.py"), *(ROOT / "kernels").glob("*.py")]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(p.parents[1])))
def test_imports_run_one_way(path):
    parts = path.relative_to(PACKAGE).parts if path.is_relative_to(PACKAGE) else ("kernels",)
    names = imports(path)
    assert not {n for n in names if n.split(".")[0] == "kernels"}, "a bare `kernels` is a second copy of flexor.kernels"
    if parts[0] in LAYERS:
        later = (*LAYERS[LAYERS.index(parts[0]) + 1 :], "compat", "cli", "bench")
        assert not {n for n in names if n.startswith("flexor.") and n.split(".")[1] in later}
    assert path.read_text() == "" or path.read_text().startswith("# SPDX-License-Identifier: Apache-2.0"), (
        "no licence line"
    )


def small():
    input, weight, bias = torch.randn(1, 8, 5, 5), torch.randn(8, 8, 3, 3), torch.randn(8)
    offset, mask = torch.randn(1, 18, 5, 5), torch.rand(1, 9, 5, 5)
    return input, offset, weight, bias, (1, 1), (1, 1), (1, 1), mask


def test_one_openmp_runtime():
    flexor.ops.deform_conv2d(*small())
    runtimes = flexor.info()["openmp"]
    assert len(runtimes) == 1 and "torch" in runtimes[0]


def test_info():
    info = flexor.info()
    assert info["flexor"] == flexor.__version__
    assert set(info["backends"]) == set(_backend.NAMES) and info["backends"]["reference"] == "can run"
    assert info["active set"] in info["instruction sets"]
    text = str(info)
    assert all(key in text for key in info) and "reference: can run" in text


def test_more_than_one_runtime_is_a_warning():
    from flexor._info import _warnings

    assert any("more than one OpenMP runtime" in text for text in _warnings(["/a/libgomp.so.1", "/b/libomp.so"]))


def test_explain():
    input, offset, weight, *_ = small()
    text = flexor.explain(flexor.ops.deform_conv2d, input, offset, weight, padding=1)
    assert text.startswith("deform_conv2d on cpu torch.float32: cpu (the first that can)")
    assert "straight to the kernel" in text and "there is no CUDA C++ kernel" in text
    text = flexor.explain("deform_conv2d", input, offset, weight.requires_grad_(), backend="reference")
    assert "reference (asked for)" in text and "autograd.Function" in text
    assert "an error" in flexor.explain("deform_conv2d", input, offset, weight, backend="cuda")
    with pytest.raises(ValueError, match="op must be one of"):
        flexor.explain("conv2d", input)
    with pytest.raises(ValueError, match="needs the tensors"):
        flexor.explain("deform_conv2d")


def test_set_backend(monkeypatch):
    monkeypatch.setattr(_backend, "_forced", None)
    flexor.set_backend("reference")
    assert "reference (forced)" in flexor.explain("deform_conv2d", *small())
    flexor.set_backend(None)
    assert "cpu (the first that can)" in flexor.explain("deform_conv2d", *small())
    with pytest.raises(ValueError, match="backend must be one of cpu, cuda, reference, triton, got 'mkl'"):
        flexor.set_backend("mkl")
    flexor.set_backend("cuda")
    with pytest.raises(RuntimeError, match="deform_conv2d: backend 'cuda' cannot run: there is no CUDA"):
        flexor.ops.deform_conv2d(*small())
    if not torch.cuda.is_available():
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        _backend.why_not.cache_clear()
        with pytest.raises(RuntimeError, match="backend 'triton' cannot run"):
            flexor.ops.deform_conv2d(*small(), backend="triton")


def test_the_automatic_choice_is_logged(caplog):
    _backend._automatic.cache_clear()
    with caplog.at_level(logging.DEBUG, "flexor"):
        _backend.choose("warp2d", torch.device("cpu"), torch.float32)
    assert "warp2d on cpu torch.float32" in caplog.text


def run(code: str, **environment: str) -> str:
    import os

    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True).stdout


def test_environment():
    code = "import torch, flexor; x = torch.zeros(1, 2, 3, 3); print(flexor.explain('warp2d', x, x))"
    code += "; print(flexor.info()['active set'])"
    text = run(code, FLEXOR_BACKEND="reference", FLEXOR_CPU="baseline")
    assert "reference (forced)" in text and text.rstrip().endswith("baseline")
