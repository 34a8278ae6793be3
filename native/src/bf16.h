// bfloat16 operands: how float32 is rounded and packed, and the AVX-512 product of them.
#pragma once
#include "search.h"

namespace {

struct PairOfBf16 {
    static __m512 add(__m512 sum, __m512 x, __m512 w) { return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)w); }
};

struct Bf16 {
    static constexpr long K = 32, DIRECTLY = 0;
    static constexpr int STRIPS = 6;
    struct Session {};

    // 32 values rounded to bfloat16, denormals to zero (the product would take them for it): what is lost counts them.
    static __m512 unit(const float* row, long k, long d, Squares& all, Squares& lost) {
        const __m512 low = _mm512_maskz_loadu_ps(lanes(d - k), row + k);
        const __m512 high = _mm512_maskz_loadu_ps(lanes(d - k - 16), row + k + 16);
        const __m512i bits = (__m512i)_mm512_cvtne2ps_pbh(high, low);
        all.add(low);
        all.add(high);
        lost.add(_mm512_sub_ps(low, widened(_mm512_castsi512_si256(bits))));
        lost.add(_mm512_sub_ps(high, widened(_mm512_extracti64x4_epi64(bits, 1))));
        return _mm512_castsi512_ps(bits);
    }

    static __m512 widened(__m256i half) {
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
    }

    static const char* strips(const Query& q, Scratch&, long feature, int, long blocks) {
        return static_cast<const char*>(q.strips) + feature / 16 * blocks * BLOCK;
    }

    static void multiply(const char* tiles, int tokens, const char* strips, int n, long blocks, float* out,
                         long stride) {
        ::multiply<PairOfBf16>(tiles, tokens, strips, n, blocks, out, stride);
    }
};

}  // namespace
