#include "threads.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace tw {

constexpr int kSpins = 20000;  // some tens of microseconds: longer than the gap between two calls of a step

static void pause() {
#if defined(__x86_64__)
    _mm_pause();
#else
    std::this_thread::yield();
#endif
}

Pool::Pool(int threads) {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { worker(); });
}

Pool::~Pool() {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        stop_ = true;
        round_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
}

void Pool::run(int64_t parts, void (*work)(void*, int64_t), void* context) {
    if (workers_.empty() || parts < 2) {
        for (int64_t part = 0; part < parts; ++part) work(context, part);
        return;
    }
    work_ = work;
    context_ = context;
    parts_ = parts;
    next_.store(0, std::memory_order_relaxed);
    busy_.store(int(workers_.size()), std::memory_order_relaxed);
    {
        std::lock_guard<std::mutex> lock(mutex_);  // a worker about to sleep either sees the round or hears the call
        round_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    take_parts();
    while (busy_.load(std::memory_order_acquire)) pause();
}

void Pool::take_parts() {
    for (int64_t part; (part = next_.fetch_add(1, std::memory_order_relaxed)) < parts_;) work_(context_, part);
}

void Pool::worker() {
    uint64_t seen = 0;
    for (;;) {
        int spins = 0;
        while (round_.load(std::memory_order_acquire) == seen) {
            if (++spins < kSpins) {
                pause();
                continue;
            }
            std::unique_lock<std::mutex> lock(mutex_);
            wake_.wait(lock, [&] { return round_.load(std::memory_order_acquire) != seen; });
        }
        seen = round_.load(std::memory_order_acquire);
        if (stop_) return;
        take_parts();
        busy_.fetch_sub(1, std::memory_order_release);
    }
}

}  // namespace tw
