// The instruction sets that there are kernels for, in ascending order.
#pragma once

namespace gsn {

enum Isa { NONE = 0, AVX512 = 1, AVX512_BF16 = 2, AMX = 3 };

bool amx_agrees();

}  // namespace gsn
