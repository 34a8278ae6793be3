// The search by float32 products, for machines without quicker ones. Its margin is that of rounding alone.
#include "search.h"

namespace {

struct F32 {
    static constexpr Long K = 16, DIRECTLY = 48;  // so few tokens are refined without a search
    static constexpr int STRIPS = PANEL;
    static constexpr bool KEPT = false, WHOLE = false;
    static constexpr double rounding(Long k) { return rounding_of_sum(k); }
    struct Session {};

    struct Row {
        const float* row;
        Long d;
        Squares all;
        void open(const float* values, Long count) { row = values, d = count; }
        Lanes unit(Long k) {
            const Lanes values = Lanes::some(row + k, d - k);
            all.add(values);
            return values;
        }
        double norm() const { return all.norm(); }
        double lost() const { return 0; }
        float scale() const { return 1; }
    };

    static Lanes add(Lanes sum, Lanes x, Lanes w) { return plus(sum, x, w); }

    static const char* strips(const Query& q, Scratch& own, Long feature, int features, Long blocks) {
        if (!own.strips) own.strips.reset(new Line[STRIPS * 16 * blocks]);
        char* to = own.strips[0].bytes;
        for (int first = 0; first < features; first += 16)
            for (Long k = 0; k < blocks; k++) {
                Lanes rows[16];
                for (int f = 0; f < 16; f++) {  // a feature that is not there repeats the last one: nobody looks
                    const float* row = q.W + (feature + std::min(first + f, features - 1)) * q.D;
                    rows[f] = Lanes::some(row + k * K, q.D - k * K);
                }
                transpose(rows);
                for (const Lanes& one : rows) one.store(to), to += 64;
            }
        return own.strips[0].bytes;
    }

    static void multiply(const char* tiles, int tokens, const char* strips, int n, Long blocks, float* out,
                         Long stride) {
        ::multiply<F32>(tiles, tokens, strips, n, blocks, out, stride);
    }
};

}  // namespace

const Finder gsn::way = finder<F32>;
bool gsn::agrees() { return true; }
