// SPDX-License-Identifier: Apache-2.0
#include "match/xcorr2d_depthwise.h"

#include <pybind11/pybind11.h>

#include "core/checks.h"
#include "core/tensor_view.h"

namespace py = pybind11;

namespace flexor {
namespace {

constexpr Checks checks{"xcorr2d_depthwise"};

void check(const XcorrDepthwiseParams& p) {
  const TensorView &input = p.input, &kernel = p.kernel, &output = p.output;
  checks.require(input.ndim == 4 && kernel.ndim == 4 && output.ndim == 4, "all tensors must have 4 dimensions");
  checks.require(is_float(input.dtype) && kernel.dtype == input.dtype && output.dtype == input.dtype,
                 "all tensors must share one floating-point dtype");
  for (int d = 0; d < 2; ++d) {
    checks.require(kernel.size[d] == input.size[d] && output.size[d] == input.size[d], "all must have input's B and C");
    checks.require(p.padding[d] >= 0 && p.padding[d] < (int64_t{1} << 40), "padding must be a size");
    checks.require(kernel.size[2 + d] >= 1, "the kernel must have taps");
    const int64_t size = input.size[2 + d] + 2 * p.padding[d] - kernel.size[2 + d] + 1;
    checks.require(size >= 1, "the kernel must fit into the padded input");
    checks.require(output.size[2 + d] == size, "output must be (B, C, H+2*py-kh+1, W+2*px-kw+1)");
  }
  checks.gradient(p.grad_input, input);
  checks.gradient(p.grad_kernel, kernel);
}

XcorrDepthwiseParams params(py::handle output, const char* name, py::handle input, py::handle kernel, int64_t pad_h,
                            int64_t pad_w) {
  XcorrDepthwiseParams p;
  p.input = view_tensor(input, "input");
  p.kernel = view_tensor(kernel, "kernel");
  p.output = view_tensor(output, name);
  p.padding[0] = pad_h, p.padding[1] = pad_w;
  return p;
}

void forward(py::handle output, py::handle input, py::handle kernel, int64_t pad_h, int64_t pad_w) {
  const XcorrDepthwiseParams p = params(output, "output", input, kernel, pad_h, pad_w);
  check(p);
  py::gil_scoped_release nogil;
  FLEXOR_KERNELS(xcorr2d_depthwise_kernels).forward(p);
}

void backward(py::handle grad_output, py::handle input, py::handle kernel, py::handle grad_input,
              py::handle grad_kernel, int64_t pad_h, int64_t pad_w) {
  XcorrDepthwiseParams p = params(grad_output, "grad_output", input, kernel, pad_h, pad_w);
  p.grad_input = view_tensor(grad_input, "grad_input");
  p.grad_kernel = view_tensor(grad_kernel, "grad_kernel");
  check(p);
  py::gil_scoped_release nogil;
  FLEXOR_KERNELS(xcorr2d_depthwise_kernels).backward(p);
}

}  // namespace

void register_xcorr2d_depthwise(py::module_& m) {
  m.def("xcorr2d_depthwise_forward", &forward);
  m.def("xcorr2d_depthwise_backward", &backward);
}

}  // namespace flexor
