// Sizes and offsets: 64 bits, where `long` has 32 (Windows) too.
#pragma once
#include <cstdint>

using Long = std::int64_t;
