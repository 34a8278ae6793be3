// The same where one instruction multiplies and adds them (VNNI).
#include "i16.h"

namespace {

struct PairsOfWhole {
#ifdef __AVX512F__
    static Lanes add(Lanes sum, Lanes x, Lanes w) {
        const auto whole = [](Lanes one) { return _mm512_castps_si512(one.v); };
        return {_mm512_castsi512_ps(_mm512_dpwssd_epi32(whole(sum), whole(x), whole(w)))};
    }
#else
    static __m256 add(__m256 sum, __m256 x, __m256 w) {
        const auto whole = [](__m256 one) { return _mm256_castps_si256(one); };
        return _mm256_castsi256_ps(_mm256_dpwssd_avx_epi32(whole(sum), whole(x), whole(w)));
    }
    static Lanes add(Lanes sum, Lanes x, Lanes w) {
        return {add(sum.low, x.low, w.low), add(sum.high, x.high, w.high)};
    }
#endif
};

}  // namespace

const Finder gsn::way = finder<I16<PairsOfWhole>>;
bool gsn::agrees() { return true; }
