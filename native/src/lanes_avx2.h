// Lanes in two registers of AVX2.
#pragma once
#include <immintrin.h>

namespace {

struct Lanes {
    __m256 low, high;

    static Lanes zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
    static Lanes all(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
    static Lanes load(const void* from) {
        const float* values = static_cast<const float*>(from);
        return {_mm256_loadu_ps(values), _mm256_loadu_ps(values + 8)};
    }
    static Lanes spread(const char* unit) {  // its 32 bits in every lane
        float bits;
        std::memcpy(&bits, unit, 4);
        return all(bits);
    }
    // The first `count` (any number), zeros in the other lanes.
    static Lanes some(const float* from, Long count) {
        return {_mm256_maskload_ps(from, there(count)), _mm256_maskload_ps(from + 8, there(count - 8))};
    }
    void store(void* to) const {
        _mm256_storeu_ps(static_cast<float*>(to), low);
        _mm256_storeu_ps(static_cast<float*>(to) + 8, high);
    }
    void store_some(float* to, Long count) const {
        _mm256_maskstore_ps(to, there(count), low);
        _mm256_maskstore_ps(to + 8, there(count - 8), high);
    }

    static __m256i there(Long count) {
        const int clamped = count >= 8 ? 8 : count <= 0 ? 0 : count;
        return _mm256_cmpgt_epi32(_mm256_set1_epi32(clamped), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    }
};

inline Lanes operator+(Lanes a, Lanes b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
inline Lanes operator-(Lanes a, Lanes b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
inline Lanes operator*(Lanes a, Lanes b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }

// c + a·b and c - a·b, rounded once.
inline Lanes plus(Lanes c, Lanes a, Lanes b) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
inline Lanes minus(Lanes c, Lanes a, Lanes b) {
    return {_mm256_fnmadd_ps(a.low, b.low, c.low), _mm256_fnmadd_ps(a.high, b.high, c.high)};
}

// b where either is not a number.
inline Lanes larger(Lanes a, Lanes b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }

// A bit for each lane: set where a is not less than b, for whatever reason.
inline uint16_t not_less(Lanes a, Lanes b) {
    return _mm256_movemask_ps(_mm256_cmp_ps(a.low, b.low, _CMP_NLT_UQ)) |
           _mm256_movemask_ps(_mm256_cmp_ps(a.high, b.high, _CMP_NLT_UQ)) << 8;
}

inline float greatest(Lanes a) {
    const __m256 eight = _mm256_max_ps(a.low, a.high);
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

// Whole numbers: the nearest ones; two of 16 bits as one unit; what their sum of 32 bits comes to.
inline Lanes nearest(Lanes a) {
    constexpr int how = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(a.low, how), _mm256_round_ps(a.high, how)};
}
inline Lanes pairs(Lanes a, Lanes b) {
    const auto pair = [](__m256 one, __m256 other) {
        const __m256i low = _mm256_and_si256(_mm256_cvtps_epi32(one), _mm256_set1_epi32(0xffff));
        return _mm256_castsi256_ps(_mm256_or_si256(low, _mm256_slli_epi32(_mm256_cvtps_epi32(other), 16)));
    };
    return {pair(a.low, b.low), pair(a.high, b.high)};
}
inline Lanes of_whole(Lanes a) {
    return {_mm256_cvtepi32_ps(_mm256_castps_si256(a.low)), _mm256_cvtepi32_ps(_mm256_castps_si256(a.high))};
}

// The sum of 64 partial sums by a tree: lane i with i + 8, then i + 4, i + 2, i + 1.
inline float folded(const Lanes part[4]) {
    const Lanes all = (part[0] + part[1]) + (part[2] + part[3]);
    const __m256 half = _mm256_add_ps(all.low, all.high);
    const __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    const __m128 two = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

struct Squares {
    __m256d part[4] = {};
    void add(Lanes values) {
        square(0, _mm256_castps256_ps128(values.low));
        square(1, _mm256_extractf128_ps(values.low, 1));
        square(2, _mm256_castps256_ps128(values.high));
        square(3, _mm256_extractf128_ps(values.high, 1));
    }
    double norm() const {
        double sums[4];
        _mm256_storeu_pd(sums, _mm256_add_pd(_mm256_add_pd(part[0], part[1]), _mm256_add_pd(part[2], part[3])));
        return std::sqrt((sums[0] + sums[1]) + (sums[2] + sums[3]));
    }

   private:
    void square(int i, __m128 quarter) {
        const __m256d wide = _mm256_cvtps_pd(quarter);
        part[i] = _mm256_fmadd_pd(wide, wide, part[i]);
    }
};

// Which of 32 masks have a bit.
inline uint32_t which(const uint16_t* masks, uint16_t bit) {
    const __m256i bits = _mm256_set1_epi16(bit);
    const auto has = [&](int i) {
        const __m256i some = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(masks + 16 * i));
        return _mm256_cmpeq_epi16(_mm256_and_si256(some, bits), bits);
    };
    return _mm256_movemask_epi8(_mm256_permute4x64_epi64(_mm256_packs_epi16(has(0), has(1)), 0xd8));
}

inline void transpose_8(__m256 rows[8]) {
    __m256 pairs[8], fours[8];
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
        pairs[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {
        fours[i] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
        fours[i + 1] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0xee);
        fours[i + 2] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
        fours[i + 3] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xee);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        rows[i] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x20);
        rows[i + 4] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x31);
    }
}

inline void transpose(Lanes rows[16]) {
    __m256 quarter[2][2][8];  // [rows, columns] in eights
    for (int i = 0; i < 16; i++) quarter[i / 8][0][i % 8] = rows[i].low, quarter[i / 8][1][i % 8] = rows[i].high;
    for (auto& some : quarter)
        for (auto& one : some) transpose_8(one);
    for (int i = 0; i < 16; i++) rows[i] = {quarter[0][i / 8][i % 8], quarter[1][i / 8][i % 8]};
}

// How many tokens and how many strips of 16 features a product takes at a time: their sums stay in registers.
constexpr int TOKENS_IN_REGISTERS = 6, STRIPS_IN_REGISTERS = 1;
// How many tokens lie in one tile; how many are multiplied at a time, by how many blocks of units.
constexpr int TOKENS_IN_TILE = 6, TOKENS_AT_ONCE = 96, BLOCKS_AT_ONCE = 16;
// How many strips of float32 are searched at a time: they stay in the second-level cache or are streamed from the next.
constexpr int PANEL = 6;
// How many dot products at a time, of 64 partial sums each; how many sums of rows.
constexpr int ROWS_IN_REGISTERS = 2;
constexpr int SUMS_IN_REGISTERS = 8;

}  // namespace
