// SPDX-License-Identifier: Apache-2.0
// Depth-wise correlation, forward and backward: tasks are planes, and each writes what nobody else does.
#include "core/tasks.h"
#include "match/depthwise.h"
#include "match/xcorr2d_depthwise.h"

namespace flexor::FLEXOR_ISA {
namespace {

PlaneGeometry geometry(const XcorrDepthwiseParams& p) {
  return {p.input.size[2], p.input.size[3], p.output.size[2], p.output.size[3], p.kernel.size[2], p.kernel.size[3],
          p.stride[0],     p.stride[1],     p.padding[0],     p.padding[1],     p.dilation[0],    p.dilation[1]};
}

// visit(plane's buffers, n, c), a few planes a task.
template <class T, class Visit>
void for_planes(const XcorrDepthwiseParams& p, const PlaneGeometry& g, Visit visit) {
  const int64_t channels = p.input.size[1], planes = p.input.size[0] * channels;
  const int64_t chunk = smaller<int64_t>(larger<int64_t>(planes / 64, 1), 8);
  parallel_for(ceil_div(planes, chunk), [&](int64_t task) {
    DepthwisePlane<T> plane(g);
    plane.use(thread_workspace(plane.workspace()));
    for (int64_t i = task * chunk; i < smaller((task + 1) * chunk, planes); ++i)
      visit(plane, i / channels, i % channels);
  });
}

template <class T>
void forward(const XcorrDepthwiseParams& p) {
  for_planes<T>(p, geometry(p), [&](DepthwisePlane<T>& plane, int64_t n, int64_t c) {
    plane.read_taps(p.kernel, n, c);
    plane.forward(p.input, p.output, n, c);
  });
}

template <class T>
void grad_input(const XcorrDepthwiseParams& p) {
  const PlaneGeometry g = geometry(p);
  const auto by_rows = [&](DepthwisePlane<T>& plane, int64_t n, int64_t c) {
    plane.read_taps(p.kernel, n, c);
    plane.grad_input(p.output, p.grad_input, n, c);
  };
  if (g.sy != 1 || g.sx != 1) return for_planes<T>(p, g, by_rows);
  for_planes<T>(p, g.transposed(), [&](DepthwisePlane<T>& plane, int64_t n, int64_t c) {
    plane.read_taps(p.kernel, n, c);
    if (plane.finite_taps()) {
      plane.reverse_taps();
      return plane.forward(p.output, p.grad_input, n, c);
    }
    DepthwisePlane<T> exact(g);  // such a tap must not meet the zeros around the gradient
    const SharedBuffer buffer(exact.workspace());
    exact.use(buffer.as<void>());
    by_rows(exact, n, c);
  });
}

template <class T>
void backward(const XcorrDepthwiseParams& p) {
  if (p.grad_kernel)
    for_planes<T>(p, geometry(p), [&](DepthwisePlane<T>& plane, int64_t n, int64_t c) {
      plane.grad_taps(p.input, p.output, n, c);
      plane.write_taps(p.grad_kernel, n, c);
    });
  if (p.grad_input && p.grad_input.numel() > 0) grad_input<T>(p);
}

}  // namespace

extern const XcorrDepthwiseKernels xcorr2d_depthwise_kernels{
    [](const XcorrDepthwiseParams& p) { p.input.dtype == DType::f64 ? forward<double>(p) : forward<float>(p); },
    [](const XcorrDepthwiseParams& p) { p.input.dtype == DType::f64 ? backward<double>(p) : backward<float>(p); }};

}  // namespace flexor::FLEXOR_ISA
