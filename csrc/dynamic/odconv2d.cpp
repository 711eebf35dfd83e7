// SPDX-License-Identifier: Apache-2.0
#include "dynamic/odconv2d.h"

#include <pybind11/pybind11.h>

#include "core/checks.h"
#include "core/tensor_view.h"

namespace py = pybind11;

namespace flexor {
namespace {

constexpr Checks checks{"odconv2d"};

void check_matrix(const TensorView& view, int64_t rows, int64_t columns, DType input, const char* what) {
  if (!view) return;
  const DType other = input == DType::f64 ? DType::f64 : DType::f32;
  checks.require(view.ndim == 2 && view.size[0] == rows && view.size[1] == columns, what);
  checks.require(view.dtype == input || view.dtype == other, "attentions must have input's dtype or float32");
}

void check(const ODConv2dParams& p) {
  checks.require(p.input.ndim == 4 && p.weight.ndim == 5 && p.output.ndim == 4,
                 "input and output must have 4 dimensions, weight 5");
  checks.require(p.stride_h > 0 && p.stride_w > 0 && p.dilation_h > 0 && p.dilation_w > 0 && p.pad_h >= 0 &&
                     p.pad_w >= 0 && p.groups > 0,
                 "stride, dilation and groups must be positive, padding not negative");
  const int64_t b = p.input.size[0], ci = p.input.size[1], n = p.weight.size[0], co = p.weight.size[1];
  const int64_t kh = p.weight.size[3], kw = p.weight.size[4];
  checks.require(n > 0 && co > 0 && ci > 0 && kh > 0 && kw > 0 && ci % p.groups == 0 && co % p.groups == 0 &&
                     p.weight.size[2] == ci / p.groups,
                 "weight must be (n, Co, Ci/groups, kh, kw)");
  checks.require(p.kernel || n == 1, "several kernels need a kernel_attention");
  constexpr int64_t kMost = int64_t{1} << 24;  // so that no product below overflows
  checks.require(p.pad_h < kMost && p.pad_w < kMost && p.dilation_h < kMost && p.dilation_w < kMost &&
                     p.stride_h < kMost && p.stride_w < kMost && p.input.size[2] < kMost && p.input.size[3] < kMost &&
                     kh < kMost && kw < kMost,
                 "sizes of 2^24 or more need backend=\"reference\"");
  checks.require(p.input.size[2] + 2 * p.pad_h >= p.dilation_h * (kh - 1) + 1 &&
                     p.input.size[3] + 2 * p.pad_w >= p.dilation_w * (kw - 1) + 1,
                 "the output would be empty");
  const int64_t oh = output_size(p.input.size[2], kh, p.stride_h, p.pad_h, p.dilation_h);
  const int64_t ow = output_size(p.input.size[3], kw, p.stride_w, p.pad_w, p.dilation_w);
  checks.require(p.output.size[0] == b && p.output.size[1] == co && p.output.size[2] == oh && p.output.size[3] == ow,
                 "output must be (B, Co, oh, ow)");
  const DType t = p.input.dtype;
  checks.require(is_float(t) && p.weight.dtype == t && p.output.dtype == t,
                 "input, weight and output must share one floating-point dtype");
  check_matrix(p.channel, b, ci, t, "channel_attention must be (B, Ci)");
  check_matrix(p.filter, b, co, t, "filter_attention must be (B, Co)");
  check_matrix(p.spatial, b, kh * kw, t, "spatial_attention must be (B, kh*kw)");
  check_matrix(p.kernel, b, n, t, "kernel_attention must be (B, n)");
  for (auto [grad, of] : {std::pair(&p.grad_input, &p.input), std::pair(&p.grad_weight, &p.weight),
                          std::pair(&p.grad_channel, &p.channel), std::pair(&p.grad_filter, &p.filter),
                          std::pair(&p.grad_spatial, &p.spatial), std::pair(&p.grad_kernel, &p.kernel)}) {
    checks.gradient(*grad, *of);
  }
}

ODConv2dParams read(py::handle output, py::handle input, py::handle weight, py::handle channel, py::handle filter,
                    py::handle spatial, py::handle kernel, int64_t stride_h, int64_t stride_w, int64_t pad_h,
                    int64_t pad_w, int64_t dilation_h, int64_t dilation_w, int64_t groups) {
  ODConv2dParams p{};
  p.stride_h = stride_h, p.stride_w = stride_w, p.pad_h = pad_h, p.pad_w = pad_w;
  p.dilation_h = dilation_h, p.dilation_w = dilation_w, p.groups = groups;
  p.input = view_tensor(input, "input");
  p.weight = view_tensor(weight, "weight");
  p.channel = view_tensor(channel, "channel_attention");
  p.filter = view_tensor(filter, "filter_attention");
  p.spatial = view_tensor(spatial, "spatial_attention");
  p.kernel = view_tensor(kernel, "kernel_attention");
  p.output = view_tensor(output, "output");
  return p;
}

void forward(py::handle output, py::handle input, py::handle weight, py::handle channel, py::handle filter,
             py::handle spatial, py::handle kernel, int64_t stride_h, int64_t stride_w, int64_t pad_h, int64_t pad_w,
             int64_t dilation_h, int64_t dilation_w, int64_t groups) {
  const ODConv2dParams p = read(output, input, weight, channel, filter, spatial, kernel, stride_h, stride_w, pad_h,
                                pad_w, dilation_h, dilation_w, groups);
  check(p);
  py::gil_scoped_release nogil;
  FLEXOR_KERNELS(odconv2d_kernels).forward(p);
}

void backward(py::handle grad_output, py::handle input, py::handle weight, py::handle channel, py::handle filter,
              py::handle spatial, py::handle kernel, py::handle grad_input, py::handle grad_weight,
              py::handle grad_channel, py::handle grad_filter, py::handle grad_spatial, py::handle grad_kernel,
              int64_t stride_h, int64_t stride_w, int64_t pad_h, int64_t pad_w, int64_t dilation_h, int64_t dilation_w,
              int64_t groups) {
  ODConv2dParams p = read(grad_output, input, weight, channel, filter, spatial, kernel, stride_h, stride_w, pad_h,
                          pad_w, dilation_h, dilation_w, groups);
  p.grad_input = view_tensor(grad_input, "grad_input");
  p.grad_weight = view_tensor(grad_weight, "grad_weight");
  p.grad_channel = view_tensor(grad_channel, "grad_channel");
  p.grad_filter = view_tensor(grad_filter, "grad_filter");
  p.grad_spatial = view_tensor(grad_spatial, "grad_spatial");
  p.grad_kernel = view_tensor(grad_kernel, "grad_kernel");
  check(p);
  py::gil_scoped_release nogil;
  FLEXOR_KERNELS(odconv2d_kernels).backward(p);
}

}  // namespace

void register_odconv2d(py::module_& m) {
  m.def("odconv2d_forward", &forward);
  m.def("odconv2d_backward", &backward);
}

}  // namespace flexor
