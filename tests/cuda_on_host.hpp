// Stands in for a CUDA device, one thread after the other: a block's threads run up to its barrier,
// then all of them again and past it, which is enough for kernels that fill shared memory first and
// read it then. Compile with -ffp-contract=off, so that products and sums round as they are written.
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
#define __launch_bounds__(n)
#define __shared__ static
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
static inline float power_of_2(float x) { return std::exp2(x); }
static inline float reciprocal(float x) { return 1 / x; }
static inline float sum_rounded_down(float a, float b) {
    return static_cast<float>(std::floor(static_cast<double>(a)) + b);
}
static inline int whole(int x) { return x; }
static inline float low(unsigned word) { return 8388608.0f + (word & 0xffff); }
static inline float high(unsigned word) { return 8388608.0f + (word >> 16); }
static inline int bits(float x) {
    int found;
    std::memcpy(&found, &x, sizeof found);
    return found;
}
static inline float atomicAdd(float *at, float value) {
    const float old = *at;
    *at += value;
    return old;
}

static thread_local bool before_the_barrier, a_barrier;
#define __syncthreads()                    \
    do {                                   \
        a_barrier = true;                  \
        if (before_the_barrier) return;    \
    } while (0)

// Calls `kernel` for every thread of every block.
template <typename Kernel, typename... Arguments>
static void launch(Kernel kernel, const int *grid, const int *block, Arguments... arguments) {
    blockDim = {block[0], block[1], block[2]};
    for (int bz = 0; bz < grid[2]; ++bz)
        for (int by = 0; by < grid[1]; ++by)
            for (int bx = 0; bx < grid[0]; ++bx)
                for (int run = 0; run < 2; ++run) {
                    if (run == 0) a_barrier = false;
                    else if (!a_barrier) continue;
                    before_the_barrier = run == 0;
                    for (int ty = 0; ty < block[1]; ++ty)
                        for (int tx = 0; tx < block[0]; ++tx) {
                            blockIdx = {bx, by, bz};
                            threadIdx = {tx, ty, 0};
                            kernel(arguments...);
                        }
                }
}
