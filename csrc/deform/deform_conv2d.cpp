// SPDX-License-Identifier: Apache-2.0
#include "deform/deform_conv2d.h"

#include <pybind11/pybind11.h>

#include "core/checks.h"
#include "core/tensor_view.h"

namespace py = pybind11;

namespace flexor {
namespace {

constexpr Checks checks{"deform_conv2d"};

void check(const DeformConv2dParams& p) {
  checks.require(p.input.ndim == 4 && p.weight.ndim == 4 && p.offset.ndim == 4 && p.output.ndim == 4,
                 "input, offset, weight and output must have 4 dimensions");
  checks.require(p.stride_h > 0 && p.stride_w > 0 && p.dilation_h > 0 && p.dilation_w > 0 && p.pad_h >= 0 &&
                     p.pad_w >= 0 && p.groups > 0 && p.offset_groups > 0,
                 "stride, dilation and groups must be positive, padding not negative");
  const int64_t n = p.input.size[0], c = p.input.size[1], o = p.weight.size[0];
  const int64_t kh = p.weight.size[2], kw = p.weight.size[3];
  checks.require(kh > 0 && kw > 0 && c > 0 && c % p.groups == 0 && o % p.groups == 0 && c % p.offset_groups == 0,
                 "groups must divide the channels");
  const int64_t oh = output_size(p.input.size[2], kh, p.stride_h, p.pad_h, p.dilation_h);
  const int64_t ow = output_size(p.input.size[3], kw, p.stride_w, p.pad_w, p.dilation_w);
  checks.require(oh > 0 && ow > 0, "the output would be empty");
  checks.require(p.input.size[2] < (int64_t{1} << 31) / (p.input.size[3] + 2) - 3,
                 "input planes of 2^31 pixels or more need backend=\"reference\"");
  const int64_t taps = p.offset_groups * kh * kw;
  checks.shape(p.weight, {o, c / p.groups, kh, kw}, "weight.shape[1] must be input.shape[1] / groups");
  checks.shape(p.offset, {n, 2 * taps, oh, ow}, "offset must be (N, 2*offset_groups*kh*kw, out_h, out_w)");
  checks.shape(p.output, {n, o, oh, ow}, "output must be (N, O, out_h, out_w)");
  if (p.mask) checks.shape(p.mask, {n, taps, oh, ow}, "mask must be (N, offset_groups*kh*kw, out_h, out_w)");
  if (p.bias) checks.shape(p.bias, {o}, "bias must be (O,)");
  if (p.grad_bias) checks.shape(p.grad_bias, {o}, "grad_bias must be (O,)");
  for (auto [grad, of] : {std::pair(&p.grad_input, &p.input), std::pair(&p.grad_offset, &p.offset),
                          std::pair(&p.grad_mask, &p.mask), std::pair(&p.grad_weight, &p.weight)}) {
    checks.gradient(*grad, *of);
  }
  const DType t = p.input.dtype;
  const DType coordinate = t == DType::f64 ? DType::f64 : DType::f32;
  checks.require(is_float(t) && p.weight.dtype == t && p.output.dtype == t && (!p.bias || p.bias.dtype == t) &&
                     (!p.grad_bias || p.grad_bias.dtype == t),
                 "input, weight, bias and output must share one floating-point dtype");
  checks.require((p.offset.dtype == t || p.offset.dtype == coordinate) &&
                     (!p.mask || p.mask.dtype == t || p.mask.dtype == coordinate),
                 "offset and mask must have input's dtype or float32");
}

// As many as the shapes say, for callers that pass 0.
void infer_groups(DeformConv2dParams& p) {
  checks.require(p.input.ndim == 4 && p.weight.ndim == 4 && p.offset.ndim == 4, "tensors must have 4 dimensions");
  const int64_t per_group = p.weight.size[1], taps = p.weight.size[2] * p.weight.size[3];
  checks.require(per_group > 0 && taps > 0, "weight must not be empty");
  p.groups = p.input.size[1] / per_group;
  p.offset_groups = p.offset.size[1] / (2 * taps);
}

DeformConv2dParams read(py::handle output, py::handle input, py::handle offset, py::handle weight, py::handle bias,
                        py::handle mask, int64_t stride_h, int64_t stride_w, int64_t pad_h, int64_t pad_w,
                        int64_t dilation_h, int64_t dilation_w, int64_t groups, int64_t offset_groups) {
  DeformConv2dParams p{stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups, offset_groups, {}, {}, {}, {},
                       {},       {},       {},    {},    {},         {},         {}};
  p.input = view_tensor(input, "input");
  p.offset = view_tensor(offset, "offset");
  p.mask = view_tensor(mask, "mask");
  p.weight = view_tensor(weight, "weight");
  p.bias = view_tensor(bias, "bias");
  p.output = view_tensor(output, "output");
  if (p.groups == 0) infer_groups(p);
  return p;
}

void forward(py::handle output, py::handle input, py::handle offset, py::handle weight, py::handle bias,
             py::handle mask, int64_t stride_h, int64_t stride_w, int64_t pad_h, int64_t pad_w, int64_t dilation_h,
             int64_t dilation_w, int64_t groups, int64_t offset_groups) {
  const DeformConv2dParams p = read(output, input, offset, weight, bias, mask, stride_h, stride_w, pad_h, pad_w,
                                    dilation_h, dilation_w, groups, offset_groups);
  check(p);
  py::gil_scoped_release nogil;
  FLEXOR_KERNELS(deform_conv2d_kernels).forward(p);
}

void backward(py::handle grad_output, py::handle input, py::handle offset, py::handle weight, py::handle mask,
              py::handle grad_input, py::handle grad_offset, py::handle grad_weight, py::handle grad_bias,
              py::handle grad_mask, int64_t stride_h, int64_t stride_w, int64_t pad_h, int64_t pad_w,
              int64_t dilation_h, int64_t dilation_w, int64_t groups, int64_t offset_groups) {
  DeformConv2dParams p = read(grad_output, input, offset, weight, py::none(), mask, stride_h, stride_w, pad_h, pad_w,
                              dilation_h, dilation_w, groups, offset_groups);
  p.grad_input = view_tensor(grad_input, "grad_input");
  p.grad_offset = view_tensor(grad_offset, "grad_offset");
  p.grad_weight = view_tensor(grad_weight, "grad_weight");
  p.grad_bias = view_tensor(grad_bias, "grad_bias");
  p.grad_mask = view_tensor(grad_mask, "grad_mask");
  check(p);
  py::gil_scoped_release nogil;
  FLEXOR_KERNELS(deform_conv2d_kernels).backward(p);
}

}  // namespace

void register_deform(py::module_& m) {
  m.def("deform_conv2d_forward", &forward);
  m.def("deform_conv2d_backward", &backward);
}

}  // namespace flexor
