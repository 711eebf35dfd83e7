# SPDX-License-Identifier: Apache-2.0
"""Kernel tests need Triton's interpreter, which is chosen by TRITON_INTERPRET=1 before triton is imported.

Without it test_gates.py is collected, which runs the rest of the folder in processes of its own, and what needs no
interpreter: the CUDA C++ tests.
"""

import os

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
IN_INTERPRETER = [
    "test_gpu_check.py",
    "test_interpreter.py",
    "test_kernels_deform_conv2d.py",
    "test_kernels_grid_conv.py",
    "test_kernels_odconv2d.py",
    "test_kernels_sparse.py",
    "test_kernels_warp.py",
    "test_kernels_xcorr2d.py",
    "test_route.py",
]
collect_ignore = ["test_gates.py", "test_cuda.py", "test_cuda_compilers.py"] if INTERPRETED else IN_INTERPRETER
