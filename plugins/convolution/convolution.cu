// A 3×3 convolution of as many features as it takes, in half precision on tensor cores: what the
// residual blocks of EDSR consist of, with what surrounds it there.
//
// Features are (n, h, w, C) half, what lies around them is 0. As a product of matrices: 16 pixels
// of a row by 16 of the 9 C features around them, times C of the result, summed in float. A block
// of threads keeps all weights in shared memory and takes one tile of pixels after the other.
//
// `weights` come in the order of :func:`carcodec.plugins.convolution.places`, `bias` is float, C.
// Without `residual` the result is max(0, sum + bias), with it sum + bias + residual; `result` may
// be the same memory. No headers are needed; on a CPU tests/cuda_on_host.hpp stands in for the
// device.

typedef unsigned short half_bits;
typedef long long index_t;

struct __align__(16) eight { unsigned word[4]; };  // halves
struct __align__(8) four { unsigned word[2]; };

#ifndef CARCODEC_HOST
// 16 bytes to shared memory, without waiting; zeros where they are not `there`.
static __device__ __forceinline__ void bring(eight *to, const eight *from, bool there) {
    const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(to));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from),
                 "r"(there ? 16 : 0));
}
static __device__ __forceinline__ void brought() {
    asm volatile("cp.async.wait_all;" ::: "memory");
}
// 16 rows of 16 halves, as `multiply` takes them: lanes 0 to 15 name the rows' first eight,
// the others their second.
static __device__ __forceinline__ void rows_of_16(unsigned (&found)[4], const eight *row) {
    const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(found[0]), "=r"(found[1]), "=r"(found[2]), "=r"(found[3])
                 : "r"(at));
}
// A load that stays where it is: the compiler moves others ahead until registers run out.
static __device__ __forceinline__ void read(eight &found, const eight *from) {
    const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(from));
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(found.word[0]), "=r"(found.word[1]), "=r"(found.word[2]),
                   "=r"(found.word[3])
                 : "r"(at));
}
// A store in one piece: the compiler takes some apart.
static __device__ __forceinline__ void write(eight *to, const eight &from) {
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(from.word[0]),
                 "r"(from.word[1]), "r"(from.word[2]), "r"(from.word[3])
                 : "memory");
}
static __device__ __forceinline__ void write(four *to, const four &from) {
    asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(to), "r"(from.word[0]),
                 "r"(from.word[1])
                 : "memory");
}
static __device__ __forceinline__ void multiply(float (&sum)[4], const unsigned (&a)[4],
                                                unsigned low, unsigned high) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, "
                 "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(low), "r"(high));
}
// The same number, of which the compiler knows nothing.
static __device__ __forceinline__ int whole(int x) {
    asm volatile("" : "+r"(x));
    return x;
}
static __device__ __forceinline__ unsigned two_halves(float low, float high) {
    unsigned found;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(found) : "f"(high), "f"(low));
    return found;
}
static __device__ __forceinline__ float low_half(unsigned word) {
    float found;
    asm("{.reg .b16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, l;}" : "=f"(found) : "r"(word));
    return found;
}
static __device__ __forceinline__ float high_half(unsigned word) {
    float found;
    asm("{.reg .b16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, h;}" : "=f"(found) : "r"(word));
    return found;
}
#define SHARED(NAME) extern __shared__ eight NAME[]
#endif

constexpr int ACROSS = 16, DOWN = 16;            // a tile's pixels
constexpr int WIDE = ACROSS + 2, TALL = DOWN + 2;  // and what it reads
constexpr int WARPS = 4, THREADS = 32 * WARPS, ROWS = DOWN / WARPS;

// Where in a pixel's share of the tile an eight of its features lies: those of eight pixels beside
// each other are read at once, and must lie on different banks.
template <int EIGHTS>
static __device__ __forceinline__ int place_of(int even, int odd, int column) {
    static_assert(EIGHTS % 2 == 0, "features come by 16");
    if (EIGHTS % 8 == 0) return even + odd ^ column & 7;
    if (EIGHTS % 4 == 0) return even + odd ^ column >> 1 & 3;
    return even + (odd ^ column >> 2 & 1);
}

// A lane's share of a pixel's features: four tiles of the result are its next eight, two its next
// four. `move` is told their first one, of which word of the share they are, and how many words.
template <int EIGHTS, typename Move>
static __device__ __forceinline__ void each_piece(int lane, Move move) {
#pragma unroll
    for (int j = 0; j < EIGHTS; j += 4) {
        if (j + 4 <= EIGHTS) move(8 * j + 8 * (lane % 4), j, eight{});
        else move(8 * j + 4 * (lane % 4), j, four{});
    }
}
template <typename Words> constexpr int length = sizeof(Words) / sizeof(unsigned);

template <int C>
static __device__ __forceinline__ void convolve(const half_bits *features,
                                                const half_bits *weights, const float *bias,
                                                const half_bits *residual, int n, int h, int w,
                                                half_bits *result) {
    constexpr int eights = C / 8;             // of features, and tiles of the result's
    constexpr int steps = 9 * C / 16;         // of 16 features around a pixel
    constexpr int held = steps * (eights / 2) * 32;  // weights, by eights
    SHARED(shared);
    const eight *kernel = shared;
    eight *tile = shared + held;
    // Read again for each purpose: else all that follows from it stays in registers all the time.
    const auto own = [&] { return whole(threadIdx.x); };
    const int columns = (w + ACROSS - 1) / ACROSS, rows = (h + DOWN - 1) / DOWN;
    const int tiles = n * rows * columns;

    const auto fetch = [&](int number) {
        const int left = number % columns * ACROSS - 1;
        const int top = number / columns % rows * DOWN - 1;
        const index_t before = static_cast<index_t>(number / columns / rows) * h;
#pragma unroll 4
        for (int i = own(); i < TALL * WIDE * eights; i += THREADS) {
            const int pixel = i / eights, row = pixel / WIDE, column = pixel % WIDE;
            const int y = top + row, x = left + column;
            const bool there = x >= 0 && x < w && y >= 0 && y < h;
            const half_bits *from = features;
            if (there) from += ((before + y) * w + x) * C + i % eights * 8;
            const int even = i % eights & ~1;
            bring(tile + pixel * eights + place_of<eights>(even, i % eights - even, column),
                  reinterpret_cast<const eight *>(from), there);
        }
    };

    for (int i = threadIdx.x; i < held; i += THREADS)
        bring(shared + i, reinterpret_cast<const eight *>(weights) + i, true);
    int number = blockIdx.x;
    if (number < tiles) fetch(number);
    for (; number < tiles; number += gridDim.x) {
        brought();
        __syncthreads();
        float sum[ROWS][eights][4];
        const int thread = own(), lane = thread % 32, warp = thread / 32;
        each_piece<eights>(lane, [&](int first, int j, auto words) {
#pragma unroll
            for (int k = 0; k < 2 * length<decltype(words)>; ++k)
#pragma unroll
                for (int i = 0; i < ROWS; ++i)
                    sum[i][j + k / 2][k % 2] = sum[i][j + k / 2][2 + k % 2] = bias[first + k];
        });
#pragma unroll 1  // else the compiler reorders it all, for which there are no registers
        for (int dx = 0; dx < 3; ++dx) {
            const int column = lane % 16 + dx;
            const eight *first = tile + (warp * ROWS * WIDE + column) * eights;
            const eight *at = kernel + dx * (eights / 2) * (eights / 2) * 32 + lane;
#pragma unroll
            for (int part = 0; part < eights; part += 2) {
                unsigned around[ROWS + 2][4];
#pragma unroll
                for (int i = 0; i < ROWS + 2; ++i)
                    rows_of_16(around[i], first + i * WIDE * eights +
                                              place_of<eights>(part, lane / 16, column));
#pragma unroll
                for (int dy = 0; dy < 3; ++dy) {
#pragma unroll
                    for (int j = 0; j < eights / 2; ++j) {
                        eight pair;
                        read(pair, at + ((3 * dy * eights + part) / 2 * (eights / 2) + j) * 32);
#pragma unroll
                        for (int i = 0; i < ROWS; ++i) {
                            multiply(sum[i][2 * j], around[i + dy], pair.word[0], pair.word[1]);
                            multiply(sum[i][2 * j + 1], around[i + dy], pair.word[2],
                                     pair.word[3]);
                        }
                    }
                }
            }
        }
        __syncthreads();
        // the next tile comes while this one goes
        if (number + static_cast<int>(gridDim.x) < tiles) fetch(number + gridDim.x);

        const int self = own();
        const int top = number / columns % rows * DOWN + self / 32 * ROWS;
        const int left = number % columns * ACROSS + self % 32 / 4;
        const index_t before = static_cast<index_t>(number / columns / rows) * h;
        const auto inside = [&](int i, int half) { return top + i < h && left + 8 * half < w; };
        const auto place = [&](int i, int half) {
            return ((before + top + i) * w + left + 8 * half) * C;
        };
        const auto put = [&](int i, int half, const unsigned *was) {
            if (!inside(i, half)) return;
            each_piece<eights>(self % 32, [&](int first, int j, auto words) {
                using Words = decltype(words);
#pragma unroll
                for (int k = 0; k < length<Words>; ++k) {
                    float low = sum[i][j + k][2 * half], high = sum[i][j + k][2 * half + 1];
                    if (was) low += low_half(was[j + k]), high += high_half(was[j + k]);
                    else low = fmaxf(low, 0), high = fmaxf(high, 0);
                    words.word[k] = two_halves(low, high);
                }
                write(reinterpret_cast<Words *>(result + place(i, half) + first), words);
            });
        };
        if (!residual) {
#pragma unroll
            for (int i = 0; i < ROWS; ++i)
#pragma unroll
                for (int half = 0; half < 2; ++half) put(i, half, nullptr);
            continue;
        }
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
            unsigned was[2][eights];  // both first: they take their time
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const half_bits *from = residual + (inside(i, half) ? place(i, half) : 0);
                each_piece<eights>(self % 32, [&](int first, int j, auto words) {
                    using Words = decltype(words);
                    words = *reinterpret_cast<const Words *>(from + first);
#pragma unroll
                    for (int k = 0; k < length<Words>; ++k) was[half][j + k] = words.word[k];
                });
            }
#pragma unroll
            for (int half = 0; half < 2; ++half) put(i, half, was[half]);
        }
    }
}

// `BLOCKS` are those that share a multiprocessor's 227 KiB.
#define FEATURES(C, BLOCKS)                                                                       \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)                                 \
        carcodec_convolve_##C(const half_bits *features, const half_bits *weights,                \
                              const float *bias, const half_bits *residual, int n, int h, int w,  \
                              half_bits *result) {                                                \
        convolve<C>(features, weights, bias, residual, n, h, w, result);                          \
    }
FEATURES(32, 3)
FEATURES(48, 3)
