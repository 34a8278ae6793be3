// The search by AMX tiles of bfloat16: 32 tokens by 32 features at a time, what is left over by AVX-512.
#include <random>

#include "bf16.h"
#include "tiles.h"

namespace {

struct Amx : Bf16 {
    struct Session {  // tiles belong to the thread
        Session() {
            TileConfig config;
            for (int t = 0; t < 8; t++) config.rows[t] = 16, config.row_bytes[t] = 64;
            tile_configure(&config);
        }
        ~Session() { tile_release(); }
    };

    static void multiply(const char* tiles, int tokens, const char* strips, int n, Long blocks, float* out,
                         Long stride) {
        const Long step = blocks * BLOCK;
        const int whole = tokens / 16 * 16;
        for (int s = 0; s < n; s += 2)
            if (whole == 32 && s + 2 <= n)
                four(tiles, strips + s * step, step, out + 16 * s, stride);
            else
                for (int t = 0; t < whole; t += 16)
                    for (int last = s; last < std::min(s + 2, n); last++)
                        one(tiles + t / 16 * step, strips + last * step, step, out + t * stride + 16 * last, stride);
        if (whole < tokens)
            Bf16::multiply(tiles + whole / 16 * step, tokens - whole, strips, n, blocks, out + whole * stride, stride);
    }

    static void four(const char* a, const char* b, Long step, float* out, Long stride) {
        tile_zero(0);
        tile_zero(1);
        tile_zero(2);
        tile_zero(3);
        for (const char* end = a + step; a != end; a += BLOCK, b += BLOCK) {
            tile_load(4, a, 64);
            tile_load(6, b, 64);
            tile_load(7, b + step, 64);
            tile_load(5, a + step, 64);
            tile_dot(0, 4, 6);
            tile_dot(1, 4, 7);
            tile_dot(2, 5, 6);
            tile_dot(3, 5, 7);
        }
        tile_store(0, out, 4 * stride);
        tile_store(1, out + 16, 4 * stride);
        tile_store(2, out + 16 * stride, 4 * stride);
        tile_store(3, out + 16 * stride + 16, 4 * stride);
    }

    static void one(const char* a, const char* b, Long step, float* out, Long stride) {
        tile_zero(0);
        for (const char* end = a + step; a != end; a += BLOCK, b += BLOCK) {
            tile_load(4, a, 64);
            tile_load(6, b, 64);
            tile_dot(0, 4, 6);
        }
        tile_store(0, out, 4 * stride);
    }
};

}  // namespace

namespace gsn {

const Finder way = finder<Amx>;

// Whether this machine's tiles say what its AVX-512 says: small whole numbers, whose sums are exact in any order.
bool agrees() {
    constexpr int strips = 3, blocks = 5, tokens = 32, stride = 16 * strips;
    std::unique_ptr<Line[]> a(new Line[2 * blocks * 16]), b(new Line[strips * blocks * 16]);
    std::minstd_rand random(1);
    const auto fill = [&](Line* lines, Long count) {
        for (Long i = 0; i < count; i++)
            for (int j = 0; j < 64; j += 2) {
                const float value = int(random() % 257) - 128;  // 8 bits: exact
                std::memcpy(lines[i].bytes + j, reinterpret_cast<const char*>(&value) + 2, 2);
            }
    };
    fill(a.get(), 2 * blocks * 16);
    fill(b.get(), strips * blocks * 16);
    float tiled[tokens * stride], plain[tokens * stride];
    {
        Amx::Session session;
        Amx::multiply(a[0].bytes, tokens, b[0].bytes, strips, blocks, tiled, stride);
    }
    Bf16::multiply(a[0].bytes, tokens, b[0].bytes, strips, blocks, plain, stride);
    return !std::memcmp(tiled, plain, sizeof tiled);
}

}  // namespace gsn
