// SPDX-License-Identifier: Apache-2.0
#include "core/parallel.h"

#include <omp.h>

#include <atomic>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <new>

namespace flexor {

void parallel_for_raw(int64_t tasks, Task task, void* context) {
  if (tasks <= 1 || omp_get_max_threads() == 1 || omp_in_parallel()) {
    for (int64_t i = 0; i < tasks; ++i) task(context, i);
    return;
  }
  const int64_t wanted = omp_get_max_threads();
  const int threads = static_cast<int>(tasks < wanted ? tasks : wanted);
  std::atomic<int64_t> next{0};
  std::exception_ptr error;
  std::mutex error_lock;
#pragma omp parallel num_threads(threads)
  {
    try {
      for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) task(context, i);
    } catch (...) {
      std::lock_guard<std::mutex> guard(error_lock);
      error = std::current_exception();
      next.store(tasks, std::memory_order_relaxed);
    }
  }
  if (error) std::rethrow_exception(error);
}

namespace {
struct Workspace {
  void* data = nullptr;
  size_t bytes = 0;
  ~Workspace() { std::free(data); }
};
thread_local Workspace workspace;
}  // namespace

void* allocate(size_t bytes) {
  void* data = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
  if (data == nullptr) throw std::bad_alloc();
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

int max_threads() { return omp_get_max_threads(); }

}  // namespace flexor
