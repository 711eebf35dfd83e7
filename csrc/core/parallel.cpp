// SPDX-License-Identifier: Apache-2.0
#include "core/parallel.h"

#include <dlfcn.h>
#include <link.h>
#include <sys/mman.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>

namespace flexor {
namespace {

// The OpenMP runtime is the one torch has loaded, under whatever name its wheel gives it, called through
// the entry points that every runtime exports for GCC's code. Linking to a libgomp.so.1 would be a second
// runtime beside some of torch's wheels, and two of them fight over the cores.
struct OpenMp {
  int (*max_threads)() = nullptr;
  int (*in_parallel)() = nullptr;
  void (*parallel)(void (*)(void*), void*, unsigned, unsigned) = nullptr;
  std::string path;
};

int find_runtime(dl_phdr_info* info, size_t, void* found) {
  const char* slash = std::strrchr(info->dlpi_name, '/');
  const char* name = slash == nullptr ? info->dlpi_name : slash + 1;
  for (const char* runtime : {"libgomp", "libiomp5", "libomp"})
    if (std::strncmp(name, runtime, std::strlen(runtime)) == 0) {
      *static_cast<std::string*>(found) = info->dlpi_name;
      return 1;
    }
  return 0;
}

template <class F>
void resolve(void* library, const char* name, F* function) {
  *function = reinterpret_cast<F>(dlsym(library, name));
}

OpenMp load_openmp() {
  OpenMp omp;
  dl_iterate_phdr(&find_runtime, &omp.path);
  void* library = dlopen(omp.path.empty() ? "libgomp.so.1" : omp.path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return {};
  if (omp.path.empty()) omp.path = "libgomp.so.1";
  resolve(library, "omp_get_max_threads", &omp.max_threads);
  resolve(library, "omp_in_parallel", &omp.in_parallel);
  resolve(library, "GOMP_parallel", &omp.parallel);
  const bool complete = omp.max_threads != nullptr && omp.in_parallel != nullptr && omp.parallel != nullptr;
  return complete ? omp : OpenMp{};
}

const OpenMp& openmp() {
  static const OpenMp omp = load_openmp();
  return omp;
}

struct Region {
  int64_t tasks;
  Task task;
  void* context;
  std::atomic<int64_t> next{0};
  std::exception_ptr error;
  std::mutex error_lock;
};

void run_region(void* data) {
  Region& region = *static_cast<Region*>(data);
  try {
    for (int64_t i; (i = region.next.fetch_add(1, std::memory_order_relaxed)) < region.tasks;)
      region.task(region.context, i);
  } catch (...) {
    const std::lock_guard<std::mutex> guard(region.error_lock);
    region.error = std::current_exception();
    region.next.store(region.tasks, std::memory_order_relaxed);
  }
}

}  // namespace

void parallel_for_raw(int64_t tasks, Task task, void* context) {
  const int64_t wanted = tasks <= 1 ? 1 : max_threads();
  if (wanted == 1 || openmp().in_parallel()) {
    for (int64_t i = 0; i < tasks; ++i) task(context, i);
    return;
  }
  Region region{tasks, task, context, {}, {}, {}};
  openmp().parallel(&run_region, &region, static_cast<unsigned>(tasks < wanted ? tasks : wanted), 0);
  if (region.error) std::rethrow_exception(region.error);
}

int max_threads() { return openmp().max_threads == nullptr ? 1 : openmp().max_threads(); }

const char* openmp_path() { return openmp().path.c_str(); }

namespace {
struct Workspace {
  void* data = nullptr;
  size_t bytes = 0;
  ~Workspace() { std::free(data); }
};
thread_local Workspace workspace;
}  // namespace

void fail(const char* message) { throw std::invalid_argument(message); }

// Fresh memory costs a fault a page, which is more than a kernel takes to fill it: large buffers ask for large pages.
void* allocate(size_t bytes) {
  constexpr size_t kLargePage = size_t{2} << 20;
  const size_t unit = bytes < kLargePage / 2 ? 64 : kLargePage;
  if (bytes > SIZE_MAX - unit) throw std::bad_alloc();
  const size_t rounded = (bytes + unit - 1) / unit * unit;
  void* data = std::aligned_alloc(unit, rounded);
  if (data == nullptr) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  if (unit == kLargePage) madvise(data, rounded, MADV_HUGEPAGE);
#endif
  return data;
}

void release(void* data) { std::free(data); }

void* thread_workspace(size_t bytes) {
  if (bytes > workspace.bytes) {
    std::free(workspace.data);
    workspace.data = nullptr;
    workspace.bytes = 0;
    workspace.data = allocate(bytes);
    workspace.bytes = bytes;
  }
  return workspace.data;
}

}  // namespace flexor
