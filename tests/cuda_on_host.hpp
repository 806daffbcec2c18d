// Stands in for a CUDA device, one thread after the other: enough for a kernel without shared
// memory. Compile with -ffp-contract=off, so that products and sums round as they are written.
#pragma once
#include <cmath>
#include <cstring>

struct place { int x, y, z; };
static thread_local place blockIdx, threadIdx, blockDim;

#define CARCODEC_HOST
#define __global__
#define __device__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __align__(n) alignas(n)

static inline float from_half(unsigned short bits) {
    _Float16 value;
    std::memcpy(&value, &bits, sizeof value);
    return static_cast<float>(value);
}
static inline unsigned short to_half(float value) {
    const _Float16 half = static_cast<_Float16>(value);
    unsigned short bits;
    std::memcpy(&bits, &half, sizeof bits);
    return bits;
}
static inline float atomicAdd(float *at, float value) {
    const float old = *at;
    *at += value;
    return old;
}

// Calls `kernel` for every thread of every block.
template <typename Kernel, typename... Arguments>
static void launch(Kernel kernel, const int *grid, const int *block, Arguments... arguments) {
    blockDim = {block[0], block[1], block[2]};
    for (int bz = 0; bz < grid[2]; ++bz)
        for (int by = 0; by < grid[1]; ++by)
            for (int bx = 0; bx < grid[0]; ++bx)
                for (int ty = 0; ty < block[1]; ++ty)
                    for (int tx = 0; tx < block[0]; ++tx) {
                        blockIdx = {bx, by, bz};
                        threadIdx = {tx, ty, 0};
                        kernel(arguments...);
                    }
}
