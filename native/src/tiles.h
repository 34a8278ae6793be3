// The handful of AMX operations in use: the instructions, or the same in plain C++ so that machines without AMX can
// test what is built of them.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "long.h"

namespace {

struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
};

}  // namespace

#ifndef GSN_EMULATE_AMX

#define tile_configure(config) _tile_loadconfig(config)
#define tile_release() _tile_release()
#define tile_zero(tile) _tile_zero(tile)
#define tile_load(tile, from, stride) _tile_loadd(tile, from, stride)
#define tile_store(tile, to, stride) _tile_stored(tile, to, stride)
#define tile_dot(sum, a, b) _tile_dpbf16ps(sum, a, b)

#else

namespace {

struct Tile {
    uint8_t bytes[16][64];
    float widened(int row, int i) const {  // element i of bfloat16; denormals are zeros
        uint16_t half;
        std::memcpy(&half, &bytes[row][2 * i], 2);
        const uint32_t bits = half & 0x7f80 ? uint32_t(half) << 16 : uint32_t(half & 0x8000) << 16;
        float value;
        std::memcpy(&value, &bits, 4);
        return value;
    }
};

thread_local Tile tile[8];
thread_local TileConfig shape;
thread_local bool configured = false;

inline void tile_configure(const TileConfig* config) { shape = *config, configured = true; }
inline void tile_release() { configured = false; }
inline void tile_zero(int t) { std::memset(&tile[t], 0, sizeof(Tile)); }

inline void tile_load(int t, const void* from, Long stride) {
    if (!configured) __builtin_trap();
    tile_zero(t);
    for (int row = 0; row < shape.rows[t]; row++)
        std::memcpy(tile[t].bytes[row], static_cast<const char*>(from) + row * stride, shape.row_bytes[t]);
}

inline void tile_store(int t, void* to, Long stride) {
    if (!configured) __builtin_trap();
    for (int row = 0; row < shape.rows[t]; row++)
        std::memcpy(static_cast<char*>(to) + row * stride, tile[t].bytes[row], shape.row_bytes[t]);
}

inline void tile_dot(int sum, int a, int b) {
    for (int m = 0; m < shape.rows[sum]; m++)
        for (int n = 0; n < shape.row_bytes[sum] / 4; n++) {
            float value;
            std::memcpy(&value, &tile[sum].bytes[m][4 * n], 4);
            for (int k = 0; k < shape.rows[b]; k++) {
                value += tile[a].widened(m, 2 * k) * tile[b].widened(k, 2 * n);
                value += tile[a].widened(m, 2 * k + 1) * tile[b].widened(k, 2 * n + 1);
            }
            std::memcpy(&tile[sum].bytes[m][4 * n], &value, 4);
        }
}

}  // namespace

#endif
