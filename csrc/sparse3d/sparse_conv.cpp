// SPDX-License-Identifier: Apache-2.0
#include "sparse3d/sparse_conv.h"

#include <pybind11/pybind11.h>

#include <cmath>

#include "core/bf16_dot.h"
#include "core/checks.h"
#include "core/tensor_view.h"
#include "sparse3d/read_map.h"

namespace py = pybind11;

namespace flexor {
namespace {

constexpr Checks checks{"sparse_conv"};

void check(const SparseConvParams& p) {
  checks.require(p.features.ndim == 2, "features must be (N, Ci)");
  const int64_t in = p.features.size[1], out = p.weight.size[0];
  checks.require(p.groups >= 1 && in % p.groups == 0 && out % p.groups == 0 && in > 0 && out > 0,
                 "groups must divide both numbers of channels");
  checks.require(p.weight.size[2] == in / p.groups, "weight must be (Co, K, Ci/groups)");
  checks.require(p.features.size[0] == p.map.n_in, "features must have as many rows as the map's input");
  checks.shape(p.output, {p.map.n_out, out}, "output must be (N_out, Co)");
  if (p.bias) checks.shape(p.bias, {out}, "bias must be (Co,)");
  if (p.grad_bias) checks.shape(p.grad_bias, {out}, "bias must be (Co,)");
  if (p.residual) checks.shape(p.residual, {p.map.n_out, out}, "residual must be (N_out, Co)");
  if (p.transposed)
    checks.require(p.transposed.n_out == p.map.n_in && p.transposed.n_in == p.map.n_out,
                   "transposed_map must be the map's other way");
  else if (p.grad_features)
    checks.require(p.map.n_out == p.map.n_in, "only a map between the same voxels is its own mirror image");
  checks.gradient(p.grad_features, p.features);
  checks.gradient(p.grad_weight, p.weight);
  const DType t = p.features.dtype;
  checks.require(is_float(t), "features must be floating-point");
  for (const TensorView* view : {&p.weight, &p.bias, &p.residual, &p.output, &p.grad_bias})
    checks.require(!*view || view->dtype == t, "features, weight, bias, residual and output must share one dtype");
}

bool takes_bf16_dot(const SparseConvParams& p) {
  return p.features.dtype == DType::bf16 && p.groups == 1 && active_bf16_dot();
}

SparseConvParams read(py::handle output, py::handle features, py::handle weight, py::handle map, int64_t groups) {
  SparseConvParams p{};
  p.output = view_tensor(output, "output");
  p.features = view_tensor(features, "features");
  p.weight = view_tensor(weight, "weight");
  checks.require(p.weight.ndim == 3 && p.weight.size[1] > 0, "weight must be (Co, K, Ci/groups)");
  p.map = read_map(map, p.weight.size[1], checks);
  p.groups = groups;
  return p;
}

void forward(py::handle output, py::handle features, py::handle weight, py::handle bias, py::handle residual,
             py::handle map, int64_t groups, double slope) {
  SparseConvParams p = read(output, features, weight, map, groups);
  p.bias = view_tensor(bias, "bias");
  p.residual = view_tensor(residual, "residual");
  p.activate = !std::isnan(slope);
  p.slope = slope;
  check(p);
  py::gil_scoped_release nogil;
#if FLEXOR_HAVE_avx512
  if (takes_bf16_dot(p)) return avx512_bf16::sparse_conv_bf16_kernels.forward(p);
#endif
  FLEXOR_KERNELS(sparse_conv_kernels).forward(p);
}

void backward(py::handle grad_output, py::handle features, py::handle weight, py::handle map, py::handle transposed,
              py::handle grad_features, py::handle grad_weight, py::handle grad_bias, int64_t groups) {
  SparseConvParams p = read(grad_output, features, weight, map, groups);
  if (py::len(transposed) > 0) p.transposed = read_map(transposed, p.weight.size[1], checks);
  p.grad_features = view_tensor(grad_features, "grad_features");
  p.grad_weight = view_tensor(grad_weight, "grad_weight");
  p.grad_bias = view_tensor(grad_bias, "grad_bias");
  check(p);
  py::gil_scoped_release nogil;
#if FLEXOR_HAVE_avx512
  if (p.grad_features && takes_bf16_dot(p)) {
    avx512_bf16::sparse_conv_bf16_kernels.input_gradient(p);
    p.grad_features = TensorView{};
  }
#endif
  FLEXOR_KERNELS(sparse_conv_kernels).backward(p);
}

}  // namespace

void register_sparse_conv(py::module_& m) {
  m.def("sparse_conv_forward", &forward);
  m.def("sparse_conv_backward", &backward);
}

}  // namespace flexor
