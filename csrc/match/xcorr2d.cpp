// SPDX-License-Identifier: Apache-2.0
#include "match/xcorr2d.h"

#include <pybind11/pybind11.h>

#include "core/checks.h"
#include "core/tensor_view.h"

namespace py = pybind11;

namespace flexor {
namespace {

constexpr Checks checks{"xcorr2d"};

void check(const Xcorr2dParams& p) {
  const TensorView &input = p.input, &kernel = p.kernel, &output = p.output;
  checks.require(input.ndim == 4 && kernel.ndim == 5 && output.ndim == 4,
                 "input and output must have 4 dimensions, kernel 5");
  checks.require(is_float(input.dtype) && kernel.dtype == input.dtype && output.dtype == input.dtype,
                 "all tensors must share one floating-point dtype");
  checks.require(kernel.size[0] == input.size[0] && output.size[0] == input.size[0], "all must have input's B");
  checks.require(kernel.size[2] == input.size[1] && output.size[1] == kernel.size[1],
                 "kernel must be (B, K, C, kh, kw)");
  checks.require(kernel.size[1] >= 1 && kernel.size[2] >= 1, "K and C must be positive");
  const int64_t padding[2] = {p.pad_h, p.pad_w};
  for (int d = 0; d < 2; ++d) {
    constexpr int64_t kMost = int64_t{1} << 24;  // so that no product of sizes overflows
    checks.require(padding[d] >= 0 && padding[d] < kMost && input.size[2 + d] < kMost, "sizes must be below 2^24");
    checks.require(kernel.size[3 + d] >= 1, "the kernel must have taps");
    const int64_t size = input.size[2 + d] + 2 * padding[d] - kernel.size[3 + d] + 1;
    checks.require(size >= 1, "the kernel must fit into the padded input");
    checks.require(output.size[2 + d] == size, "output must be (B, K, H+2*py-kh+1, W+2*px-kw+1)");
  }
  checks.gradient(p.grad_input, input);
  checks.gradient(p.grad_kernel, kernel);
}

Xcorr2dParams params(py::handle output, const char* name, py::handle input, py::handle kernel, int64_t pad_h,
                     int64_t pad_w) {
  Xcorr2dParams p{};
  p.input = view_tensor(input, "input");
  p.kernel = view_tensor(kernel, "kernel");
  p.output = view_tensor(output, name);
  p.pad_h = pad_h, p.pad_w = pad_w;
  return p;
}

void forward(py::handle output, py::handle input, py::handle kernel, int64_t pad_h, int64_t pad_w) {
  const Xcorr2dParams p = params(output, "output", input, kernel, pad_h, pad_w);
  check(p);
  py::gil_scoped_release nogil;
  FLEXOR_KERNELS(xcorr2d_kernels).forward(p);
}

void backward(py::handle grad_output, py::handle input, py::handle kernel, py::handle grad_input,
              py::handle grad_kernel, int64_t pad_h, int64_t pad_w) {
  Xcorr2dParams p = params(grad_output, "grad_output", input, kernel, pad_h, pad_w);
  p.grad_input = view_tensor(grad_input, "grad_input");
  p.grad_kernel = view_tensor(grad_kernel, "grad_kernel");
  check(p);
  py::gil_scoped_release nogil;
  FLEXOR_KERNELS(xcorr2d_kernels).backward(p);
}

}  // namespace

void register_xcorr2d(py::module_& m) {
  m.def("xcorr2d_forward", &forward);
  m.def("xcorr2d_backward", &backward);
}

}  // namespace flexor
