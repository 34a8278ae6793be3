// What this machine can run. Compiled for any processor: no other library may be loaded before this one has said yes.
#include "exported.h"

#if (defined(__x86_64__) || defined(_M_X64)) && (!defined(_MSC_VER) || defined(__clang__))
#define GSN_X86  // and a compiler that builds kernels for it
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__linux__) && defined(__aarch64__)
#include <sys/auxv.h>
#endif
#if defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace {

// In ascending order within each kind of processor.
enum Isa { NONE, NEON, NEON_BF16, AVX2, AVX2_VNNI, AVX512, AVX512_VNNI, AVX512_BF16, AMX };

#ifdef GSN_X86

struct Leaf {
    unsigned a = 0, b = 0, c = 0, d = 0;
    Leaf(unsigned leaf, unsigned sub) { __get_cpuid_count(leaf, sub, &a, &b, &c, &d); }
};

bool has(unsigned word, unsigned bits) { return (word & bits) == bits; }
constexpr unsigned bit(int i) { return 1u << i; }

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

bool runs(int isa) {
    const Leaf one(1, 0), seven(7, 0), more(7, 1);
    if (!has(one.c, bit(12) | bit(27) | bit(28)) || !has(saved_by_the_system(), 0x6) || !has(seven.b, bit(5)))
        return false;  // FMA, registers saved by the system, AVX, AVX2
    if (isa == AVX2) return true;
    if (isa == AVX2_VNNI) return has(more.a, bit(4));
    // F, DQ, BW, VL
    if (!has(saved_by_the_system(), 0xe6) || !has(seven.b, bit(16) | bit(17) | bit(30) | bit(31))) return false;
    if (isa == AVX512) return true;
    if (isa == AVX512_VNNI) return has(seven.c, bit(11));
    if (!has(more.a, bit(5))) return false;
    if (isa == AVX512_BF16) return true;
#ifndef GSN_EMULATE_AMX
    if (!has(seven.d, bit(22) | bit(24)) || !has(saved_by_the_system(), 0x60000)) return false;
#endif
    return isa == AMX && tiles_are_allowed();
}

#elif defined(__aarch64__) || defined(_M_ARM64)

bool bf16_is_there() {
#if defined(__linux__)
    return getauxval(AT_HWCAP2) >> 14 & 1;
#elif defined(__APPLE__)
    int found = 0;
    size_t size = sizeof found;
    return sysctlbyname("hw.optional.arm.FEAT_BF16", &found, &size, nullptr, 0) == 0 && found;
#else
    return false;
#endif
}

bool runs(int isa) { return isa == NEON || (isa == NEON_BF16 && bf16_is_there()); }

#else

bool runs(int) { return false; }

#endif

}  // namespace

// The best of these instructions that this machine has, and not above `most`.
GSN_API int gsn_isa(int most) {
    while (most > NONE && !runs(most)) most--;
    return most;
}
