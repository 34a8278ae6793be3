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
#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "dot.h"
#include "parallel.h"

namespace gsn {

struct Query {
    const float* W;  // [F, D]
    const void* strips;
    const float *norm, *lost, *scale;  // [F]; what pack made of W
    const float* x;                    // [T, D]
    const float *b, *floor;            // [F]
    const float* token_floor;          // [T] or null
    Long T, F, D;
    int threads;
};

struct Weights {  // and where to put what pack makes of them
    const float* W;
    Long F, D;
    void* strips;
    float *norm, *lost, *scale;
    int threads;
};

struct Entry {
    uint16_t token, feature;  // counted from the piece's first
    float z;
};

struct Piece {  // of the answer: some tokens by some features. For each token its features ascend.
    Long first_token, first_feature;
    std::vector<Entry> entries;
};

struct Found {
    Long tokens;
    std::vector<Piece> pieces;  // for each token its pieces ascend too
};

struct alignas(64) Line {
    char bytes[64];
};

// Operands lie in blocks of 64 bytes times 16: 16 tokens by 16 units, or 16 units by 16 features. A unit is what one
// lane multiplies at a time: a float, or a pair of bfloat16 or of whole numbers.
constexpr Long BLOCK = 1024;
constexpr Long AT_ONCE = 1024;  // packed at a time: with their float32 rows they fit the last-level cache

constexpr double rounding_of_sum(Long k) { return (k + 64) * 0x1p-23; }         // twice what k fused additions may lose
constexpr double rounding_of_dot(Long d) { return (d / 64 + 16) * 0x1p-23; }    // likewise, in dot.h's order
constexpr double underflow(Long k) { return (k + 64) * 0x1p-124; }              // denormals flushed, k times

struct Tokens {  // packed
    std::unique_ptr<Line[]> tiles;
    std::vector<float> alpha, beta, scale;
};

struct Scratch {  // one worker's
    std::unique_ptr<Line[]> strips;
    std::vector<uint16_t> masks;  // [strip, token], a bit a feature
    std::vector<uint16_t> tokens;
    alignas(64) float products[96 * 96];
};

struct Finder {
    Long (*kept)(Long F, Long D);  // bytes of strips
    void (*pack)(const Weights&);
    Found (*above)(const Query&);
};

bool agrees();
extern const Finder way;  // a library has one: the fastest with its instructions

inline Long ceil_div(Long a, Long b) { return (a + b - 1) / b; }

}  // namespace gsn

namespace {  // each including file has its own instructions

using namespace gsn;

// out[m, n] = (or +=, if there is more) tokens · features, whose sums stay in registers.
template <class Unit, int M, int N>
void product(const char* a, const char* b, Long strip, Long blocks, float* out, Long stride, bool more) {
    Lanes sum[M][N];
    for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++) sum[m][n] = more ? Lanes::load(out + m * stride + 16 * n) : Lanes::zero();
    for (; blocks--; a += 64 * TOKENS_IN_TILE, b += BLOCK)
#pragma GCC unroll 4
        for (int u = 0; u < 16; u++) {
            Lanes w[N];
#pragma GCC unroll 3
            for (int n = 0; n < N; n++) w[n] = Lanes::load(b + n * strip + 64 * u);
#pragma GCC unroll 8
            for (int m = 0; m < M; m++) {
                const Lanes x = Lanes::spread(a + 64 * m + 4 * u);
#pragma GCC unroll 3
                for (int n = 0; n < N; n++) sum[m][n] = Unit::add(sum[m][n], x, w[n]);
            }
        }
    for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++) sum[m][n].store(out + m * stride + 16 * n);
}

template <class Unit, size_t... I>
constexpr auto products(std::index_sequence<I...>) {  // of 1, 2, ... tokens by 1, 2, ... strips
    constexpr int M = TOKENS_IN_REGISTERS;
    return std::array{product<Unit, I % M + 1, I / M + 1>...};
}

// How the blocks of a row are passed over: some at a time, so that what belongs to them stays near the registers.
struct Passes {
    Long blocks, depth;
    explicit Passes(Long n) : blocks(n), depth(ceil_div(n, ceil_div(n, BLOCKS_AT_ONCE))) {}
    template <class Use>
    void each(Use use) const {  // use(first block, how many)
        for (Long k = 0; k < blocks; k += depth) use(k, std::min(depth, blocks - k));
    }
};

// All tokens by all strips. Tokens lie in the order in which they are wanted: pass, tile, block, token.
template <class Unit>
void multiply(const char* tiles, int tokens, const char* strips, int n_strips, Long blocks, float* out, Long stride) {
    constexpr int M = TOKENS_IN_REGISTERS, N = STRIPS_IN_REGISTERS;
    static constexpr auto kernels = products<Unit>(std::make_index_sequence<M * N>());
    const Long strip = blocks * BLOCK;
    Passes(blocks).each([&](Long k, Long count) {
        const char* pass = tiles + k * 64 * TOKENS_AT_ONCE;
        for (int s = 0; s < n_strips; s += N)
            for (int t = 0; t < tokens; t += M) {
                const int m = std::min(tokens - t, M), n = std::min(n_strips - s, N);
                const char* a = pass + 64 * (t / TOKENS_IN_TILE * TOKENS_IN_TILE * count + t % TOKENS_IN_TILE);
                const char* b = strips + s * strip + k * BLOCK;
                kernels[(n - 1) * M + m - 1](a, b, strip, count, out + t * stride + 16 * s, stride, k > 0);
            }
    });
}

// Measures all rows of W, and keeps them as strips if the product wants to find them so.
template <class Product>
void pack(const Weights& to) {
    const Long blocks = ceil_div(to.D, Product::K);
    parallel_for(to.threads, ceil_div(to.F, 16), [&](Long strip, int) {
        char* line = static_cast<char*>(to.strips) + strip * blocks * BLOCK;
        const Long features = std::min(to.F - 16 * strip, Long(16));
        typename Product::Row row[16];
        for (Long f = 0; f < 16; f++)  // a feature that is not there repeats the last one: nobody looks
            row[f].open(to.W + (16 * strip + std::min(f, features - 1)) * to.D, to.D);
        for (Long k = 0; k < blocks; k++) {
            Lanes units[16];
            for (Long f = 0; f < 16; f++) units[f] = row[f].unit(k * Product::K);
            if constexpr (!Product::KEPT) continue;
            transpose(units);
            for (const Lanes& one : units) one.store(line), line += 64;
        }
        for (Long f = 0; f < features; f++) {
            const double rounding = Product::rounding(blocks * Product::K) * (row[f].norm() + row[f].lost());
            to.norm[16 * strip + f] = at_least(row[f].norm());
            to.lost[16 * strip + f] = at_least(row[f].lost() + rounding);
            to.scale[16 * strip + f] = row[f].scale();
        }
    });
}

template <class Product>
class Search {
    const Query& q;
    const Long blocks = ceil_div(q.D, Product::K);
    const Long panels = ceil_div(q.F, 16 * Product::STRIPS);
    std::vector<Scratch> scratch{size_t(q.threads)};
    Tokens packed;

   public:
    explicit Search(const Query& query) : q(query) {}

    Found run() {
        Found found{q.T, {}};
        if (!q.F) return found;
        for (Long first = 0; first < q.T; first += AT_ONCE) {
            const Long count = std::min(q.T - first, AT_ONCE);
            pack(first, count);
            // Few panels: tokens are shared out as well.
            const Long want = std::max(Long(1), std::min(ceil_div(4 * q.threads, panels), count / 256));
            const Long each = ceil_div(ceil_div(count, want), TOKENS_AT_ONCE) * TOKENS_AT_ONCE;
            const Long parts = ceil_div(count, each);
            const size_t before = found.pieces.size();
            found.pieces.resize(before + parts * panels);
            parallel_for(q.threads, parts * panels, [&](Long item, int worker) {
                const Long start = item / panels * each, length = std::min(each, count - start);
                search(found.pieces[before + item], scratch[worker], first, start, length, item % panels);
            });
        }
        return found;
    }

   private:
    void pack(Long first, Long count) {
        constexpr Long EACH = TOKENS_IN_TILE, ALL = TOKENS_AT_ONCE;
        packed.tiles.reset(new Line[ceil_div(count, ALL) * ALL * blocks]);
        packed.alpha.resize(count);
        packed.beta.resize(count);
        packed.scale.resize(count);
        parallel_for(q.threads, ceil_div(count, EACH), [&](Long tile, int) {
            for (Long t = EACH * tile; t < std::min(count, EACH * tile + EACH); t++) {
                typename Product::Row row;
                row.open(q.x + (first + t) * q.D, q.D);
                Line* lines = &packed.tiles[t / ALL * ALL * blocks];
                Passes(blocks).each([&](Long k, Long depth) {
                    Line* to = lines + k * ALL + t % ALL / EACH * EACH * depth + t % EACH;
                    for (Long last = k + depth; k < last; k++, to += EACH) row.unit(k * Product::K).store(to);
                });
                packed.alpha[t] = at_least(row.lost() + rounding_of_dot(q.D) * row.norm());
                packed.beta[t] = at_least(row.norm() + row.lost());
                packed.scale[t] = row.scale();
            }
        });
    }

    void search(Piece& piece, Scratch& own, Long first, Long start, Long length, Long panel) {
        const Long feature = panel * 16 * Product::STRIPS;
        const int features = std::min<Long>(q.F - feature, 16 * Product::STRIPS);
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

    static Long padded(Long length) { return ceil_div(length, 32) * 32; }

    // Candidates of one panel, as masks.
    void find(Scratch& own, Long first, Long start, Long length, Long feature, int features) {
        constexpr int width = 16 * Product::STRIPS;
        const int strips = ceil_div(features, 16);
        alignas(64) float low[width], bias[width], norm[width], lost[width], scale[width];
        float widest = 0;
        for (int f = 0; f < width; f++) {
            const bool there = f < features;
            const double floor = there ? q.floor[feature + f] : INF, b = there ? q.b[feature + f] : 0;
            const double tiny = underflow(blocks * Product::K);
            low[f] = below(floor - b - 0x1p-21 * (std::fabs(floor) + std::fabs(b)) - tiny);
            bias[f] = above(b + 0x1p-21 * std::fabs(b) + tiny);
            norm[f] = there ? q.norm[feature + f] : 0;
            lost[f] = there ? q.lost[feature + f] : 0;
            scale[f] = there ? q.scale[feature + f] : 0;
            if (!(norm[f] <= widest)) widest = norm[f];
        }
        const char* strip = Product::strips(q, own, feature, features, blocks);
        const char* tiles = packed.tiles[start * blocks].bytes;
        [[maybe_unused]] typename Product::Session session;
        for (Long t = 0; t < length; t += TOKENS_AT_ONCE) {
            const int count = std::min<Long>(TOKENS_AT_ONCE, length - t);
            Product::multiply(tiles + t * blocks * 64, count, strip, strips, blocks, own.products, width);
            for (int m = 0; m < count; m++) {
                const float beta = packed.beta[start + t + m];
                // Where a partial sum could overflow nothing is known.
                const float alpha = beta * widest <= 0x1p120f ? packed.alpha[start + t + m] : INF;
                const float token = q.token_floor ? q.token_floor[first + t + m] : -INF;
                [[maybe_unused]] const float scaled = packed.scale[start + t + m];
                const Lanes a = Lanes::all(alpha), c = Lanes::all(beta);
                const Lanes floor = Lanes::all(token - 0x1p-21f * std::fabs(token));
                for (int s = 0; s < strips; s++) {
                    const auto at = [s](const float* values) { return Lanes::load(values + 16 * s); };
                    const Lanes least = minus(minus(larger(floor - at(bias), at(low)), a, at(norm)), c, at(lost));
                    Lanes z = at(own.products + m * width);
                    if constexpr (Product::WHOLE) z = of_whole(z) * (Lanes::all(scaled) * at(scale));
                    own.masks[s * padded(length) + t + m] = not_less(z, least);
                }
            }
        }
    }

    // The candidates' products in float32: feature by feature, so that its row stays in the first-level cache; or, when
    // there are many, four tokens by all features of the panel, which stay in the second-level one.
    void refine(Piece& piece, Scratch& own, Long length, int features) {
        const Long stride = padded(length);
        if (features % 16)  // of the last strip not all are there
            for (Long t = 0; t < stride; t++) own.masks[features / 16 * stride + t] &= (1 << features % 16) - 1;
        Long candidates = 0;
        const int strips = ceil_div(features, 16);
        for (Long i = 0; i < strips * stride; i++) candidates += __builtin_popcount(own.masks[i]);
        piece.entries.reserve(candidates);
        if (candidates > length * features / 8) {
            for (Long t = 0; t < length; t += 4)
                for (int f = 0; f < features; f++) {
                    uint64_t four = 0;
                    std::memcpy(&four, &own.masks[f / 16 * stride + t], 8);
                    if (four & (0x0001000100010001ull << f % 16)) {
                        const int count = std::min(Long(4), length - t);
                        decide(piece, f, count, [&](Long i) { return t + i; });
                    }
                }
            return;
        }
        own.tokens.resize(stride);
        for (int f = 0; f < features; f++) {
            const Long count = tokens_of(own, f, stride);
            decide(piece, f, count, [&](Long i) { return own.tokens[i]; });
        }
    }

    static Long tokens_of(Scratch& own, int f, Long stride) {
        Long count = 0;
        for (Long t = 0; t < stride; t += 32) {
            uint32_t set = which(&own.masks[f / 16 * stride + t], 1 << f % 16);
            for (; set; set &= set - 1) own.tokens[count++] = t + __builtin_ctz(set);
        }
        return count;
    }

    template <class Token>
    void decide(Piece& piece, int f, Long count, Token token) {
        const Long feature = piece.first_feature + f;
        dots(
            q.W + feature * q.D, count, q.D, [&](Long i) { return q.x + (piece.first_token + token(i)) * q.D; },
            [&](Long i, float product) {
                const float z = product + q.b[feature];
                const Long t = token(i);
                if (z > q.floor[feature] && (!q.token_floor || z > q.token_floor[piece.first_token + t]))
                    piece.entries.push_back({uint16_t(t), uint16_t(f), z});
            });
    }
};

template <class Product>
constexpr Finder finder{
    [](Long F, Long D) { return Product::KEPT ? ceil_div(F, 16) * ceil_div(D, Product::K) * BLOCK : 0; },
    pack<Product>,
    [](const Query& query) { return Search<Product>(query).run(); },
};

}  // namespace
