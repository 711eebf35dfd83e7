// SPDX-License-Identifier: Apache-2.0
// As much of CUDA C++ as the project's kernels use, on a CPU: every CUDA thread is a fiber, blocks run one after
// another.
//
// A fiber runs until it ends, meets a barrier or, if asked to, an atomic; then the next one does, lane by lane upwards,
// downwards or shuffled. A result that hangs on the order of threads differs between these. Barriers that threads of a
// block meet at different places are an error. Shared memory is filled with 0xCD before every block.
//
// Out of reach: races between blocks, the memory model, what a warp's lanes know of each other.
#pragma once
#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <utility>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __shared__ static __attribute__((section("shim_shared")))

struct ShimDim {
  unsigned x, y, z;
};
inline ShimDim threadIdx, blockIdx, blockDim, gridDim;

extern "C" unsigned char __start_shim_shared[] __attribute__((weak, visibility("hidden")));
extern "C" unsigned char __stop_shim_shared[] __attribute__((weak, visibility("hidden")));

namespace shim {

enum Order { upwards, downwards, shuffled };  // shuffled also changes fibers at atomics

constexpr size_t kStack = 128 << 10;

struct Fiber {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(kStack);
  bool done = false;
  int barrier = 0;  // the line that it waits at, 0 when it does not
};

class Block {
 public:
  using Kernel = void (*)(void**);

  // Runs one block; what went wrong, or nullptr.
  const char* run(Kernel kernel, void** args, Order order, std::mt19937& random) {
    kernel_ = kernel;
    args_ = args;
    yields_ = order == shuffled;
    const size_t threads = size_t{blockDim.x} * blockDim.y * blockDim.z;
    while (fibers_.size() < threads) fibers_.push_back(new Fiber);
    lanes_.resize(threads);
    for (size_t i = 0; i < threads; ++i) {
      start(*fibers_[i]);
      lanes_[i] = order == downwards ? threads - 1 - i : i;
    }
    for (;;) {
      if (order == shuffled) std::shuffle(lanes_.begin(), lanes_.end(), random);
      bool ran = false;
      for (const size_t lane : lanes_) {
        if (fibers_[lane]->done || fibers_[lane]->barrier != 0) continue;
        resume(lane);
        ran = true;
      }
      if (ran) continue;
      int line = 0;
      for (const size_t lane : lanes_) {
        Fiber& fiber = *fibers_[lane];
        if (fiber.done) continue;
        if (line != 0 && fiber.barrier != line) return "threads of a block wait at different barriers";
        line = fiber.barrier;
      }
      if (line == 0) return nullptr;
      for (const size_t lane : lanes_) fibers_[lane]->barrier = 0;
    }
  }

  void wait(int line) {
    current_->barrier = line;
    leave(false);
  }

  void yield() {
    if (yields_) leave(false);
  }

 private:
  static void enter() {
    Block& self = block();
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(nullptr, &self.main_stack_, &self.main_size_);
#endif
    self.kernel_(self.args_);
    self.current_->done = true;
    self.leave(true);
  }

  void start(Fiber& fiber) {
    fiber.done = false;
    fiber.barrier = 0;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
  }

  void resume(size_t lane) {
    current_ = fibers_[lane];
    const auto thread = static_cast<unsigned>(lane);
    threadIdx = {thread % blockDim.x, thread / blockDim.x % blockDim.y, thread / blockDim.x / blockDim.y};
#ifdef __SANITIZE_ADDRESS__
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, current_->stack.data(), kStack);
#endif
    swapcontext(&main_, &current_->context);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
  }

  void leave([[maybe_unused]] bool for_good) {
    const ShimDim thread = threadIdx;
#ifdef __SANITIZE_ADDRESS__
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(for_good ? nullptr : &fake, main_stack_, main_size_);
#endif
    swapcontext(&current_->context, &main_);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(fake, &main_stack_, &main_size_);
#endif
    threadIdx = thread;
  }

  Kernel kernel_ = nullptr;
  void** args_ = nullptr;
  bool yields_ = false;
  Fiber* current_ = nullptr;
  std::vector<Fiber*> fibers_;  // kept for the next block
  std::vector<size_t> lanes_;
  ucontext_t main_;
  const void* main_stack_ = nullptr;
  size_t main_size_ = 0;

 public:
  static Block& block() {
    static Block* const one = new Block;
    return *one;
  }
};

// Not the sanitizer's business: the space between shared arrays is written too.
__attribute__((no_sanitize("address", "undefined"), noinline)) inline void poison_shared() {
  for (volatile unsigned char* p = __start_shim_shared; p < __stop_shim_shared; ++p) *p = 0xCD;
}

inline const char* launch(Block::Kernel kernel, void** args, ShimDim grid, ShimDim block, Order order) {
  std::mt19937 random(grid.x * 31 + block.x);
  gridDim = grid;
  blockDim = block;
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  for (uint64_t i = 0; i < blocks; ++i) {
    const auto b = static_cast<unsigned>(order == downwards ? blocks - 1 - i : i);
    blockIdx = {b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y};
    poison_shared();
    if (const char* error = Block::block().run(kernel, args, order, random)) return error;
  }
  return nullptr;
}

template <class T>
T exchange(T* at, T value) {
  const T before = *at;
  *at = value;
  return before;
}

// A kernel by its name, its parameters' sizes, and how to call it with an array of pointers to them.
struct Entry {
  const char* name;
  std::vector<size_t> sizes;
  Block::Kernel run;
};

template <class... A>
std::vector<size_t> sizes_of(void (*)(A...)) {
  return {sizeof(A)...};
}
template <class... A, size_t... I>
void call(void (*kernel)(A...), void** args, std::index_sequence<I...>) {
  kernel(*static_cast<A*>(args[I])...);
}
template <class... A>
void call(void (*kernel)(A...), void** args) {
  call(kernel, args, std::index_sequence_for<A...>());
}

}  // namespace shim

#define SHIM_ENTRY(kernel) {#kernel, shim::sizes_of(&kernel), [](void** args) { shim::call(&kernel, args); }}

#define __syncthreads() shim::Block::block().wait(__LINE__)

inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }

template <class T>
T atomicCAS(T* at, T compare, T value) {
  shim::Block::block().yield();
  return *at == compare ? shim::exchange(at, value) : *at;
}
template <class T>
T atomicOr(T* at, T value) {
  shim::Block::block().yield();
  return shim::exchange(at, static_cast<T>(*at | value));
}
template <class T>
T atomicMin(T* at, T value) {
  shim::Block::block().yield();
  return shim::exchange(at, value < *at ? value : *at);
}
template <class T>
T atomicAdd(T* at, T value) {
  shim::Block::block().yield();
  return shim::exchange(at, static_cast<T>(*at + value));
}
