// What can be done with a sparse matrix in compressed rows.
#pragma once
#include "long.h"

namespace gsn {

struct Pattern {
    const int64_t* offsets;  // [rows + 1]
    const int32_t* ids;      // ascending within a row
    Long rows, columns;
    Long entries() const { return offsets[rows]; }
};

// out[entry] = left[row] · right[id]
void dots(const Pattern&, const float* left, const float* right, Long D, float* out, int threads);

// out[row] = sum of value · table[id], in the entries' order
void sums(const Pattern&, const float* values, const float* table, Long D, float* out, int threads);

// Columns as rows: `from` says for each new entry which old one it was.
void transposed(const Pattern&, int64_t* offsets, int32_t* rows, int64_t* from, int threads);

}  // namespace gsn
