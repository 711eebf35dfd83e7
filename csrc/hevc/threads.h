// SPDX-License-Identifier: Apache-2.0
// Threads of the codec. Those of a decoder wait for each other, which OpenMP's do not promise to allow.
#pragma once
#include <atomic>
#include <system_error>
#include <thread>
#include <vector>

namespace flexor::hevc {

// Calls task(i) for i in 0 .. tasks - 1 on up to `threads` threads, the caller's among them. Tasks begin in order, so
// that one may wait for those before it. Tasks do not throw.
template <class F>
void run_tasks(int threads, int tasks, F&& task) {
  std::atomic<int> next{0};
  const auto work = [&] {
    for (int i; (i = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) task(i);
  };
  std::vector<std::thread> others;
  const int wanted = (threads < tasks ? threads : tasks) - 1;
  try {
    for (int i = 0; i < wanted; ++i) others.emplace_back(work);
  } catch (const std::system_error&) {
    // Fewer threads do the same.
  }
  work();
  for (std::thread& other : others) other.join();
}

}  // namespace flexor::hevc
