// Exact things: float32 dot products in one fixed order, and norms. Everything that is compared or returned comes from
// here, whichever instructions found it.
#pragma once
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace {

constexpr float INF = std::numeric_limits<float>::infinity();

inline __mmask16 lanes(long count) { return count >= 16 ? 0xffff : count <= 0 ? 0 : (1u << count) - 1; }

inline float folded(const __m512 part[4]) {
    const __m512 all = _mm512_add_ps(_mm512_add_ps(part[0], part[1]), _mm512_add_ps(part[2], part[3]));
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
    const __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    const __m128 two = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

// out[n] = row · others[n]. 64 partial sums each, element k in sum k % 64, then a fixed tree: N changes no bit of it.
template <int N>
inline void dot(const float* row, const float* const* others, long d, float* out) {
    __m512 part[N][4];
    for (auto& parts : part)
        for (auto& one : parts) one = _mm512_setzero_ps();
    long k = 0;
    for (; k + 64 <= d; k += 64)
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            const __m512 r = _mm512_loadu_ps(row + k + 16 * j);
#pragma GCC unroll 4
            for (int n = 0; n < N; n++)
                part[n][j] = _mm512_fmadd_ps(_mm512_loadu_ps(others[n] + k + 16 * j), r, part[n][j]);
        }
    if (k < d)
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            const __mmask16 there = lanes(d - k - 16 * j);
            const __m512 r = _mm512_maskz_loadu_ps(there, row + k + 16 * j);
#pragma GCC unroll 4
            for (int n = 0; n < N; n++)
                part[n][j] = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(there, others[n] + k + 16 * j), r, part[n][j]);
        }
    for (int n = 0; n < N; n++) out[n] = folded(part[n]);
}

// The same for `count` others, four at a time: the row stays in the first-level cache. use(n, product).
template <class Other, class Use>
inline void dots(const float* row, long count, long d, Other other, Use use) {
    const float* others[4];
    float out[4];
    for (long n = 0; n < count; n += 4) {
        const int each = std::min(count - n, 4L);
        for (int i = 0; i < each; i++) others[i] = other(n + i);
        switch (each) {
            case 4: dot<4>(row, others, d, out); break;
            case 3: dot<3>(row, others, d, out); break;
            case 2: dot<2>(row, others, d, out); break;
            default: dot<1>(row, others, d, out);
        }
        for (int i = 0; i < each; i++) use(n + i, out[i]);
    }
}

// The next float above or below a real number that `value` stands for. What is no number may be anything.
inline float above(double value) { return value == value ? std::nextafter(float(value), INF) : INF; }
inline float below(double value) { return value == value ? std::nextafter(float(value), -INF) : -INF; }

// A float no smaller than a norm, which was summed in double.
inline float at_least(double norm) { return above(norm * (1 + 1e-6)); }

// ‖row‖² in double: nothing over- or underflows.
struct Squares {
    __m512d even = _mm512_setzero_pd(), odd = _mm512_setzero_pd();
    void add(__m512 v) {
        const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(v));
        const __m512d high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1));
        even = _mm512_fmadd_pd(low, low, even);
        odd = _mm512_fmadd_pd(high, high, odd);
    }
    double norm() const { return std::sqrt(_mm512_reduce_add_pd(_mm512_add_pd(even, odd))); }
};

}  // namespace
