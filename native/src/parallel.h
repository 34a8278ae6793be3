// Work items shared out among threads that live for one call. Knows nothing of what the items are.
#pragma once
#include <immintrin.h>

#include <atomic>
#include <new>
#include <thread>
#include <vector>

namespace gsn {

// Calls work(item, worker) for every item, worker < threads. Whatever the caller's thread has set, float32 arithmetic
// rounds to nearest and keeps denormals meanwhile. Throws bad_alloc if a worker ran out of memory.
template <class Work>
void parallel_for(int threads, long items, Work work) {
    std::atomic<long> next{0};
    std::atomic<bool> failed{false};
    auto run = [&](int worker) {
        const unsigned control = _mm_getcsr();
        _mm_setcsr(0x1f80);
        try {
            for (long item; (item = next++) < items;) work(item, worker);
        } catch (...) {
            failed = true;
            next = items;
        }
        _mm_setcsr(control);
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
