#include "rows.h"

#include <algorithm>
#include <memory>

#include "dot.h"
#include "parallel.h"

namespace {

// out = sum of value · row over V·16 columns, whose sums stay in registers; over `last` columns, where V is 1.
template <int V>
void sum_of(const int32_t* ids, const float* values, Long count, const float* table, Long D, float* out,
            Long last) {
    constexpr Long AHEAD = 4;
    Lanes sum[V];
    for (auto& one : sum) one = Lanes::zero();
    for (Long e = 0; e < count; e++) {
        const float* row = table + ids[e] * D;
        if (e + AHEAD < count) {
            const float* later = table + ids[e + AHEAD] * D;
            for (int v = 0; v < V; v++) __builtin_prefetch(later + 16 * v);
        }
        const Lanes value = Lanes::all(values[e]);
#pragma GCC unroll 16
        for (int v = 0; v < V; v++)
            sum[v] = plus(sum[v], value, V > 1 ? Lanes::load(row + 16 * v) : Lanes::some(row, last));
    }
    for (int v = 0; v < V; v++) V > 1 ? sum[v].store(out + 16 * v) : sum[v].store_some(out, last);
}

}  // namespace

namespace gsn {

void sums(const Pattern& pattern, const float* values, const float* table, Long D, float* out, int threads) {
    // All threads at the same few columns: of a large table they fit the last-level cache together.
    constexpr Long WIDTH = 256, ROWS = 64;
    const Long parts = (pattern.rows + ROWS - 1) / ROWS, blocks = (D + WIDTH - 1) / WIDTH;
    parallel_for(threads, parts * blocks, [&](Long item, int) {
        const Long first = item % parts * ROWS, column = item / parts * WIDTH;
        for (Long row = first; row < std::min(first + ROWS, pattern.rows); row++) {
            const Long start = pattern.offsets[row], count = pattern.offsets[row + 1] - start;
            Long c = column;
            const Long end = std::min(column + WIDTH, D);
            const auto part = [&](auto sum, Long width) {
                sum(pattern.ids + start, values + start, count, table + c, D, out + row * D + c, end - c);
                c += width;
            };
            while (end - c >= 16 * SUMS_IN_REGISTERS) part(sum_of<SUMS_IN_REGISTERS>, 16 * SUMS_IN_REGISTERS);
            while (end - c >= 64) part(sum_of<4>, 64);
            while (end - c > 0) part(sum_of<1>, 16);
        }
    });
}

// A counting sort. Each worker has some of the columns and passes over all entries: stable, and no two write to the
// same place.
void transposed(const Pattern& pattern, int64_t* offsets, int32_t* rows, int64_t* from, int threads) {
    const Long entries = pattern.entries(), parts = entries < 1 << 16 ? 1 : threads;
    const auto first = [&](Long part) { return pattern.columns * part / parts; };
    std::fill_n(offsets, pattern.columns + 1, 0);
    parallel_for(threads, parts, [&](Long part, int) {
        const int32_t low = first(part), high = first(part + 1);
        for (Long e = 0; e < entries; e++)
            if (pattern.ids[e] >= low && pattern.ids[e] < high) offsets[pattern.ids[e] + 1]++;
    });
    for (Long c = 0; c < pattern.columns; c++) offsets[c + 1] += offsets[c];
    parallel_for(threads, parts, [&](Long part, int) {
        const int32_t low = first(part), high = first(part + 1);
        std::unique_ptr<int64_t[]> next(new int64_t[high - low + 1]);
        std::copy(offsets + low, offsets + high, next.get());
        for (Long row = 0; row < pattern.rows; row++)
            for (Long e = pattern.offsets[row]; e < pattern.offsets[row + 1]; e++)
                if (pattern.ids[e] >= low && pattern.ids[e] < high) {
                    const int64_t to = next[pattern.ids[e] - low]++;
                    rows[to] = row;
                    from[to] = e;
                }
    });
}

void dots(const Pattern& pattern, const float* left, const float* right, Long D, float* out, int threads) {
    const Long entries = pattern.entries();
    if (entries < 2 * pattern.columns) {  // row by row
        parallel_for(threads, pattern.rows, [&](Long row, int) {
            const Long start = pattern.offsets[row];
            ::dots(
                left + row * D, pattern.offsets[row + 1] - start, D,
                [&](Long i) { return right + pattern.ids[start + i] * D; },
                [&](Long i, float product) { out[start + i] = product; });
        });
        return;
    }
    // Most of `right` is needed, and more than once: each of its rows is read once, beside the few rows of `left`.
    std::unique_ptr<int64_t[]> offsets(new int64_t[pattern.columns + 1]), from(new int64_t[entries]);
    std::unique_ptr<int32_t[]> rows(new int32_t[entries]);
    transposed(pattern, offsets.get(), rows.get(), from.get(), threads);
    constexpr Long EACH = 16;
    parallel_for(threads, (pattern.columns + EACH - 1) / EACH, [&](Long item, int) {
        for (Long id = item * EACH; id < std::min(item * EACH + EACH, pattern.columns); id++) {
            const Long start = offsets[id];
            ::dots(
                right + id * D, offsets[id + 1] - start, D, [&](Long i) { return left + rows[start + i] * D; },
                [&](Long i, float product) { out[from[start + i]] = product; });
        }
    });
}

}  // namespace gsn
