// SPDX-License-Identifier: Apache-2.0
// Tasks on torch's own OpenMP threads. What a task computes depends on its number alone, never on the
// thread or the number of threads: results are the same bits for any thread count.
#pragma once
#include <cstddef>
#include <cstdint>

namespace flexor {

using Task = void (*)(void* context, int64_t task);

void parallel_for_raw(int64_t tasks, Task task, void* context);

// A buffer of this thread, 64-byte aligned, kept between calls, not zeroed. One user at a time a thread.
void* thread_workspace(size_t bytes);

[[noreturn]] void fail(const char* message);  // throws std::invalid_argument; tasks may

int max_threads();          // 1 where no OpenMP runtime was found
const char* openmp_path();  // of the runtime in use, or empty

void* allocate(size_t bytes);  // 64-byte aligned; throws std::bad_alloc
void release(void* data);

// A buffer of one call, shared by its threads.
class SharedBuffer {
 public:
  explicit SharedBuffer(size_t bytes) : data_(bytes == 0 ? nullptr : allocate(bytes)) {}
  ~SharedBuffer() { release(data_); }
  SharedBuffer(const SharedBuffer&) = delete;
  SharedBuffer& operator=(const SharedBuffer&) = delete;
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_;
};

}  // namespace flexor
