// SPDX-License-Identifier: Apache-2.0
#include "sparse3d/conv_tiles.h"
#include "sparse3d/sparse_conv_kernels.h"

namespace flexor::FLEXOR_ISA {
namespace {

template <class T>
void forward(const SparseConvParams& p) {
  const PairShape<T> shape(p.groups, p.features.size[1], p.weight.size[0]);
  const PackedWeight<T> weight(p.weight, shape, false, false);
  const bool in_order = is_identity(p.map.in_order, p.map.n_in), out_order = is_identity(p.map.out_order, p.map.n_out);
  const RankRows<T> features(p.features, p.map.in_order, in_order, shape.depthwise() ? shape.row() : 0);
  const TileProduct<Plain<T>> product(p.map, features, weight.data(), shape);
  ConvTiles<Plain<T>>{
      p.map, shape, product, p.output, &p.bias, &p.residual, out_order, p.activate, static_cast<T>(p.slope)}
      .run();
}

}  // namespace

void sparse_conv_forward(const SparseConvParams& p) {
  if (p.features.dtype == DType::f64) forward<double>(p);
  else forward<float>(p);
}

extern const SparseConvKernels sparse_conv_kernels{&sparse_conv_forward, &sparse_conv_backward};

}  // namespace flexor::FLEXOR_ISA
