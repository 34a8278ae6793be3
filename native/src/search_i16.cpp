// The search by 16-bit whole numbers: two products in each lane, by the instructions of AVX2.
#include "i16.h"

namespace {

struct PairsOfWhole {
    static __m256 add(__m256 sum, __m256 x, __m256 w) {
        const __m256i both = _mm256_madd_epi16(_mm256_castps_si256(x), _mm256_castps_si256(w));
        return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(sum), both));
    }
    static Lanes add(Lanes sum, Lanes x, Lanes w) {
        return {add(sum.low, x.low, w.low), add(sum.high, x.high, w.high)};
    }
};

}  // namespace

const Finder gsn::way = finder<I16<PairsOfWhole>>;
bool gsn::agrees() { return true; }
