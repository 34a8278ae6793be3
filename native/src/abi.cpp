// The library as C sees it: plain pointers to contiguous arrays, which the caller keeps alive. A function that needs
// memory of its own says whether it had enough.
#include <new>

#include "exported.h"
#include "rows.h"
#include "search.h"

namespace gsn {

namespace {

template <class Work>
bool enough_memory(Work work) {
    try {
        work();
        return true;
    } catch (const std::bad_alloc&) {
        return false;
    }
}

// Calls use(row, id, z) for the entries of tokens [first, last), ascending.
template <class Use>
void each_entry(const Found& found, Long first, Long last, Use use) {
    for (const Piece& piece : found.pieces)
        if (piece.first_token < last)
            for (const Entry& entry : piece.entries) {
                const Long token = piece.first_token + entry.token;
                if (first <= token && token < last) use(token, piece.first_feature + entry.feature, entry.z);
            }
}

}  // namespace
}  // namespace gsn

using namespace gsn;

// Whether this machine's instructions do what they say, as far as that has to be tried.
GSN_API bool gsn_agrees() { return agrees(); }

// Bytes that `strips` takes.
GSN_API int64_t gsn_kept(int64_t F, int64_t D) { return way.kept(F, D); }

// norm, lost, scale: [F].
GSN_API bool gsn_pack(const float* W, int64_t F, int64_t D, void* strips, float* norm, float* lost, float* scale,
                      int threads) {
    return enough_memory([&] { way.pack({W, F, D, strips, norm, lost, scale, threads}); });
}

// The answer stays here until it is taken or dropped; null if there was not enough memory. `entries`: how many.
GSN_API void* gsn_above(const float* W, const void* strips, const float* norm, const float* lost, const float* scale,
                        const float* x, const float* b, const float* floor, const float* token_floor, int64_t T,
                        int64_t F, int64_t D, int threads, int64_t* entries) {
    const Query query{W, strips, norm, lost, scale, x, b, floor, token_floor, T, F, D, threads};
    Found* found = nullptr;
    enough_memory([&] {
        found = new Found(way.above(query));
        *entries = 0;
        for (const Piece& piece : found->pieces) *entries += piece.entries.size();
    });
    return found;
}

// offsets: [T + 1]; ids, values: [entries]. Frees the answer, whatever happens.
GSN_API bool gsn_take(void* answer, int64_t* offsets, int32_t* ids, float* values, int threads) {
    std::unique_ptr<Found> found(static_cast<Found*>(answer));
    return enough_memory([&] {
        const auto first = [&](Long part) { return found->tokens * part / threads; };
        std::fill_n(offsets, found->tokens + 1, 0);
        parallel_for(threads, threads, [&](Long part, int) {
            each_entry(*found, first(part), first(part + 1), [&](Long token, Long, float) { offsets[token + 1]++; });
        });
        for (Long t = 0; t < found->tokens; t++) offsets[t + 1] += offsets[t];
        std::vector<int64_t> next(offsets, offsets + found->tokens);
        parallel_for(threads, threads, [&](Long part, int) {
            each_entry(*found, first(part), first(part + 1), [&](Long token, Long id, float z) {
                const int64_t to = next[token]++;
                ids[to] = id;
                values[to] = z;
            });
        });
    });
}

GSN_API void gsn_drop(void* answer) { delete static_cast<Found*>(answer); }

GSN_API bool gsn_dots(const int64_t* offsets, const int32_t* ids, int64_t rows, int64_t columns, const float* left,
              const float* right, int64_t D, float* out, int threads) {
    return enough_memory([&] { dots({offsets, ids, rows, columns}, left, right, D, out, threads); });
}

GSN_API bool gsn_sums(const int64_t* offsets, const int32_t* ids, const float* values, int64_t rows, int64_t columns,
              const float* table, int64_t D, float* out, int threads) {
    return enough_memory([&] { sums({offsets, ids, rows, columns}, values, table, D, out, threads); });
}

GSN_API bool gsn_transposed(const int64_t* offsets, const int32_t* ids, int64_t rows, int64_t columns,
                            int64_t* to_offsets, int32_t* to_rows, int64_t* from, int threads) {
    return enough_memory([&] { transposed({offsets, ids, rows, columns}, to_offsets, to_rows, from, threads); });
}

