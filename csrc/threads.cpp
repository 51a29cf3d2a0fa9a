#include "threads.h"

#include <chrono>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace tw {

constexpr std::chrono::microseconds kSpin{200};  // longer than any gap within a step, shorter than a scheduler's slice

static void pause() {
#if defined(__x86_64__)
    _mm_pause();
#else
    std::this_thread::yield();
#endif
}

Pool::Pool(int threads) {
    try {
        for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { worker(i); });
    } catch (...) {
        end();  // those that did start
        throw;
    }
}

Pool::~Pool() { end(); }

void Pool::end() {
    stop_.store(true);
    {
        std::lock_guard<std::mutex> lock(mutex_);
        round_.fetch_add(1);
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
}

void Pool::run(int64_t parts, void (*work)(void*, int64_t, int), void* context) {
    if (workers_.empty() || parts < 2) {
        for (int64_t part = 0; part < parts; ++part) work(context, part, 0);
        return;
    }
    work_ = work;
    context_ = context;
    parts_ = parts;
    next_.store(0, std::memory_order_relaxed);
    busy_.store(int(workers_.size()), std::memory_order_relaxed);
    round_.fetch_add(1);
    // Sequentially consistent on both sides: either this sees the sleeper, or the sleeper sees the round.
    if (sleeping_.load()) {
        std::lock_guard<std::mutex> lock(mutex_);
        wake_.notify_all();
    }
    take_parts(0);
    const auto start = std::chrono::steady_clock::now();
    for (int spins = 1; busy_.load(std::memory_order_acquire); ++spins) {
        pause();
        // longer than a piece of work takes: whoever is waited for may want this core
        if (spins % 64 == 0 && std::chrono::steady_clock::now() - start > kSpin) std::this_thread::yield();
    }
}

void Pool::take_parts(int thread) {
    for (int64_t part; (part = next_.fetch_add(1, std::memory_order_relaxed)) < parts_;) work_(context_, part, thread);
}

bool Pool::wait_for_round_after(uint64_t seen) {
    const auto start = std::chrono::steady_clock::now();
    for (int spins = 1; round_.load(std::memory_order_acquire) == seen; ++spins) {
        pause();
        if (spins % 64 || std::chrono::steady_clock::now() - start < kSpin) continue;
        std::unique_lock<std::mutex> lock(mutex_);
        sleeping_.fetch_add(1);
        wake_.wait(lock, [&] { return round_.load() != seen; });
        sleeping_.fetch_sub(1);
    }
    return !stop_.load();
}

void Pool::worker(int thread) {
    for (uint64_t seen = 0; wait_for_round_after(seen); ++seen) {
        take_parts(thread);
        busy_.fetch_sub(1, std::memory_order_release);
    }
}

}  // namespace tw
