# SPDX-License-Identifier: Apache-2.0
"""CUDA C++ kernels and the code that launches them; what they leave to do is plain PyTorch on the same device."""
