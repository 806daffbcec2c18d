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
#endif

static __device__ __forceinline__ float value(float x) { return x; }
static __device__ __forceinline__ float value(half_bits x) { return from_half(x); }
static __device__ __forceinline__ void put(float *at, float x) { *at = x; }
static __device__ __forceinline__ void put(half_bits *at, float x) { *at = to_half(x); }

// Two neighbours in one load.
struct __align__(8) pair_of_floats { float first, second; };
struct __align__(4) pair_of_halves { half_bits first, second; };
static __device__ __forceinline__ void load(const float *at, float (&x)[1]) { x[0] = *at; }
static __device__ __forceinline__ void load(const half_bits *at, float (&x)[1]) {
    x[0] = from_half(*at);
}
static __device__ __forceinline__ void load(const float *at, float (&x)[2]) {
    const pair_of_floats both = *reinterpret_cast<const pair_of_floats *>(at);
    x[0] = both.first, x[1] = both.second;
}
static __device__ __forceinline__ void load(const half_bits *at, float (&x)[2]) {
    const pair_of_halves both = *reinterpret_cast<const pair_of_halves *>(at);
    x[0] = from_half(both.first), x[1] = from_half(both.second);
}

static __device__ __forceinline__ int reflected(int i, int length) {
    const int period = length > 1 ? 2 * length - 2 : 1;
    i = (i < 0 ? -i : i) % period;
    return i < length ? i : period - i;
}

// Where a tap reads: whole pixels, and the share of the next one. Whole pixels stay integers, so
// that positions are as exact at the right of a large image as at its left.
static __device__ __forceinline__ int whole_part(int start, float moved, float &share) {
    const float below = floorf(moved);
    share = moved - below;
    return start + static_cast<int>(below);
}

// PIXELS neighbouring LR pixels of one row for each thread; KERNEL 0 takes the argument's.
template <typename T, int KERNEL, int PIXELS>
static __device__ __forceinline__ void resample(
    const T *__restrict__ image, const T *__restrict__ weights, const T *__restrict__ offsets,
    int h, int w, int scale, int kernel, int convex, int quantise, T *__restrict__ small) {
    const int x = (blockIdx.x * blockDim.x + threadIdx.x) * PIXELS;
    const int y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= w || y >= h) return;
    const int k = KERNEL ? KERNEL : kernel, taps = k * k;
    const int height = h * scale, width = w * scale;
    const index_t plane = static_cast<index_t>(h) * w, large = static_cast<index_t>(height) * width;
    const index_t here = static_cast<index_t>(y) * w + x;
    const T *weight = weights + blockIdx.z * taps * plane + here;
    const T *across = offsets + blockIdx.z * 2 * taps * plane + here;
    const T *down = across + taps * plane;
    const T *photo = image + blockIdx.z * 3 * large;

    // Taps start (kernel - scale) / 2 before the cell; half a pixel is left where that is odd.
    const int before = -((scale - k) >> 1);
    const float half = 0.5f * ((scale - k) & 1);
    const int reach = before + scale + 1;
    const int last = k - before + scale + 1;
    const bool inside = y * scale >= reach && y * scale + last < height && x * scale >= reach &&
                        (x + PIXELS - 1) * scale + last < width;

    float sum[PIXELS][3] = {}, plain[PIXELS][3] = {}, total[PIXELS] = {};
    for (int i = 0; i < k; ++i) {
#pragma unroll 3
        for (int j = 0; j < k; ++j) {
            const index_t tap = (i * k + j) * plane;
            float share[PIXELS], right[PIXELS], lower[PIXELS];
            load(weight + tap, share);
            load(across + tap, right);
            load(down + tap, lower);
#pragma unroll
            for (int p = 0; p < PIXELS; ++p) {
                float a, b;
                const int left = whole_part((x + p) * scale - before + j,
                                            scale * tanhf(right[p]) + half, a);
                const int top = whole_part(y * scale - before + i,
                                           scale * tanhf(lower[p]) + half, b);
                int columns[2] = {left, left + 1}, rows[2] = {top, top + 1};
                if (!inside) {
                    columns[0] = reflected(left, width), columns[1] = reflected(left + 1, width);
                    rows[0] = reflected(top, height), rows[1] = reflected(top + 1, height);
                }
                const T *upper = photo + static_cast<index_t>(rows[0]) * width;
                const T *under = photo + static_cast<index_t>(rows[1]) * width;
                const float amount = convex ? fmaxf(share[p], 1e-6f) : share[p];
                total[p] += amount;
#pragma unroll
                for (int c = 0; c < 3; ++c) {
                    const index_t at = c * large;
                    const float u0 = value(upper[at + columns[0]]);
                    const float u1 = value(upper[at + columns[1]]);
                    const float l0 = value(under[at + columns[0]]);
                    const float l1 = value(under[at + columns[1]]);
                    const float u = u0 + a * (u1 - u0), l = l0 + a * (l1 - l0);
                    const float read = u + b * (l - u);
                    sum[p][c] += amount * read;
                    plain[p][c] += read;
                }
            }
        }
    }
    T *out = small + blockIdx.z * 3 * plane + here;
#pragma unroll
    for (int p = 0; p < PIXELS; ++p) {
        if (x + p >= w) return;
#pragma unroll
        for (int c = 0; c < 3; ++c) {
            // weights that miss 1 get the rest spread over all taps, which needs no second pass
            float found = convex ? sum[p][c] / total[p]
                                 : sum[p][c] + (1 - total[p]) / taps * plain[p][c];
            if (quantise) found = rintf(fminf(fmaxf(found * 255, 0.0f), 255.0f)) * (1 / 255.0f);
            put(out + c * plane + p, found);
        }
    }
}

// Inputs, numbers, outputs: the order in which TensorRT passes them. `n` is the grid's depth.
#define ENTRY(NAME, T, KERNEL, PIXELS)                                                            \
    extern "C" __global__ void NAME(const T *image, const T *weights, const T *offsets, int h,    \
                                    int w, int scale, int kernel, int convex, int quantise,       \
                                    T *small) {                                                   \
        resample<T, KERNEL, PIXELS>(image, weights, offsets, h, w, scale, kernel, convex,         \
                                    quantise, small);                                             \
    }

// any scale, kernel and width: what the others are checked against
ENTRY(carcodec_resample_f32, float, 0, 1)
ENTRY(carcodec_resample_f16, half_bits, 0, 1)
// kernels of 3 LR pixels at scales 2, 3 and 4; w must be even, heads aligned to two numbers
ENTRY(carcodec_resample_f32_k6, float, 6, 2)
ENTRY(carcodec_resample_f32_k9, float, 9, 2)
ENTRY(carcodec_resample_f32_k12, float, 12, 2)
ENTRY(carcodec_resample_f16_k6, half_bits, 6, 2)
ENTRY(carcodec_resample_f16_k9, half_bits, 9, 2)
ENTRY(carcodec_resample_f16_k12, half_bits, 12, 2)

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
            const float right = tanhf(offsets[moves + t * plane]);
            const float lower = tanhf(offsets[moves + (taps + t) * plane]);
            float a, b;
            const int left = whole_part(x * scale - before + t % k, scale * right + half, a);
            const int top = whole_part(y * scale - before + t / k, scale * lower + half, b);
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
