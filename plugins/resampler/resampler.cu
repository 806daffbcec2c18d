// The adaptive resampler: one kernel per LR pixel applied to the HR image, from the raw heads.
//
// W. Sun and Z. Chen, "Learned Image Downscaling for Upscaling Using Content Adaptive Resampler",
// IEEE TIP 2020, eq. 1-3, with the normalisation and bounding of carcodec.networks.car. Fused:
// weights and offsets are read once, LR is written once, and nothing else touches memory.
//
// Images are planes, (n, 3, h*scale, w*scale) and (n, 3, h, w), in [0, 1]; heads are
// (n, k*k, h, w) and (n, 2*k*k, h, w), horizontal offsets before vertical ones, taps row by row.
// Storage is float or half, arithmetic is float. Reads beyond the border reflect about the centre
// of its pixels. No headers are needed, so that NVRTC compiles this without a toolkit; on a CPU
// tests/cuda_on_host.hpp stands in for the device.

typedef unsigned short half_bits;
typedef long long index_t;  // `long` has 32 bits on Windows

#ifndef CARCODEC_HOST
static __device__ __forceinline__ float from_half(half_bits bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}
static __device__ __forceinline__ half_bits to_half(float value) {
    half_bits bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
static __device__ __forceinline__ float power_of_2(float x) {
    float found;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(found) : "f"(x));
    return found;
}
static __device__ __forceinline__ float reciprocal(float x) {
    float found;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(found) : "f"(x));
    return found;
}
static __device__ __forceinline__ float sum_rounded_down(float a, float b) {
    float found;
    asm("add.rm.f32 %0, %1, %2;" : "=f"(found) : "f"(a), "f"(b));
    return found;
}
static __device__ __forceinline__ int bits(float x) {
    int found;
    asm("mov.b32 %0, %1;" : "=r"(found) : "f"(x));
    return found;
}
// The same number, of which the compiler knows nothing: it takes sums apart otherwise.
static __device__ __forceinline__ int whole(int x) {
    asm("" : "+r"(x));
    return x;
}
// Either half of a word as a float, plus 2^23: where a conversion takes four times as long.
static __device__ __forceinline__ float low(unsigned word) {
    float found;
    asm("{.reg .b32 t; prmt.b32 t, %1, 0x4b00, 0x5410; mov.b32 %0, t;}" : "=f"(found) : "r"(word));
    return found;
}
static __device__ __forceinline__ float high(unsigned word) {
    float found;
    asm("{.reg .b32 t; prmt.b32 t, %1, 0x4b00, 0x5432; mov.b32 %0, t;}" : "=f"(found) : "r"(word));
    return found;
}
#endif

static __device__ __forceinline__ float value(float x) { return x; }
static __device__ __forceinline__ float value(half_bits x) { return from_half(x); }
static __device__ __forceinline__ void put(float *at, float x) { *at = x; }
static __device__ __forceinline__ void put(half_bits *at, float x) { *at = to_half(x); }

static __device__ __forceinline__ int reflected(int i, int length) {
    if (i >= 0 && i < length) return i;
    const int period = length > 1 ? 2 * length - 2 : 1;
    i = (i < 0 ? -i : i) % period;
    return i < length ? i : period - i;
}

// `most` times tanh, within 2e-7 of it, in a fifth of tanhf's time; -most where x is no number,
// which no tap reads beyond.
static __device__ __forceinline__ float bounded(float x, float most) {
    const float grown = power_of_2(x * 2.8853900817779268f);  // e to the 2x
    return fmaxf(most - 2 * most * reciprocal(grown + 1), -most);
}

// Where a tap reads: whole pixels, and the share of the next one. Whole pixels stay integers, so
// that positions are as exact at the right of a large image as at its left.
constexpr float ONES = 12582912;       // 1.5 * 2^23, where the last bit is 1,
constexpr int BITS_OF_ONES = 0x4b400000;  // which `start` is less by
static __device__ __forceinline__ int whole_part(int start, float moved, float &share) {
    const float below = sum_rounded_down(moved, ONES);  // quicker than floorf
    share = moved - (below - ONES);
    return start + bits(below);
}

// What the sums over the taps come to, as an LR pixel's channel.
static __device__ __forceinline__ float channel(float sum, float plain, float total, int taps,
                                                int convex, int quantise) {
    // weights that miss 1 get the rest spread over all taps, which needs no second pass
    const float found = convex ? sum / total : sum + (1 - total) / taps * plain;
    return quantise ? rintf(fminf(fmaxf(found * 255, 0.0f), 255.0f)) * (1 / 255.0f) : found;
}

template <typename T>
static __device__ __forceinline__ void resample(
    const T *__restrict__ image, const T *__restrict__ weights, const T *__restrict__ offsets,
    int h, int w, int scale, int k, int convex, int quantise, T *__restrict__ small) {
    const int x = blockIdx.x * blockDim.x + threadIdx.x;
    const int y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= w || y >= h) return;
    const int height = h * scale, width = w * scale, taps = k * k;
    const index_t plane = static_cast<index_t>(h) * w, large = static_cast<index_t>(height) * width;
    const index_t here = static_cast<index_t>(y) * w + x;
    const T *weight = weights + blockIdx.z * taps * plane + here;
    const T *across = offsets + blockIdx.z * 2 * taps * plane + here;
    const T *down = across + taps * plane;
    const T *photo = image + blockIdx.z * 3 * large;
    // Taps start (kernel - scale) / 2 before the cell; half a pixel is left where that is odd.
    const int before = -((scale - k) >> 1);
    const float half = 0.5f * ((scale - k) & 1);

    float sum[3] = {}, plain[3] = {}, total = 0;
    for (int t = 0; t < taps; ++t) {
        const float share = value(weight[t * plane]);
        const float right = bounded(value(across[t * plane]), scale) + half;
        const float lower = bounded(value(down[t * plane]), scale) + half;
        float a, b;
        const int left = whole_part(x * scale - before + t % k - BITS_OF_ONES, right, a);
        const int top = whole_part(y * scale - before + t / k - BITS_OF_ONES, lower, b);
        const int columns[2] = {reflected(left, width), reflected(left + 1, width)};
        const T *upper = photo + static_cast<index_t>(reflected(top, height)) * width;
        const T *under = photo + static_cast<index_t>(reflected(top + 1, height)) * width;
        const float amount = convex ? fmaxf(share, 1e-6f) : share;
        total += amount;
#pragma unroll
        for (int c = 0; c < 3; ++c) {
            const float u0 = value(upper[c * large + columns[0]]);
            const float u1 = value(upper[c * large + columns[1]]);
            const float l0 = value(under[c * large + columns[0]]);
            const float l1 = value(under[c * large + columns[1]]);
            const float u = u0 + a * (u1 - u0), l = l0 + a * (l1 - l0);
            const float read = u + b * (l - u);
            sum[c] += amount * read;
            plain[c] += read;
        }
    }
    T *out = small + blockIdx.z * 3 * plane + here;
#pragma unroll
    for (int c = 0; c < 3; ++c)
        put(out + c * plane, channel(sum[c], plain[c], total, taps, convex, quantise));
}

// A pixel of the photo in shared memory: three channels in one load, each 16 bits of [0, 1]. That
// is all that photos of 8 and of 16 bits have, and shared memory is what these kernels wait for.
struct __align__(8) pixel { unsigned red_green; float blue; };
static __device__ __forceinline__ unsigned in_16_bits(float x) {
    return static_cast<unsigned>(fminf(fmaxf(x, 0.0f), 1.0f) * 65535 + 0.5f);
}

// Kernels of 3 LR pixels, at one scale: the block's part of the photo is brought to shared memory
// first, reflected where it is beyond the border, and every tap reads it there.
template <typename T, int SCALE, int ACROSS, int DOWN>
static __device__ __forceinline__ void resample_tiled(
    const T *__restrict__ image, const T *__restrict__ weights, const T *__restrict__ offsets,
    int h, int w, int convex, int quantise, T *__restrict__ small) {
    constexpr int k = 3 * SCALE, taps = k * k;
    // Taps begin SCALE before the cell and move by as much: 2 SCALE before, 3 SCALE behind, and one.
    constexpr int wide = (ACROSS + 4) * SCALE + 1, tall = (DOWN + 4) * SCALE + 1;
    // Neighbours read SCALE apart: one place left out of every 17 keeps those of scale 4 off each
    // other's banks.
    constexpr int spread = SCALE % 4 ? 31 : 4, pitch = wide + (wide >> spread);
    __shared__ pixel tile[tall * pitch];
    constexpr int together = SCALE % 2 ? k : 6;  // taps of one row whose loads are under way at once

    const int height = h * SCALE, width = w * SCALE;
    const index_t plane = static_cast<index_t>(h) * w, large = static_cast<index_t>(height) * width;
    const T *photo = image + blockIdx.z * 3 * large;
    const int first_x = (static_cast<int>(blockIdx.x) * ACROSS - 2) * SCALE;
    const int first_y = (static_cast<int>(blockIdx.y) * DOWN - 2) * SCALE;
    for (int at = threadIdx.y * ACROSS + threadIdx.x; at < wide * tall; at += ACROSS * DOWN) {
        const int row = at / wide, column = at - row * wide;
        const index_t y = reflected(first_y + row, height);
        const T *from = photo + y * width + reflected(first_x + column, width);
        const unsigned red = in_16_bits(value(from[0])), green = in_16_bits(value(from[large]));
        const float blue = static_cast<float>(in_16_bits(value(from[2 * large])));
        tile[row * pitch + column + (column >> spread)] = {red | green << 16, blue};
    }
    __syncthreads();

    const int x = blockIdx.x * ACROSS + threadIdx.x, y = blockIdx.y * DOWN + threadIdx.y;
    if (x >= w || y >= h) return;
    const unsigned here = static_cast<unsigned>(y) * w + x;
    const T *weight = weights + blockIdx.z * taps * plane;
    const T *across = offsets + blockIdx.z * 2 * taps * plane;
    const T *down = across + taps * plane;
    const int start_x = whole((threadIdx.x + 1) * SCALE - BITS_OF_ONES);
    const int start_y = whole((threadIdx.y + 1) * SCALE - BITS_OF_ONES);

    float sum[3] = {}, plain[3] = {}, total = 0;
    for (int first = 0; first < taps; first += together) {
        T shares[together], rights[together], lowers[together];
#pragma unroll
        for (int t = 0; t < together; ++t) {
            shares[t] = weight[here], rights[t] = across[here], lowers[t] = down[here];
            weight += plane, across += plane, down += plane;
        }
        const int i = first / k;
#pragma unroll
        for (int t = 0; t < together; ++t) {
            const int j = first % k + t;
            float a, b;
            const int left = whole_part(start_x + j, bounded(value(rights[t]), SCALE), a);
            const int top = whole_part(start_y + i, bounded(value(lowers[t]), SCALE), b);
            const pixel *upper = tile + top * pitch + left + (spread < 31 ? left >> spread : 0);
            const int next = spread < 31 ? 1 + ((left + 1) >> spread) - (left >> spread) : 1;
            const pixel u0 = upper[0], u1 = upper[next];
            const pixel l0 = upper[pitch], l1 = upper[pitch + next];
            const float share = value(shares[t]);
            const float amount = convex ? fmaxf(share, 1e-6f) : share;
            total += amount;
            const float corners[3][4] = {
                {low(u0.red_green), low(u1.red_green), low(l0.red_green), low(l1.red_green)},
                {high(u0.red_green), high(u1.red_green), high(l0.red_green), high(l1.red_green)},
                {u0.blue, u1.blue, l0.blue, l1.blue},
            };
#pragma unroll
            for (int c = 0; c < 3; ++c) {
                const float more = c < 2 ? 8388608 : 0;  // that low and high have
                const float u = corners[c][0] - more + a * (corners[c][1] - corners[c][0]);
                const float l = corners[c][2] - more + a * (corners[c][3] - corners[c][2]);
                const float read = u + b * (l - u);
                sum[c] += amount * read;
                plain[c] += read;
            }
        }
    }
    const float unit = 1 / 65535.0f;
    T *out = small + blockIdx.z * 3 * plane + here;
#pragma unroll
    for (int c = 0; c < 3; ++c)
        put(out + c * plane,
            channel(sum[c] * unit, plain[c] * unit, total, taps, convex, quantise));
}

// Inputs, numbers, outputs: the order in which TensorRT passes them. `n` is the grid's depth.
#define SIMPLE(NAME, T)                                                                           \
    extern "C" __global__ void NAME(const T *image, const T *weights, const T *offsets, int h,    \
                                    int w, int scale, int kernel, int convex, int quantise,       \
                                    T *small) {                                                   \
        resample<T>(image, weights, offsets, h, w, scale, kernel, convex, quantise, small);       \
    }

// any scale and kernel: what the others are checked against
SIMPLE(carcodec_resample_f32, float)
SIMPLE(carcodec_resample_f16, half_bits)
// kernels of 3 LR pixels at scales 2, 3 and 4
#define TILED(NAME, T, SCALE, ACROSS, DOWN)                                                       \
    extern "C" __global__ void __launch_bounds__(ACROSS *DOWN)                                    \
        NAME(const T *image, const T *weights, const T *offsets, int h, int w, int, int,          \
             int convex, int quantise, T *small) {                                                \
        resample_tiled<T, SCALE, ACROSS, DOWN>(image, weights, offsets, h, w, convex, quantise,   \
                                               small);                                            \
    }
TILED(carcodec_resample_f32_x2, float, 2, 32, 8)
TILED(carcodec_resample_f32_x3, float, 3, 32, 8)
TILED(carcodec_resample_f32_x4, float, 4, 32, 4)
TILED(carcodec_resample_f16_x2, half_bits, 2, 32, 8)
TILED(carcodec_resample_f16_x3, half_bits, 3, 32, 8)
TILED(carcodec_resample_f16_x4, half_bits, 4, 32, 4)

// Gradients of the unquantised result in the image and in the raw heads, float only. `d_image` must
// be zero to begin with: neighbouring kernels add to the same pixels.
extern "C" __global__ void carcodec_resample_backward_f32(
    const float *image, const float *weights, const float *offsets, const float *d_small, int h,
    int w, int scale, int kernel, int convex, float *d_image, float *d_weights,
    float *d_offsets) {
    const int x = blockIdx.x * blockDim.x + threadIdx.x;
    const int y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= w || y >= h) return;
    const int k = kernel, taps = k * k, height = h * scale, width = w * scale;
    const index_t plane = static_cast<index_t>(h) * w, large = static_cast<index_t>(height) * width;
    const index_t here = static_cast<index_t>(y) * w + x;
    const index_t heads = blockIdx.z * taps * plane + here;
    const index_t moves = blockIdx.z * 2 * taps * plane + here;
    const float *photo = image + blockIdx.z * 3 * large;
    float *d_photo = d_image + blockIdx.z * 3 * large;
    const int before = -((scale - k) >> 1);
    const float half = 0.5f * ((scale - k) & 1);
    float d[3];
    for (int c = 0; c < 3; ++c) d[c] = d_small[blockIdx.z * 3 * plane + c * plane + here];

    // first the sums that every tap's gradient needs, then the taps again
    float sum[3] = {}, plain[3] = {}, total = 0;
    for (int again = 0; again < 2; ++again) {
        float middle = 0;  // of the reads, in the direction of d
        for (int c = 0; again && c < 3; ++c)
            middle += d[c] * (convex ? sum[c] / total : plain[c] / taps);
        for (int t = 0; t < taps; ++t) {
            const float raw = weights[heads + t * plane];
            const float amount = convex ? fmaxf(raw, 1e-6f) : raw;
            const float right = bounded(offsets[moves + t * plane], 1);
            const float lower = bounded(offsets[moves + (taps + t) * plane], 1);
            float a, b;
            const int left = whole_part(x * scale - before + t % k - BITS_OF_ONES,
                                        scale * right + half, a);
            const int top = whole_part(y * scale - before + t / k - BITS_OF_ONES,
                                       scale * lower + half, b);
            const int columns[2] = {reflected(left, width), reflected(left + 1, width)};
            const int rows[2] = {reflected(top, height), reflected(top + 1, height)};
            float read = 0, by_a = 0, by_b = 0;  // in the direction of d
            for (int c = 0; c < 3; ++c) {
                const float *at = photo + c * large;
                const float u0 = at[static_cast<index_t>(rows[0]) * width + columns[0]];
                const float u1 = at[static_cast<index_t>(rows[0]) * width + columns[1]];
                const float l0 = at[static_cast<index_t>(rows[1]) * width + columns[0]];
                const float l1 = at[static_cast<index_t>(rows[1]) * width + columns[1]];
                const float u = u0 + a * (u1 - u0), l = l0 + a * (l1 - l0);
                const float found = u + b * (l - u);
                if (!again) {
                    sum[c] += amount * found;
                    plain[c] += found;
                }
                read += d[c] * found;
                by_a += d[c] * ((1 - b) * (u1 - u0) + b * (l1 - l0));
                by_b += d[c] * (l - u);
            }
            if (!again) {
                total += amount;
                continue;
            }
            const float share = convex ? amount / total : amount + (1 - total) / taps;
            const float slope = convex ? (raw >= 1e-6f ? 1 / total : 0.0f) : 1.0f;
            d_weights[heads + t * plane] = slope * (read - middle);
            d_offsets[moves + t * plane] = share * by_a * scale * (1 - right * right);
            d_offsets[moves + (taps + t) * plane] = share * by_b * scale * (1 - lower * lower);
            for (int c = 0; c < 3; ++c) {
                const float given = d[c] * share;
                float *at = d_photo + c * large;
                float *upper = at + static_cast<index_t>(rows[0]) * width;
                float *under = at + static_cast<index_t>(rows[1]) * width;
                atomicAdd(upper + columns[0], given * (1 - a) * (1 - b));
                atomicAdd(upper + columns[1], given * a * (1 - b));
                atomicAdd(under + columns[0], given * (1 - a) * b);
                atomicAdd(under + columns[1], given * a * b);
            }
        }
    }
}
