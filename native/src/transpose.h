// 16 rows of 16 lanes to columns: how feature rows become strips, [units of K][16 features], as products want them.
#pragma once
#include <immintrin.h>

namespace {

inline void transpose(__m512 rows[16]) {
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
                const __m512 a = rows[i], b = rows[i + s];
                rows[i] = _mm512_permutex2var_ps(a, first, b);
                rows[i + s] = _mm512_permutex2var_ps(a, second, b);
            }
    }
}

}  // namespace
