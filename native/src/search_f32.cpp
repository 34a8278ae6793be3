// The search by float32 products, for machines without bfloat16 instructions. Its margin is that of rounding alone.
#include "search.h"
#include "transpose.h"

namespace {

struct Float {
    static __m512 add(__m512 sum, __m512 x, __m512 w) { return _mm512_fmadd_ps(x, w, sum); }
};

struct F32 {
    static constexpr long K = 16, DIRECTLY = 48;  // so few tokens are refined without a search
    static constexpr int STRIPS = 3;
    struct Session {};

    static __m512 unit(const float* row, long k, long d, Squares& all, Squares&) {
        const __m512 values = _mm512_maskz_loadu_ps(lanes(d - k), row + k);
        all.add(values);
        return values;
    }

    static const char* strips(const Query& q, Scratch& own, long feature, int features, long blocks) {
        if (!own.strips) own.strips.reset(new Line[STRIPS * 16 * blocks]);
        char* to = own.strips[0].bytes;
        for (int first = 0; first < features; first += 16)
            for (long k = 0; k < blocks; k++, to += BLOCK) {
                __m512 rows[16];
                for (int f = 0; f < 16; f++) {  // a feature that is not there repeats the last one: nobody looks
                    const float* row = q.W + (feature + std::min(first + f, features - 1)) * q.D;
                    rows[f] = _mm512_maskz_loadu_ps(lanes(q.D - k * K), row + k * K);
                }
                transpose(rows);
                for (int unit = 0; unit < 16; unit++) _mm512_store_ps(to + 64 * unit, rows[unit]);
            }
        return own.strips[0].bytes;
    }

    static void multiply(const char* tiles, int tokens, const char* strips, int n, long blocks, float* out,
                         long stride) {
        ::multiply<Float>(tiles, tokens, strips, n, blocks, out, stride);
    }
};

}  // namespace

namespace gsn {

Found search_f32(const Query& query) { return Search<F32>(query).run(); }

void pack_f32(const float* W, long F, long D, float* norm, float* lost, int threads) {
    parallel_for(threads, F, [&](long f, int) {
        Squares all;
        for (long k = 0; k < D; k += 16) all.add(_mm512_maskz_loadu_ps(lanes(D - k), W + f * D + k));
        norm[f] = at_least(all.norm());
        lost[f] = at_least(rounding_of_product(ceil_div(D, 16) * 16) * all.norm());
    });
}

}  // namespace gsn
