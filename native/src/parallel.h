// Work items shared out among threads that live for one call. Knows nothing of what the items are.
#pragma once
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

#include <atomic>
#include <cstdint>
#include <new>
#include <thread>
#include <vector>

#include "long.h"

namespace gsn {

// Whatever the caller's thread has set: while one lives, float32 arithmetic rounds to nearest and keeps denormals.
class Arithmetic {
#if defined(__x86_64__) || defined(_M_X64)
    const unsigned before = _mm_getcsr();

   public:
    Arithmetic() { _mm_setcsr(0x1f80); }
    ~Arithmetic() { _mm_setcsr(before); }
#else
    uint64_t before;
    static void set(uint64_t control) { __asm__ volatile("msr fpcr, %0" : : "r"(control)); }

   public:
    Arithmetic() {
        __asm__ volatile("mrs %0, fpcr" : "=r"(before));
        set(0);
    }
    ~Arithmetic() { set(before); }
#endif
};

// Calls work(item, worker) for every item, worker < threads. Throws bad_alloc if a worker ran out of memory.
template <class Work>
void parallel_for(int threads, Long items, Work work) {
    std::atomic<Long> next{0};
    std::atomic<bool> failed{false};
    auto run = [&](int worker) {
        const Arithmetic arithmetic;
        try {
            for (Long item; (item = next++) < items;) work(item, worker);
        } catch (...) {
            failed = true;
            next = items;
        }
    };
    std::vector<std::thread> others;
    try {
        others.reserve(threads);
        for (int worker = 1; worker < threads && worker < items; worker++) others.emplace_back(run, worker);
    } catch (...) {
    }  // no more threads to be had: the ones there are do the work
    run(0);
    for (auto& other : others) other.join();
    if (failed) throw std::bad_alloc();
}

}  // namespace gsn
