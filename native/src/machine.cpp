// What this machine can run. Compiled for any processor: nothing else in the library may run before it has said yes.
#include "machine.h"

#ifdef _WIN32
#define GSN_API extern "C" __declspec(dllexport)
#else
#define GSN_API extern "C" __attribute__((visibility("default")))
#endif

#ifdef GSN_KERNELS

#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

struct Leaf {
    unsigned a = 0, b = 0, c = 0, d = 0;
    Leaf(unsigned leaf, unsigned sub) { __get_cpuid_count(leaf, sub, &a, &b, &c, &d); }
};

bool has(unsigned word, unsigned bits) { return (word & bits) == bits; }

unsigned saved_by_the_system() {  // which registers survive a change of threads
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

bool tiles_are_allowed() {
#ifdef GSN_EMULATE_AMX
    return true;
#elif defined(__linux__)
    constexpr int ARCH_REQ_XCOMP_PERM = 0x1023, XTILEDATA = 18;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0;
#else
    return false;
#endif
}

gsn::Isa best(int most) {
    const Leaf one(1, 0), seven(7, 0), more(7, 1);
    const unsigned OSXSAVE = 1u << 27, FMA = 1u << 12;
    if (!has(one.c, OSXSAVE | FMA) || !has(saved_by_the_system(), 0xe6)) return gsn::NONE;
    const unsigned F = 1u << 16, DQ = 1u << 17, BW = 1u << 30, VL = 1u << 31;
    if (most < gsn::AVX512 || !has(seven.b, F | DQ | BW | VL)) return gsn::NONE;
    if (most < gsn::AVX512_BF16 || !has(more.a, 1u << 5)) return gsn::AVX512;
#ifdef GSN_EMULATE_AMX
    const bool tiles = true;
#else
    const bool tiles = has(seven.d, 1u << 22 | 1u << 24) && has(saved_by_the_system(), 0x60000);
#endif
    if (most < gsn::AMX || !tiles || !tiles_are_allowed()) return gsn::AVX512_BF16;
    static const bool agrees = gsn::amx_agrees();
    return agrees ? gsn::AMX : gsn::AVX512_BF16;
}

}  // namespace

#else

namespace {
int best(int) { return gsn::NONE; }
}  // namespace

#endif

// The best instruction set of this machine that is not above `most` (see machine.h).
GSN_API int gsn_isa(int most) { return best(most); }
