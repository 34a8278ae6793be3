// Exact things: float32 dot products in one fixed order, and bounds that are bounds. Everything that is compared or
// returned comes from here, whichever instructions found it.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>

#include "lanes.h"

namespace {

constexpr float INF = std::numeric_limits<float>::infinity();

// out[n] = row · others[n]. 64 partial sums each, element k in sum k % 64, then a fixed tree: neither N nor the
// processor changes a bit of it.
template <int N>
inline void dot(const float* row, const float* const* others, Long d, float* out) {
    Lanes part[N][4];
    for (auto& parts : part)
        for (auto& one : parts) one = Lanes::zero();
    Long k = 0;
    for (; k + 64 <= d; k += 64)
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            const Lanes r = Lanes::load(row + k + 16 * j);
#pragma GCC unroll 4
            for (int n = 0; n < N; n++) part[n][j] = plus(part[n][j], Lanes::load(others[n] + k + 16 * j), r);
        }
    if (k < d)
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            const Long at = k + 16 * j;
            const Lanes r = Lanes::some(row + at, d - at);
#pragma GCC unroll 4
            for (int n = 0; n < N; n++) part[n][j] = plus(part[n][j], Lanes::some(others[n] + at, d - at), r);
        }
    for (int n = 0; n < N; n++) out[n] = folded(part[n]);
}

// The same for `count` others, some at a time: the row stays in the first-level cache. use(n, product).
template <int N = ROWS_IN_REGISTERS, class Other, class Use>
inline void dots(const float* row, Long count, Long d, Other other, Use use, Long first = 0) {
    const float* others[N];
    float out[N];
    for (; first + N <= count; first += N) {
        for (int i = 0; i < N; i++) others[i] = other(first + i);
        dot<N>(row, others, d, out);
        for (int i = 0; i < N; i++) use(first + i, out[i]);
    }
    if constexpr (N > 1) dots<N / 2>(row, count, d, other, use, first);
}

// The next float above or below a real number that `value` stands for. What is no number may be anything.
inline float above(double value) { return value == value ? std::nextafter(float(value), INF) : INF; }
inline float below(double value) { return value == value ? std::nextafter(float(value), -INF) : -INF; }

// A float no smaller than a norm, which was summed in double.
inline float at_least(double norm) { return above(norm * (1 + 1e-6)); }

}  // namespace
