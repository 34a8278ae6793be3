#include "rows.h"

#include <algorithm>
#include <memory>

#include "dot.h"
#include "parallel.h"

namespace {

// out = sum of value · row over V·16 columns, whose sums stay in registers. `last`: which lanes of the last 16 exist.
template <int V>
void sum_of(const int32_t* ids, const float* values, long count, const float* table, long D, float* out,
            __mmask16 last) {
    constexpr long AHEAD = 4;
    __m512 sum[V];
    for (auto& one : sum) one = _mm512_setzero_ps();
    for (long e = 0; e < count; e++) {
        const float* row = table + ids[e] * D;
        if (e + AHEAD < count) {
            const float* later = table + ids[e + AHEAD] * D;
            for (int v = 0; v < V; v++) _mm_prefetch(reinterpret_cast<const char*>(later + 16 * v), _MM_HINT_T0);
        }
        const __m512 value = _mm512_set1_ps(values[e]);
#pragma GCC unroll 16
        for (int v = 0; v < V; v++)
            sum[v] = _mm512_fmadd_ps(value, _mm512_maskz_loadu_ps(v == V - 1 ? last : 0xffff, row + 16 * v), sum[v]);
    }
    for (int v = 0; v < V; v++) _mm512_mask_storeu_ps(out + 16 * v, v == V - 1 ? last : 0xffff, sum[v]);
}

}  // namespace

namespace gsn {

void sums(const Pattern& pattern, const float* values, const float* table, long D, float* out, int threads) {
    // All threads at the same few columns: of a large table they fit the last-level cache together.
    constexpr long WIDTH = 256, ROWS = 64;
    const long parts = (pattern.rows + ROWS - 1) / ROWS, blocks = (D + WIDTH - 1) / WIDTH;
    parallel_for(threads, parts * blocks, [&](long item, int) {
        const long first = item % parts * ROWS, column = item / parts * WIDTH;
        for (long row = first; row < std::min(first + ROWS, pattern.rows); row++) {
            const long start = pattern.offsets[row], count = pattern.offsets[row + 1] - start;
            long c = column;
            const long end = std::min(column + WIDTH, D);
            const auto part = [&](auto sum, long width, __mmask16 last) {
                sum(pattern.ids + start, values + start, count, table + c, D, out + row * D + c, last);
                c += width;
            };
            while (end - c >= 256) part(sum_of<16>, 256, 0xffff);
            while (end - c >= 64) part(sum_of<4>, 64, 0xffff);
            while (end - c > 0) part(sum_of<1>, 16, lanes(end - c));
        }
    });
}

// A counting sort. Each worker has some of the columns and passes over all entries: stable, and no two write to the
// same place.
void transposed(const Pattern& pattern, int64_t* offsets, int32_t* rows, int64_t* from, int threads) {
    const long entries = pattern.entries(), parts = entries < 1 << 16 ? 1 : threads;
    const auto first = [&](long part) { return pattern.columns * part / parts; };
    std::fill_n(offsets, pattern.columns + 1, 0);
    parallel_for(threads, parts, [&](long part, int) {
        const int32_t low = first(part), high = first(part + 1);
        for (long e = 0; e < entries; e++)
            if (pattern.ids[e] >= low && pattern.ids[e] < high) offsets[pattern.ids[e] + 1]++;
    });
    for (long c = 0; c < pattern.columns; c++) offsets[c + 1] += offsets[c];
    parallel_for(threads, parts, [&](long part, int) {
        const int32_t low = first(part), high = first(part + 1);
        std::unique_ptr<int64_t[]> next(new int64_t[high - low + 1]);
        std::copy(offsets + low, offsets + high, next.get());
        for (long row = 0; row < pattern.rows; row++)
            for (long e = pattern.offsets[row]; e < pattern.offsets[row + 1]; e++)
                if (pattern.ids[e] >= low && pattern.ids[e] < high) {
                    const int64_t to = next[pattern.ids[e] - low]++;
                    rows[to] = row;
                    from[to] = e;
                }
    });
}

void dots(const Pattern& pattern, const float* left, const float* right, long D, float* out, int threads) {
    const long entries = pattern.entries();
    if (entries < 2 * pattern.columns) {  // row by row
        parallel_for(threads, pattern.rows, [&](long row, int) {
            const long start = pattern.offsets[row];
            ::dots(
                left + row * D, pattern.offsets[row + 1] - start, D,
                [&](long i) { return right + pattern.ids[start + i] * D; },
                [&](long i, float product) { out[start + i] = product; });
        });
        return;
    }
    // Most of `right` is needed, and more than once: each of its rows is read once, beside the few rows of `left`.
    std::unique_ptr<int64_t[]> offsets(new int64_t[pattern.columns + 1]), from(new int64_t[entries]);
    std::unique_ptr<int32_t[]> rows(new int32_t[entries]);
    transposed(pattern, offsets.get(), rows.get(), from.get(), threads);
    constexpr long EACH = 16;
    parallel_for(threads, (pattern.columns + EACH - 1) / EACH, [&](long item, int) {
        for (long id = item * EACH; id < std::min(item * EACH + EACH, pattern.columns); id++) {
            const long start = offsets[id];
            ::dots(
                right + id * D, offsets[id + 1] - start, D, [&](long i) { return left + rows[start + i] * D; },
                [&](long i, float product) { out[from[start + i]] = product; });
        }
    });
}

}  // namespace gsn
