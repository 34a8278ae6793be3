// The search by AVX-512 bfloat16 products, and the packing that AMX shares.
#include "bf16.h"
#include "transpose.h"

namespace gsn {

Found search_bf16(const Query& query) { return Search<Bf16>(query).run(); }

void pack_bf16(const float* W, long F, long D, void* strips, float* norm, float* lost, int threads) {
    const long blocks = ceil_div(D, Bf16::K);
    parallel_for(threads, ceil_div(F, 16), [&](long strip, int) {
        char* to = static_cast<char*>(strips) + strip * blocks * BLOCK;
        const long features = std::min(F - 16 * strip, 16L);
        Squares all[16], off[16];
        for (long k = 0; k < blocks; k++, to += BLOCK) {
            __m512 rows[16];
            for (long f = 0; f < 16; f++)  // a feature that is not there repeats the last one: nobody looks
                rows[f] = Bf16::unit(W + (16 * strip + std::min(f, features - 1)) * D, k * Bf16::K, D, all[f], off[f]);
            transpose(rows);
            for (int unit = 0; unit < 16; unit++) _mm512_storeu_ps(to + 64 * unit, rows[unit]);
        }
        for (long f = 0; f < features; f++) {
            const double rounding = rounding_of_product(blocks * Bf16::K) * (all[f].norm() + off[f].norm());
            norm[16 * strip + f] = at_least(all[f].norm());
            lost[16 * strip + f] = at_least(off[f].norm() + rounding);
        }
    });
}

}  // namespace gsn
