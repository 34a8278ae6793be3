// Operands of 16-bit whole numbers, each row by a scale of its own, and their exact products.
//
// Rows are scaled so that ‖x'‖‖w'‖, counted in whole numbers, stays below 2^31: by Cauchy-Schwarz no sum of their
// products, in whatever order, leaves 32 bits. So a row loses about √(D/12) / 46,340 of its norm: 3e-4 at D = 2304.
#pragma once
#include "search.h"

namespace {

template <class Pairs>
struct I16 {
    static constexpr Long K = 32, DIRECTLY = 0;
    static constexpr int STRIPS = 6;
    static constexpr bool KEPT = true, WHOLE = true;
    static constexpr double rounding(Long) { return 0x1p-22; }  // made a float and scaled: three roundings
    struct Session {};

    struct Row {
        const float* row;
        Long d;
        double size;
        float step = 0, times = 0;
        Squares off;

        void open(const float* values, Long count) {
            row = values, d = count;
            Squares all;
            Lanes most = Lanes::zero();
            for (Long k = 0; k < d; k += 16) {
                const Lanes some = Lanes::some(row + k, d - k);
                all.add(some);
                most = larger(larger(some, Lanes::zero() - some), most);
            }
            size = all.norm();
            // Rounding lengthens a row by half a step for each element, at most √D / 2 in all.
            const double step_now = std::max(size / (46339 - std::sqrt(double(d)) / 2), greatest(most) / 32767.0);
            if (step_now > 0x1p-120) step = above(step_now), times = 1 / step_now;  // of smaller rows all is lost
        }
        Lanes unit(Long k) {  // 32 values
            return pairs(rounded(k), rounded(k + 16));
        }
        Lanes rounded(Long k) {
            const Lanes values = Lanes::some(row + k, d - k), whole = nearest(values * Lanes::all(times));
            off.add(minus(values, whole, Lanes::all(step)));
            return whole;
        }
        double norm() const { return size; }
        double lost() const { return off.norm(); }
        float scale() const { return step; }
    };

    static const char* strips(const Query& q, Scratch&, Long feature, int, Long blocks) {
        return static_cast<const char*>(q.strips) + feature / 16 * blocks * BLOCK;
    }

    static void multiply(const char* tiles, int tokens, const char* strips, int n, Long blocks, float* out,
                         Long stride) {
        ::multiply<Pairs>(tiles, tokens, strips, n, blocks, out, stride);
    }
};

}  // namespace
