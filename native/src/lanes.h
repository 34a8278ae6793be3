// Sixteen float32 (or as many units of 32 bits) at a time, whatever instructions the including file may use: all that
// is written on top of this gives the same bits with any of them. Each file has its own; nothing here is shared.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "long.h"

#if defined(__AVX512F__)
#include "lanes_avx512.h"
#elif defined(__AVX2__)
#include "lanes_avx2.h"
#elif defined(__ARM_NEON)
#include "lanes_neon.h"
#else
#error "no lanes for this processor"
#endif
