// bfloat16 operands: how float32 is rounded and packed, and the products of pairs of them.
#pragma once
#include "search.h"

namespace {

#ifdef __AVX512F__

inline Lanes rounded_to_bf16(Lanes low, Lanes high) {  // 32 values, denormals to zero
    return {_mm512_castsi512_ps((__m512i)_mm512_cvtne2ps_pbh(high.v, low.v))};
}
inline Lanes widened(__m256i half) { return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))}; }
inline Lanes low_of_bf16(Lanes both) { return widened(_mm512_castsi512_si256(_mm512_castps_si512(both.v))); }
inline Lanes high_of_bf16(Lanes both) { return widened(_mm512_extracti64x4_epi64(_mm512_castps_si512(both.v), 1)); }

struct PairsOfBf16 {
    static Lanes add(Lanes sum, Lanes x, Lanes w) {
        return {_mm512_dpbf16_ps(sum.v, (__m512bh)_mm512_castps_si512(x.v), (__m512bh)_mm512_castps_si512(w.v))};
    }
};

#else

// Two halves of a unit are as far apart as `low` and `high`. By hand, so that it is to the nearest whatever the
// processor's mode, and no infinity comes of what is no number.
inline Lanes rounded_to_bf16(Lanes low, Lanes high) {
    const auto half = [](float32x4_t value) {
        const uint32x4_t bits = vreinterpretq_u32_f32(value);
        const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
        const uint32x4_t up = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
        const uint32x4_t number = vceqq_f32(value, value);
        const uint32x4_t rounded = vbslq_u32(number, up, vorrq_u32(bits, vdupq_n_u32(0x400000)));
        const uint32x4_t normal = vtstq_u32(rounded, vdupq_n_u32(0x7f800000));  // the product takes others for zero
        return vandq_u32(vandq_u32(rounded, vdupq_n_u32(0xffff0000)), normal);
    };
    return each([&](int i) {
        return vreinterpretq_f32_u32(vorrq_u32(vshrq_n_u32(half(low.v[i]), 16), half(high.v[i])));
    });
}
inline Lanes low_of_bf16(Lanes both) {
    return each([&](int i) { return vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_f32(both.v[i]), 16)); });
}
inline Lanes high_of_bf16(Lanes both) {
    return each([&](int i) {
        return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(both.v[i]), vdupq_n_u32(0xffff0000)));
    });
}

struct PairsOfBf16 {
    static Lanes add(Lanes sum, Lanes x, Lanes w) {
        const auto halves = [](float32x4_t one) { return vreinterpretq_bf16_f32(one); };
        return each([&](int i) { return vbfdotq_f32(sum.v[i], halves(x.v[i]), halves(w.v[i])); });
    }
};

#endif

struct Bf16 {
    static constexpr Long K = 32, DIRECTLY = 0;
    static constexpr int STRIPS = 6;
    static constexpr bool KEPT = true, WHOLE = false;
    static constexpr double rounding(Long k) { return rounding_of_sum(k); }
    struct Session {};

    struct Row {
        const float* row;
        Long d;
        Squares all, off;
        void open(const float* values, Long count) { row = values, d = count; }
        // 32 values, denormals to zero (the product would take them for it): what is lost counts them.
        Lanes unit(Long k) {
            const Lanes low = Lanes::some(row + k, d - k), high = Lanes::some(row + k + 16, d - k - 16);
            const Lanes both = rounded_to_bf16(low, high);
            all.add(low);
            all.add(high);
            off.add(low - low_of_bf16(both));
            off.add(high - high_of_bf16(both));
            return both;
        }
        double norm() const { return all.norm(); }
        double lost() const { return off.norm(); }
        float scale() const { return 1; }
    };

    static const char* strips(const Query& q, Scratch&, Long feature, int, Long blocks) {
        return static_cast<const char*>(q.strips) + feature / 16 * blocks * BLOCK;
    }

    static void multiply(const char* tiles, int tokens, const char* strips, int n, Long blocks, float* out,
                         Long stride) {
        ::multiply<PairsOfBf16>(tiles, tokens, strips, n, blocks, out, stride);
    }
};

}  // namespace
