// Lanes in four registers of NEON.
#pragma once
#include <arm_neon.h>

namespace {

struct Lanes {
    float32x4_t v[4];

    static Lanes zero() { return all(0); }
    static Lanes all(float value) {
        const float32x4_t one = vdupq_n_f32(value);
        return {{one, one, one, one}};
    }
    static Lanes load(const void* from) {
        const uint8_t* bytes = static_cast<const uint8_t*>(from);  // at any address
        Lanes out;
        for (int i = 0; i < 4; i++) out.v[i] = vreinterpretq_f32_u8(vld1q_u8(bytes + 16 * i));
        return out;
    }
    static Lanes spread(const char* unit) {  // its 32 bits in every lane
        float bits;
        std::memcpy(&bits, unit, 4);
        return all(bits);
    }
    // The first `count` (any number), zeros in the other lanes.
    static Lanes some(const float* from, Long count) {
        if (count >= 16) return load(from);
        float values[16] = {};
        if (count > 0) std::memcpy(values, from, 4 * count);
        return load(values);
    }
    void store(void* to) const {
        for (int i = 0; i < 4; i++) vst1q_u8(static_cast<uint8_t*>(to) + 16 * i, vreinterpretq_u8_f32(v[i]));
    }
    void store_some(float* to, Long count) const {
        if (count >= 16) return store(to);
        float values[16];
        store(values);
        if (count > 0) std::memcpy(to, values, 4 * count);
    }
};

template <class Each>
inline Lanes each(Each one) {
    return {{one(0), one(1), one(2), one(3)}};
}

inline Lanes operator+(Lanes a, Lanes b) {
    return each([&](int i) { return vaddq_f32(a.v[i], b.v[i]); });
}
inline Lanes operator-(Lanes a, Lanes b) {
    return each([&](int i) { return vsubq_f32(a.v[i], b.v[i]); });
}
inline Lanes operator*(Lanes a, Lanes b) {
    return each([&](int i) { return vmulq_f32(a.v[i], b.v[i]); });
}

// c + a·b and c - a·b, rounded once.
inline Lanes plus(Lanes c, Lanes a, Lanes b) {
    return each([&](int i) { return vfmaq_f32(c.v[i], a.v[i], b.v[i]); });
}
inline Lanes minus(Lanes c, Lanes a, Lanes b) {
    return each([&](int i) { return vfmsq_f32(c.v[i], a.v[i], b.v[i]); });
}

// b where either is not a number.
inline Lanes larger(Lanes a, Lanes b) {
    return each([&](int i) { return vbslq_f32(vcgtq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]); });
}

// A bit for each lane: set where a is not less than b, for whatever reason.
inline uint16_t not_less(Lanes a, Lanes b) {
    const uint32x4_t bits = {1, 2, 4, 8};
    unsigned out = 0;
    for (int i = 0; i < 4; i++) out |= vaddvq_u32(vbicq_u32(bits, vcltq_f32(a.v[i], b.v[i]))) << 4 * i;
    return out;
}

// What whole numbers come to.
inline Lanes of_whole(Lanes a) {
    return each([&](int i) { return vcvtq_f32_s32(vreinterpretq_s32_f32(a.v[i])); });
}

// The sum of 64 partial sums by a tree: lane i with i + 8, then i + 4, i + 2, i + 1.
inline float folded(const Lanes part[4]) {
    const Lanes all = (part[0] + part[1]) + (part[2] + part[3]);
    const float32x4_t quarter = vaddq_f32(vaddq_f32(all.v[0], all.v[2]), vaddq_f32(all.v[1], all.v[3]));
    const float32x2_t two = vadd_f32(vget_low_f32(quarter), vget_high_f32(quarter));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

struct Squares {
    float64x2_t part[4] = {vdupq_n_f64(0), vdupq_n_f64(0), vdupq_n_f64(0), vdupq_n_f64(0)};
    void add(Lanes values) {
        for (int i = 0; i < 4; i++) {
            const float64x2_t low = vcvt_f64_f32(vget_low_f32(values.v[i])), high = vcvt_high_f64_f32(values.v[i]);
            part[i] = vfmaq_f64(vfmaq_f64(part[i], low, low), high, high);
        }
    }
    double norm() const {
        return std::sqrt(vaddvq_f64(vaddq_f64(vaddq_f64(part[0], part[1]), vaddq_f64(part[2], part[3]))));
    }
};

// Which of 32 masks have a bit.
inline uint32_t which(const uint16_t* masks, uint16_t bit) {
    const uint16x8_t bits = {1, 2, 4, 8, 16, 32, 64, 128}, wanted = vdupq_n_u16(bit);
    uint32_t out = 0;
    for (int i = 0; i < 4; i++)
        out |= uint32_t(vaddvq_u16(vandq_u16(vtstq_u16(vld1q_u16(masks + 8 * i), wanted), bits))) << 8 * i;
    return out;
}

inline void transpose(Lanes rows[16]) {
    Lanes out[16];
    for (int i = 0; i < 16; i += 4)  // rows
        for (int j = 0; j < 4; j++) {  // columns in fours
            const float32x4x2_t even = vtrnq_f32(rows[i].v[j], rows[i + 1].v[j]);
            const float32x4x2_t odd = vtrnq_f32(rows[i + 2].v[j], rows[i + 3].v[j]);
            out[4 * j].v[i / 4] = vcombine_f32(vget_low_f32(even.val[0]), vget_low_f32(odd.val[0]));
            out[4 * j + 1].v[i / 4] = vcombine_f32(vget_low_f32(even.val[1]), vget_low_f32(odd.val[1]));
            out[4 * j + 2].v[i / 4] = vcombine_f32(vget_high_f32(even.val[0]), vget_high_f32(odd.val[0]));
            out[4 * j + 3].v[i / 4] = vcombine_f32(vget_high_f32(even.val[1]), vget_high_f32(odd.val[1]));
        }
    for (int i = 0; i < 16; i++) rows[i] = out[i];
}

// How many tokens and how many strips of 16 features a product takes at a time: their sums stay in registers.
constexpr int TOKENS_IN_REGISTERS = 6, STRIPS_IN_REGISTERS = 1;
// How many tokens lie in one tile; how many are multiplied at a time, by how many blocks of units.
constexpr int TOKENS_IN_TILE = 6, TOKENS_AT_ONCE = 96, BLOCKS_AT_ONCE = 16;
// How many strips of float32 are searched at a time: they stay in the second-level cache or are streamed from the next.
constexpr int PANEL = 6;
// How many dot products at a time, of 64 partial sums each; how many sums of rows.
constexpr int ROWS_IN_REGISTERS = 1;
constexpr int SUMS_IN_REGISTERS = 4;

}  // namespace
