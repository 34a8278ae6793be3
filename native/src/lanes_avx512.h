// Lanes in one register of AVX-512.
#pragma once
#include <immintrin.h>

namespace {

struct Lanes {
    __m512 v;

    static Lanes zero() { return {_mm512_setzero_ps()}; }
    static Lanes all(float value) { return {_mm512_set1_ps(value)}; }
    static Lanes load(const void* from) { return {_mm512_loadu_ps(from)}; }
    static Lanes spread(const char* unit) {  // its 32 bits in every lane
        float bits;
        std::memcpy(&bits, unit, 4);
        return {_mm512_set1_ps(bits)};
    }
    // The first `count` (any number), zeros in the other lanes.
    static Lanes some(const float* from, Long count) { return {_mm512_maskz_loadu_ps(there(count), from)}; }
    void store(void* to) const { _mm512_storeu_ps(to, v); }
    void store_some(float* to, Long count) const { _mm512_mask_storeu_ps(to, there(count), v); }

    static __mmask16 there(Long count) { return count >= 16 ? 0xffff : count <= 0 ? 0 : (1u << count) - 1; }
};

inline Lanes operator+(Lanes a, Lanes b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Lanes operator-(Lanes a, Lanes b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Lanes operator*(Lanes a, Lanes b) { return {_mm512_mul_ps(a.v, b.v)}; }

// c + a·b and c - a·b, rounded once.
inline Lanes plus(Lanes c, Lanes a, Lanes b) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Lanes minus(Lanes c, Lanes a, Lanes b) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }

// b where either is not a number.
inline Lanes larger(Lanes a, Lanes b) { return {_mm512_max_ps(a.v, b.v)}; }

// A bit for each lane: set where a is not less than b, for whatever reason.
inline uint16_t not_less(Lanes a, Lanes b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_NLT_UQ); }

inline float greatest(Lanes a) { return _mm512_reduce_max_ps(a.v); }

// Whole numbers: the nearest ones; two of 16 bits as one unit; what their sum of 32 bits comes to.
inline Lanes nearest(Lanes a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline Lanes pairs(Lanes a, Lanes b) {
    const __m512i low = _mm512_and_si512(_mm512_cvtps_epi32(a.v), _mm512_set1_epi32(0xffff));
    return {_mm512_castsi512_ps(_mm512_or_si512(low, _mm512_slli_epi32(_mm512_cvtps_epi32(b.v), 16)))};
}
inline Lanes of_whole(Lanes a) { return {_mm512_cvtepi32_ps(_mm512_castps_si512(a.v))}; }

// The sum of 64 partial sums by a tree: lane i with i + 8, then i + 4, i + 2, i + 1.
inline float folded(const Lanes part[4]) {
    const __m512 all = ((part[0] + part[1]) + (part[2] + part[3])).v;
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
    const __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    const __m128 two = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

struct Squares {
    __m512d even = _mm512_setzero_pd(), odd = _mm512_setzero_pd();
    void add(Lanes values) {
        const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(values.v));
        const __m512d high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(values.v, 1));
        even = _mm512_fmadd_pd(low, low, even);
        odd = _mm512_fmadd_pd(high, high, odd);
    }
    double norm() const { return std::sqrt(_mm512_reduce_add_pd(_mm512_add_pd(even, odd))); }
};

// Which of 32 masks have a bit.
inline uint32_t which(const uint16_t* masks, uint16_t bit) {
    return _mm512_test_epi16_mask(_mm512_loadu_si512(masks), _mm512_set1_epi16(bit));
}

inline void transpose(Lanes rows[16]) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#pragma GCC unroll 4
    for (int s = 8; s; s /= 2) {  // rows i and i + s swap their quarters of size s that lie across the diagonal
        const __m512i step = _mm512_set1_epi32(s), other = _mm512_set1_epi32(16);
        const __mmask16 right = _mm512_test_epi32_mask(lane, step);
        const __m512i first = _mm512_mask_add_epi32(lane, right, _mm512_sub_epi32(lane, step), other);
        const __m512i second = _mm512_mask_add_epi32(_mm512_add_epi32(lane, step), right, lane, other);
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++)
            if (!(i & s)) {
                const __m512 a = rows[i].v, b = rows[i + s].v;
                rows[i].v = _mm512_permutex2var_ps(a, first, b);
                rows[i + s].v = _mm512_permutex2var_ps(a, second, b);
            }
    }
}

// How many tokens and how many strips of 16 features a product takes at a time: their sums stay in registers.
constexpr int TOKENS_IN_REGISTERS = 8, STRIPS_IN_REGISTERS = 3;
// How many tokens lie in one tile; how many are multiplied at a time, by how many blocks of units.
constexpr int TOKENS_IN_TILE = 16, TOKENS_AT_ONCE = 32, BLOCKS_AT_ONCE = 1 << 20;
// How many strips of float32 are searched at a time: they stay in the second-level cache or are streamed from the next.
constexpr int PANEL = 3;
// How many dot products at a time, of 64 partial sums each; how many sums of rows.
constexpr int ROWS_IN_REGISTERS = 4;
constexpr int SUMS_IN_REGISTERS = 16;

}  // namespace
