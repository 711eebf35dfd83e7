// SPDX-License-Identifier: Apache-2.0
// Threads of the codec. Those of a decoder wait for each other, which OpenMP's do not promise to allow.
#pragma once
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace flexor::hevc {

// Calls task(i) for i in 0 .. tasks - 1 on up to `threads` threads, the caller's among them. Tasks begin in order, so
// that one may wait for those before it; such a task must not throw. What another throws comes out when all have ended.
template <class F>
void run_tasks(int threads, int tasks, F&& task) {
  std::atomic<int> next{0};
  std::exception_ptr failure;
  std::mutex failure_lock;
  const auto work = [&] {
    try {
      for (int i; (i = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) task(i);
    } catch (...) {
      const std::lock_guard<std::mutex> guard(failure_lock);
      failure = std::current_exception();
    }
  };
  std::vector<std::thread> others;
  const int wanted = (threads < tasks ? threads : tasks) - 1;
  try {
    for (int i = 0; i < wanted; ++i) others.emplace_back(work);
  } catch (const std::exception&) {
    // Fewer threads do the same.
  }
  work();
  for (std::thread& other : others) other.join();
  if (failure != nullptr) std::rethrow_exception(failure);
}

}  // namespace flexor::hevc
