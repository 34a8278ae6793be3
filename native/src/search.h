// Which (token, feature) pairs have x·w + b above their floor. A fast product finds the candidates, with a margin that
// is a proof; the float32 product of dot.h decides. What multiplies fast is the files' work that include this one.
//
// Why nothing is missed. z = fl(s + b) > floor only if s > floor - b, for rounding is monotonic. With x', w' the
// rounded operands and a the fast product,
//     |s - a| <= |s - x·w| + |x·w - x'·w'| + |x'·w' - a|
//             <= e ‖x‖‖w‖  + ‖x - x'‖‖w‖ + ‖x'‖‖w - w'‖ + e' ‖x'‖‖w'‖     (Cauchy-Schwarz)
//             <= alpha norm + beta lost,     alpha = ‖x - x'‖ + e‖x‖,  beta = ‖x'‖,  lost = ‖w - w'‖ + e'‖w'‖,
// plus what underflows. All norms are measured and rounded up. What overflows compares as "not less": a candidate.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "dot.h"
#include "parallel.h"

namespace gsn {

struct Query {
    const float* W;  // [F, D]
    const void* strips;
    const float *norm, *lost;  // [F]; what pack made of W
    const float* x;            // [T, D]
    const float *b, *floor;    // [F]
    const float* token_floor;  // [T] or null
    long T, F, D;
    int threads;
};

struct Entry {
    uint16_t token, feature;  // counted from the piece's first
    float z;
};

struct Piece {  // of the answer: some tokens by some features. For each token its features ascend.
    long first_token, first_feature;
    std::vector<Entry> entries;
};

struct Found {
    long tokens;
    std::vector<Piece> pieces;  // for each token its pieces ascend too
};

struct alignas(64) Line {
    char bytes[64];
};

// Operands lie in blocks of 64 bytes times 16: 16 tokens by 16 units, or 16 units by 16 features. A unit is what one
// lane multiplies at a time: a float, or a pair of bfloat16.
constexpr long BLOCK = 1024;
constexpr int TOKENS = 32;      // multiplied at a time
constexpr long AT_ONCE = 1024;  // packed at a time: with their float32 rows they fit the last-level cache

constexpr double rounding_of_product(long k) { return (k + 64) * 0x1p-23; }     // twice what k fused additions may lose
constexpr double rounding_of_dot(long d) { return (d / 64 + 16) * 0x1p-23; }    // likewise, in dot.h's order
constexpr double underflow(long k) { return (k + 64) * 0x1p-124; }              // denormals flushed, k times

struct Tokens {  // packed
    std::unique_ptr<Line[]> tiles;
    std::vector<float> alpha, beta;
};

struct Scratch {  // one worker's
    std::unique_ptr<Line[]> strips;
    std::vector<uint16_t> masks;  // [strip, token], a bit a feature
    std::vector<uint16_t> tokens;
    alignas(64) float products[TOKENS * 96];
};

inline long ceil_div(long a, long b) { return (a + b - 1) / b; }

}  // namespace gsn

namespace {  // each including file has its own instructions

using namespace gsn;

template <class Unit, int M, int N>
void product(const char* a, const char* b, long strip, long blocks, float* out, long stride) {
    __m512 sum[M][N];
    for (auto& row : sum)
        for (auto& one : row) one = _mm512_setzero_ps();
    for (; blocks--; a += BLOCK, b += BLOCK)
#pragma GCC unroll 4
        for (int u = 0; u < 16; u++) {
            __m512 w[N];
#pragma GCC unroll 3
            for (int n = 0; n < N; n++) w[n] = _mm512_loadu_ps(b + n * strip + 64 * u);
#pragma GCC unroll 8
            for (int m = 0; m < M; m++) {
                float pair;
                std::memcpy(&pair, a + 64 * m + 4 * u, 4);
                const __m512 x = _mm512_set1_ps(pair);
#pragma GCC unroll 3
                for (int n = 0; n < N; n++) sum[m][n] = Unit::add(sum[m][n], x, w[n]);
            }
        }
    for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++) _mm512_storeu_ps(out + m * stride + 16 * n, sum[m][n]);
}

// out[m, n] = tokens · features, 8 tokens by 3 strips of 16 features at a time: 24 sums stay in registers.
template <class Unit>
void multiply(const char* tiles, int tokens, const char* strips, int n_strips, long blocks, float* out, long stride) {
    using Kernel = void (*)(const char*, const char*, long, long, float*, long);
    static constexpr Kernel kernels[3][8] = {
        {product<Unit, 1, 1>, product<Unit, 2, 1>, product<Unit, 3, 1>, product<Unit, 4, 1>,
         product<Unit, 5, 1>, product<Unit, 6, 1>, product<Unit, 7, 1>, product<Unit, 8, 1>},
        {product<Unit, 1, 2>, product<Unit, 2, 2>, product<Unit, 3, 2>, product<Unit, 4, 2>,
         product<Unit, 5, 2>, product<Unit, 6, 2>, product<Unit, 7, 2>, product<Unit, 8, 2>},
        {product<Unit, 1, 3>, product<Unit, 2, 3>, product<Unit, 3, 3>, product<Unit, 4, 3>,
         product<Unit, 5, 3>, product<Unit, 6, 3>, product<Unit, 7, 3>, product<Unit, 8, 3>}};
    const long strip = blocks * BLOCK;
    for (int t = 0; t < tokens; t += 8) {
        const char* a = tiles + t / 16 * strip + t % 16 * 64;
        const int m = tokens - t < 8 ? tokens - t : 8;
        for (int s = 0; s < n_strips; s += 3) {
            const int n = n_strips - s < 3 ? n_strips - s : 3;
            kernels[n - 1][m - 1](a, strips + s * strip, strip, blocks, out + t * stride + 16 * s, stride);
        }
    }
}

template <class Product>
class Search {
    const Query& q;
    const long blocks = ceil_div(q.D, Product::K);
    const long panels = ceil_div(q.F, 16 * Product::STRIPS);
    std::vector<Scratch> scratch{size_t(q.threads)};
    Tokens packed;

   public:
    explicit Search(const Query& query) : q(query) {}

    Found run() {
        Found found{q.T, {}};
        if (!q.F) return found;
        for (long first = 0; first < q.T; first += AT_ONCE) {
            const long count = std::min(q.T - first, AT_ONCE);
            pack(first, count);
            // Few panels: tokens are shared out as well.
            const long want = std::max(1L, std::min(ceil_div(4 * q.threads, panels), count / 256));
            const long each = ceil_div(ceil_div(count, want), TOKENS) * TOKENS, parts = ceil_div(count, each);
            const size_t before = found.pieces.size();
            found.pieces.resize(before + parts * panels);
            parallel_for(q.threads, parts * panels, [&](long item, int worker) {
                const long start = item / panels * each, length = std::min(each, count - start);
                search(found.pieces[before + item], scratch[worker], first, start, length, item % panels);
            });
        }
        return found;
    }

   private:
    void pack(long first, long count) {
        packed.tiles.reset(new Line[ceil_div(count, 16) * 16 * blocks]);
        packed.alpha.resize(count);
        packed.beta.resize(count);
        parallel_for(q.threads, ceil_div(count, 16), [&](long tile, int) {
            for (long t = 16 * tile; t < std::min(count, 16 * tile + 16); t++) {
                char* to = packed.tiles[tile * 16 * blocks].bytes + t % 16 * 64;
                Squares all, lost;
                for (long k = 0; k < blocks; k++, to += BLOCK)
                    _mm512_store_ps(to, Product::unit(q.x + (first + t) * q.D, k * Product::K, q.D, all, lost));
                packed.alpha[t] = at_least(lost.norm() + rounding_of_dot(q.D) * all.norm());
                packed.beta[t] = at_least(all.norm() + lost.norm());
            }
        });
    }

    void search(Piece& piece, Scratch& own, long first, long start, long length, long panel) {
        const long feature = panel * 16 * Product::STRIPS;
        const int features = std::min<long>(q.F - feature, 16 * Product::STRIPS);
        piece.first_token = first + start;
        piece.first_feature = feature;
        own.masks.assign(Product::STRIPS * padded(length), 0);
        if (length <= Product::DIRECTLY)
            for (int s = 0; s < Product::STRIPS; s++)
                std::fill_n(own.masks.begin() + s * padded(length), length, 0xffff);
        else
            find(own, piece.first_token, start, length, feature, features);
        refine(piece, own, length, features);
    }

    static long padded(long length) { return ceil_div(length, 32) * 32; }

    // Candidates of one panel, as masks.
    void find(Scratch& own, long first, long start, long length, long feature, int features) {
        constexpr int width = 16 * Product::STRIPS;
        const int strips = ceil_div(features, 16);
        alignas(64) float low[width], bias[width], norm[width], lost[width];
        float widest = 0;
        for (int f = 0; f < width; f++) {
            const bool there = f < features;
            const double floor = there ? q.floor[feature + f] : INF, b = there ? q.b[feature + f] : 0;
            const double tiny = underflow(blocks * Product::K);
            low[f] = below(floor - b - 0x1p-21 * (std::fabs(floor) + std::fabs(b)) - tiny);
            bias[f] = above(b + 0x1p-21 * std::fabs(b) + tiny);
            norm[f] = there ? q.norm[feature + f] : 0;
            lost[f] = there ? q.lost[feature + f] : 0;
            if (!(norm[f] <= widest)) widest = norm[f];
        }
        const char* strip = Product::strips(q, own, feature, features, blocks);
        const char* tiles = packed.tiles[start * blocks].bytes;
        [[maybe_unused]] typename Product::Session session;
        for (long t = 0; t < length; t += TOKENS) {
            const int count = std::min<long>(TOKENS, length - t);
            Product::multiply(tiles + t * blocks * 64, count, strip, strips, blocks, own.products, width);
            for (int m = 0; m < count; m++) {
                const float beta = packed.beta[start + t + m];
                // Where a partial sum could overflow nothing is known.
                const float alpha = beta * widest <= 0x1p120f ? packed.alpha[start + t + m] : INF;
                const float token = q.token_floor ? q.token_floor[first + t + m] : -INF;
                const __m512 a = _mm512_set1_ps(alpha), c = _mm512_set1_ps(beta);
                const __m512 floor = _mm512_set1_ps(token - 0x1p-21f * std::fabs(token));
                for (int s = 0; s < strips; s++) {
                    const auto at = [s](const float* values) { return _mm512_load_ps(values + 16 * s); };
                    __m512 least = _mm512_max_ps(_mm512_sub_ps(floor, at(bias)), at(low));  // low, if the other is NaN
                    least = _mm512_fnmadd_ps(c, at(lost), _mm512_fnmadd_ps(a, at(norm), least));
                    const __m512 z = at(own.products + m * width);
                    own.masks[s * padded(length) + t + m] = _mm512_cmp_ps_mask(z, least, _CMP_NLT_UQ);
                }
            }
        }
    }

    // The candidates' products in float32: feature by feature, so that its row stays in the first-level cache; or, when
    // there are many, four tokens by all features of the panel, which stay in the second-level one.
    void refine(Piece& piece, Scratch& own, long length, int features) {
        const long stride = padded(length);
        if (features % 16)  // of the last strip not all are there
            for (long t = 0; t < stride; t++) own.masks[features / 16 * stride + t] &= (1 << features % 16) - 1;
        long candidates = 0;
        const int strips = ceil_div(features, 16);
        for (long i = 0; i < strips * stride; i++) candidates += __builtin_popcount(own.masks[i]);
        piece.entries.reserve(candidates);
        if (candidates > length * features / 8) {
            for (long t = 0; t < length; t += 4)
                for (int f = 0; f < features; f++) {
                    uint64_t four = 0;
                    std::memcpy(&four, &own.masks[f / 16 * stride + t], 8);
                    if (four & (0x0001000100010001ull << f % 16)) {
                        const int count = std::min(4L, length - t);
                        decide(piece, f, count, [&](long i) { return t + i; });
                    }
                }
            return;
        }
        own.tokens.resize(stride);
        for (int f = 0; f < features; f++) {
            const long count = tokens_of(own, f, stride);
            decide(piece, f, count, [&](long i) { return own.tokens[i]; });
        }
    }

    static long tokens_of(Scratch& own, int f, long stride) {
        const __m512i bit = _mm512_set1_epi16(1 << f % 16);
        long count = 0;
        for (long t = 0; t < stride; t += 32) {
            uint32_t set = _mm512_test_epi16_mask(_mm512_loadu_si512(&own.masks[f / 16 * stride + t]), bit);
            for (; set; set &= set - 1) own.tokens[count++] = t + __builtin_ctz(set);
        }
        return count;
    }

    template <class Token>
    void decide(Piece& piece, int f, long count, Token token) {
        const long feature = piece.first_feature + f;
        dots(
            q.W + feature * q.D, count, q.D, [&](long i) { return q.x + (piece.first_token + token(i)) * q.D; },
            [&](long i, float product) {
                const float z = product + q.b[feature];
                const long t = token(i);
                if (z > q.floor[feature] && (!q.token_floor || z > q.token_floor[piece.first_token + t]))
                    piece.entries.push_back({uint16_t(t), uint16_t(f), z});
            });
    }
};

}  // namespace

namespace gsn {
Found search_f32(const Query&);
Found search_bf16(const Query&);
Found search_amx(const Query&);
}
