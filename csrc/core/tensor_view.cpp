// SPDX-License-Identifier: Apache-2.0
#include "core/tensor_view.h"

#include <cstring>

namespace py = pybind11;

namespace flexor {
namespace {

// The part of DLPack 1.x's ABI that is read here (github.com/dmlc/dlpack, dlpack.h).
struct DLDevice {
  int32_t type, id;
};
struct DLDataType {
  uint8_t code, bits;
  uint16_t lanes;
};
struct DLTensor {
  void* data;
  DLDevice device;
  int32_t ndim;
  DLDataType dtype;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};
struct DLPackVersion {
  uint32_t major, minor;
};
struct DLPackExchangeAPI {
  DLPackVersion version;
  DLPackExchangeAPI* previous;
  void* managed_tensor_allocator;
  void* managed_tensor_from_py_object;
  void* managed_tensor_to_py_object;
  int (*dltensor_from_py_object)(void*, DLTensor*);
  void* current_work_stream;
};
constexpr int kDLCPU = 1;
enum DLCode : uint8_t { kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4, kBool = 6 };

const DLPackExchangeAPI* exchange_api(PyTypeObject* type) {
  static PyTypeObject* cached_type = nullptr;  // guarded by the GIL
  static const DLPackExchangeAPI* cached = nullptr;
  if (type == cached_type) return cached;
  const DLPackExchangeAPI* api = nullptr;
  PyObject* capsule = PyObject_GetAttrString(reinterpret_cast<PyObject*>(type), "__dlpack_c_exchange_api__");
  if (capsule != nullptr) {
    api = static_cast<const DLPackExchangeAPI*>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
    Py_DECREF(capsule);
  }
  PyErr_Clear();
  while (api != nullptr && api->version.major != 1) api = api->previous;
  if (api != nullptr && api->dltensor_from_py_object == nullptr) api = nullptr;
  Py_INCREF(type);  // kept for ever: a handful of types in a process
  cached_type = type;
  cached = api;
  return api;
}

[[noreturn]] void fail(const char* name, const std::string& what) {
  throw py::type_error(std::string(name) + " must be a CPU tensor, got " + what);
}

bool dtype_from_dlpack(DLDataType type, DType* out) {
  if (type.lanes != 1) return false;
  switch (type.code) {
    case kFloat:
      *out = type.bits == 64 ? DType::f64 : type.bits == 32 ? DType::f32 : DType::f16;
      return type.bits >= 16;
    case kBfloat: *out = DType::bf16; return type.bits == 16;
    case kInt: *out = type.bits == 64 ? DType::i64 : type.bits == 32 ? DType::i32 : DType::i16; return type.bits >= 16;
    case kUInt: *out = type.bits == 8 ? DType::u8 : DType::u16; return type.bits <= 16;
    case kBool: *out = DType::b8; return true;
    default: return false;
  }
}

struct DTypeName {
  const char* name;
  DType dtype;
};
constexpr DTypeName kDTypeNames[] = {{"float32", DType::f32},   {"float64", DType::f64}, {"float16", DType::f16},
                                     {"bfloat16", DType::bf16}, {"uint8", DType::u8},    {"int16", DType::i16},
                                     {"uint16", DType::u16},    {"int32", DType::i32},   {"int64", DType::i64},
                                     {"bool", DType::b8}};

TensorView from_dltensor(const DLTensor& t, const char* name) {
  TensorView v;
  if (t.device.type != kDLCPU) fail(name, "a tensor on another device");
  if (!dtype_from_dlpack(t.dtype, &v.dtype)) fail(name, "a dtype that no kernel takes");
  if (t.ndim < 1 || t.ndim > TensorView::kMaxDims) fail(name, std::to_string(t.ndim) + " dimensions");
  v.data = static_cast<char*>(t.data) + t.byte_offset;
  v.ndim = t.ndim;
  int64_t running = 1;
  for (int d = t.ndim - 1; d >= 0; --d) {
    v.size[d] = t.shape[d];
    v.stride[d] = t.strides != nullptr ? t.strides[d] : running;
    running *= t.shape[d];
  }
  return v;
}

DType dtype_from_text(std::string text, const char* name) {
  if (text.rfind("torch.", 0) == 0) text = text.substr(6);
  for (const DTypeName& entry : kDTypeNames)
    if (text == entry.name) return entry.dtype;
  fail(name, "dtype " + text);
}

// Older torch, and NumPy: slower, through attributes.
TensorView from_attributes(py::handle object, const char* name) {
  TensorView v;
  if (!py::hasattr(object, "shape") || !py::hasattr(object, "dtype"))
    fail(name, std::string(Py_TYPE(object.ptr())->tp_name));
  const bool torch_like = py::hasattr(object, "data_ptr");
  v.dtype = dtype_from_text(py::str(object.attr("dtype")), name);
  py::tuple shape = object.attr("shape"), strides;
  int64_t unit = 1;
  if (torch_like) {
    if (py::str(object.attr("device").attr("type")).cast<std::string>() != "cpu")
      fail(name, "a tensor on another device");
    strides = object.attr("stride")();
    v.data = reinterpret_cast<void*>(object.attr("data_ptr")().cast<uintptr_t>());
  } else {
    strides = object.attr("strides");
    unit = item_size(v.dtype);
    py::tuple data = object.attr("__array_interface__")["data"];
    v.data = reinterpret_cast<void*>(data[0].cast<uintptr_t>());
  }
  v.ndim = static_cast<int>(shape.size());
  if (v.ndim < 1 || v.ndim > TensorView::kMaxDims) fail(name, std::to_string(v.ndim) + " dimensions");
  for (int d = 0; d < v.ndim; ++d) {
    v.size[d] = shape[d].cast<int64_t>();
    const int64_t stride = strides[d].cast<int64_t>();
    if (stride % unit != 0) fail(name, "a stride that is no whole number of elements");
    v.stride[d] = stride / unit;
  }
  return v;
}

}  // namespace

std::string describe(const TensorView& view) {
  std::string text;
  for (const DTypeName& entry : kDTypeNames)
    if (entry.dtype == view.dtype) text = entry.name;
  text += " (";
  for (int d = 0; d < view.ndim; ++d) text += (d ? ", " : "") + std::to_string(view.size[d]);
  return text + ")";
}

TensorView view_tensor(py::handle object, const char* name) {
  if (object.is_none()) return {};
  const DLPackExchangeAPI* api = exchange_api(Py_TYPE(object.ptr()));
  if (api == nullptr) return from_attributes(object, name);
  DLTensor t;
  if (api->dltensor_from_py_object(object.ptr(), &t) != 0) throw py::error_already_set();
  return from_dltensor(t, name);
}

}  // namespace flexor
