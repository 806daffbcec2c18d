// Stands in for a CUDA device, one block after the other: its threads are fibers, which take turns
// where they wait for each other. What is copied in the background arrives when it is waited for,
// and shared memory holds no numbers before. Compile with -ffp-contract=off, so that products and
// sums round as they are written.
#pragma once
#include <csetjmp>
#include <cmath>
#include <cstring>
#include <functional>
#include <ucontext.h>
#include <vector>

struct place { int x, y, z; };
static thread_local place blockIdx, threadIdx, blockDim, gridDim;

#define CARCODEC_HOST
#define __global__
#define __device__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)
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

// A block's threads are fibers: each runs until it has to wait for others.
struct fiber {
    jmp_buf at;
    ucontext_t start;
    std::vector<char> stack;
    place thread;
    bool begun, done;
    int turn;  // of what its warp does together
    std::vector<std::function<void()>> on_the_way;
};
struct barrier { int waiting, generation; };
struct warp {
    barrier all;
    const void *row[2][32];
    float a[2][16][16], b[2][16][8];
};
static std::vector<fiber> fibers;
static std::vector<warp> warps;
static barrier block_barrier;
static fiber *current;
static jmp_buf scheduler;
static std::function<void()> body;
alignas(16) static unsigned char shared_memory[227 << 10];

static void yield() {
    fiber *self = current;
    if (!_setjmp(self->at)) _longjmp(scheduler, 1);
    current = self;
    threadIdx = self->thread;
}
static void wait(barrier &b, int all) {
    const int generation = b.generation;
    if (++b.waiting == all) {
        b.waiting = 0;
        ++b.generation;
    } else {
        while (b.generation == generation) yield();
    }
}
static void run_fiber() {
    body();
    current->done = true;
    _longjmp(scheduler, 1);
}
static void run_block(int threads) {
    if (fibers.size() < static_cast<size_t>(threads)) fibers.resize(threads);
    warps.assign((threads + 31) / 32, warp{});
    block_barrier = {};
    std::memset(shared_memory, 0xff, sizeof shared_memory);  // no numbers
    for (int i = 0; i < threads; ++i) {
        fiber &f = fibers[i];
        f.stack.resize(64 << 10);
        f.thread = {i % blockDim.x, i / blockDim.x, 0};
        f.begun = f.done = false, f.turn = 0;
    }
    for (bool running = true; running;) {
        running = false;
        for (int i = 0; i < threads; ++i) {
            if (fibers[i].done) continue;
            running = true;
            if (_setjmp(scheduler)) continue;
            current = &fibers[i];
            threadIdx = current->thread;
            if (current->begun) _longjmp(current->at, 1);
            current->begun = true;
            getcontext(&current->start);
            current->start.uc_stack.ss_sp = current->stack.data();
            current->start.uc_stack.ss_size = current->stack.size();
            current->start.uc_link = nullptr;
            makecontext(&current->start, run_fiber, 0);
            setcontext(&current->start);
        }
    }
}
static void __syncthreads() { wait(block_barrier, blockDim.x * blockDim.y); }

// What a warp does together: its 32 threads name their share, and all wait for each other.
struct together {
    warp &own;
    int side, lane;
    together() : own(warps[threadIdx.x / 32]), side(current->turn++ & 1), lane(threadIdx.x % 32) {}
    void now() { wait(own.all, 32); }
};
#define SHARED(NAME) eight *const NAME = reinterpret_cast<eight *>(shared_memory)

template <typename Eight> static void bring(Eight *to, const Eight *from, bool there) {
    // as late as CUDA may do it
    current->on_the_way.push_back([=] { *to = there ? *from : Eight{}; });
}
static void brought() {
    for (auto &copy : current->on_the_way) copy();
    current->on_the_way.clear();
}
template <typename Eight> static void read(Eight &found, const Eight *from) { found = *from; }
template <typename Words> static void write(Words *to, const Words &from) { *to = from; }
// How often rows that a device reads at once lay on the same banks of its shared memory.
static int conflicts;
template <typename Eight> static void rows_of_16(unsigned (&found)[4], const Eight *row) {
    together t;
    t.own.row[t.side][t.lane] = row;
    t.now();
    if (t.lane % 8 == 0) {
        unsigned banks = 0;
        for (int i = 0; i < 8; ++i)
            banks |= 1u << reinterpret_cast<size_t>(t.own.row[t.side][t.lane + i]) / 16 % 8;
        conflicts += banks != 0xff;
    }
    for (int m = 0; m < 4; ++m) {
        const void *from = t.own.row[t.side][8 * m + t.lane / 4];
        found[m] = static_cast<const Eight *>(from)->word[t.lane % 4];
    }
}
static float low_half(unsigned word) { return from_half(word & 0xffff); }
static float high_half(unsigned word) { return from_half(word >> 16); }
static unsigned two_halves(float low, float high) {
    return to_half(low) | static_cast<unsigned>(to_half(high)) << 16;
}
static void multiply(float (&sum)[4], const unsigned (&a)[4], unsigned low, unsigned high) {
    together t;
    auto &left = t.own.a[t.side];
    auto &right = t.own.b[t.side];
    const int g = t.lane / 4, q = t.lane % 4 * 2;
    for (int m = 0; m < 4; ++m) {
        left[g + m % 2 * 8][q + m / 2 * 8] = low_half(a[m]);
        left[g + m % 2 * 8][q + m / 2 * 8 + 1] = high_half(a[m]);
    }
    right[q][g] = low_half(low), right[q + 1][g] = high_half(low);
    right[q + 8][g] = low_half(high), right[q + 9][g] = high_half(high);
    t.now();
    for (int m = 0; m < 4; ++m)
        for (int k = 0; k < 16; ++k) sum[m] += left[g + m / 2 * 8][k] * right[k][q + m % 2];
}

// Calls `kernel` for every thread of every block.
template <typename Kernel, typename... Arguments>
static void launch(Kernel kernel, const int *grid, const int *block, Arguments... arguments) {
    blockDim = {block[0], block[1], block[2]};
    gridDim = {grid[0], grid[1], grid[2]};
    body = [=] { kernel(arguments...); };
    for (int bz = 0; bz < grid[2]; ++bz)
        for (int by = 0; by < grid[1]; ++by)
            for (int bx = 0; bx < grid[0]; ++bx) {
                blockIdx = {bx, by, bz};
                run_block(block[0] * block[1]);
            }
}
