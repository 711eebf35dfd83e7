// SPDX-License-Identifier: Apache-2.0
// Every CUDA C++ kernel of the project as a CPU library, and kernels with bugs that the shim must catch.
#include <algorithm>

#include "fiber_shim.h"
#include "intra/intra_predict.cu"
#include "intra/intra_search.cu"
#include "sparse3d/sparse_index.cu"

extern "C" {

// A block's values in reverse, through shared memory; with the barrier left out, or where only some lanes come by.
__global__ void shim_reverse(const int* from, int* to, int barriers) {
  __shared__ int values[64];
  const int i = static_cast<int>(threadIdx.x), n = static_cast<int>(blockDim.x);
  const int base = static_cast<int>(blockIdx.x) * n;
  values[i] = from[base + i];
  if (barriers == 1) __syncthreads();
  if (barriers == 2) {
    if (i % 2 != 0) __syncthreads();
    else __syncthreads();
  }
  to[base + i] = values[n - 1 - i];
}

// Counts without an atomic: wrong once threads take turns between the load and the store.
__global__ void shim_count(unsigned* count, unsigned* other) {
  const unsigned before = *count;
  atomicOr(other, 1u << threadIdx.x);
  *count = before + 1;
}

__global__ void shim_unset(int* to) {
  __shared__ int value[4];
  to[threadIdx.x] = value[threadIdx.x];
}
}

static const std::vector<shim::Entry> kKernels = {
    SHIM_ENTRY(intra_predict_u8),
    SHIM_ENTRY(intra_predict_u16),
    SHIM_ENTRY(intra_search),
    SHIM_ENTRY(sparse_voxel_blocks_i32),
    SHIM_ENTRY(sparse_voxel_blocks_i64),
    SHIM_ENTRY(sparse_block_codes),
    SHIM_ENTRY(sparse_collect_blocks),
    SHIM_ENTRY(sparse_voxel_ranks),
    SHIM_ENTRY(sparse_reached_blocks),
    SHIM_ENTRY(sparse_write_voxels_i32),
    SHIM_ENTRY(sparse_write_voxels_i64),
    SHIM_ENTRY(sparse_neighbours),
    SHIM_ENTRY(shim_reverse),
    SHIM_ENTRY(shim_count),
    SHIM_ENTRY(shim_unset),
};

// What the test's stand-in for CuPy calls, by ctypes.
extern "C" {

const shim::Entry* shim_find(const char* name) {
  for (const shim::Entry& entry : kKernels)
    if (std::strcmp(entry.name, name) == 0) return &entry;
  return nullptr;
}
size_t shim_parameters(const shim::Entry* entry) { return entry->sizes.size(); }
size_t shim_size(const shim::Entry* entry, size_t parameter) { return entry->sizes[parameter]; }
const char* shim_launch(const shim::Entry* entry, void** args, const unsigned* grid, const unsigned* block, int order) {
  return shim::launch(entry->run, args, {grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]},
                      static_cast<shim::Order>(order));
}
}
