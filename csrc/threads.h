// A pool of threads that spin for a moment and then sleep, so that the calls of one step find them awake.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace tw {

class Pool {
public:
    explicit Pool(int threads);  // the caller counts as one
    ~Pool();

    int threads() const { return int(workers_.size()) + 1; }

    // Calls work(context, part, thread) for every part in 0..parts-1, spread over the threads 0..threads-1; returns when
    // all are done. Parts are handed out in order, one at a time; which thread gets which is left open, so results must
    // not depend on it: the thread's number is for scratch memory alone.
    void run(int64_t parts, void (*work)(void* context, int64_t part, int thread), void* context);

private:
    void end();
    void worker(int thread);
    void take_parts(int thread);
    bool wait_for_round_after(uint64_t seen);

    std::vector<std::thread> workers_;
    std::mutex mutex_;
    std::condition_variable wake_;
    std::atomic<uint64_t> round_{0};
    std::atomic<int> sleeping_{0};
    alignas(64) std::atomic<int64_t> next_{0};
    alignas(64) std::atomic<int> busy_{0};
    int64_t parts_ = 0;
    void (*work_)(void*, int64_t, int) = nullptr;
    void* context_ = nullptr;
    std::atomic<bool> stop_{false};
};

// Runs f(part, thread) for every part; f is any callable.
template <typename F>
void parallel_on_threads(Pool& pool, int64_t parts, F&& f) {
    pool.run(
        parts, [](void* context, int64_t part, int thread) { (*static_cast<F*>(context))(part, thread); }, &f);
}

// Runs f(part) for every part.
template <typename F>
void parallel(Pool& pool, int64_t parts, F&& f) {
    parallel_on_threads(pool, parts, [&](int64_t part, int) { f(part); });
}

// 0..size cut into pieces that get smaller: large ones cost little to hand out, small ones let all threads end together.
struct Pieces {
    int64_t size, share;

    Pieces(const Pool& pool, int64_t size) : size(size), share(pool.threads() == 1 ? 1 : pool.threads() * 2) {}

    int64_t after(int64_t begin) const { return begin + (size - begin + share - 1) / share; }
    int64_t count() const {
        int64_t pieces = 0;
        for (int64_t begin = 0; begin < size; begin = after(begin)) ++pieces;
        return pieces;
    }
    int64_t begin(int64_t piece) const {
        int64_t begin = 0;
        while (piece--) begin = after(begin);
        return begin;
    }
};

// Runs f(begin, end) over pieces of 0..size.
template <typename F>
void parallel_ranges(Pool& pool, int64_t size, F&& f) {
    const Pieces pieces(pool, size);
    parallel(pool, pieces.count(), [&](int64_t piece) {
        const int64_t begin = pieces.begin(piece);
        f(begin, pieces.after(begin));
    });
}

}  // namespace tw
