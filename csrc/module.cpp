// SPDX-License-Identifier: Apache-2.0
// Table of contents of flexor._C.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdlib>

#include "core/cpu.h"
#include "core/fma_ceiling.h"
#include "core/parallel.h"

namespace py = pybind11;

namespace flexor {
void register_conv3x3(py::module_& m);
void register_deform(py::module_& m);
void register_grid(py::module_& m);
void register_hevc(py::module_& m);
void register_hevc_encoder(py::module_& m);
void register_hevc_kernels(py::module_& m);
void register_intra_predict(py::module_& m);
void register_intra_search(py::module_& m);
void register_odconv2d(py::module_& m);
void register_sparse_conv(py::module_& m);
void register_sparse_index(py::module_& m);
void register_sparse_pool(py::module_& m);
void register_warp(py::module_& m);
void register_xcorr2d(py::module_& m);
void register_xcorr2d_depthwise(py::module_& m);
}  // namespace flexor

PYBIND11_MODULE(_C, m) {
  using namespace flexor;
  if (const char* forced = std::getenv("FLEXOR_CPU"); forced != nullptr && *forced != '\0') set_active_isa(forced);

  m.def("available_isas", &available_isas);
  m.def("active_isa", [] { return isa_name(active_isa()); });
  m.def("set_isa", &set_active_isa);
  m.def("cpu_features", &cpu_features);
  m.def("max_threads", &max_threads);
  m.def("fma_ceiling", &fma_ceiling, py::call_guard<py::gil_scoped_release>());
  m.def("build_info", [] {
    py::dict info;
    info["version"] = FLEXOR_VERSION;
    info["compiler"] = "GCC " __VERSION__;
    info["openmp"] = openmp_path();
    return info;
  });
  register_conv3x3(m);
  register_deform(m);
  register_grid(m);
  register_hevc(m);
  register_hevc_encoder(m);
  register_hevc_kernels(m);
  register_intra_predict(m);
  register_intra_search(m);
  register_odconv2d(m);
  register_sparse_conv(m);
  register_sparse_index(m);
  register_sparse_pool(m);
  register_warp(m);
  register_xcorr2d(m);
  register_xcorr2d_depthwise(m);
}
