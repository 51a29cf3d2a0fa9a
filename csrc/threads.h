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

    // Calls work(context, part) for every part in 0..parts-1, spread over the threads; returns when all are done.
    // Parts are handed out in order, one at a time; which thread gets which is left open, so work must not depend on it.
    void run(int64_t parts, void (*work)(void* context, int64_t part), void* context);

private:
    void worker();
    void take_parts();

    std::vector<std::thread> workers_;
    std::mutex mutex_;
    std::condition_variable wake_;
    std::atomic<uint64_t> round_{0};
    std::atomic<int64_t> next_{0};
    std::atomic<int> busy_{0};
    int64_t parts_ = 0;
    void (*work_)(void*, int64_t) = nullptr;
    void* context_ = nullptr;
    bool stop_ = false;
};

// Runs f(part) for every part; f is any callable.
template <typename F>
void parallel(Pool& pool, int64_t parts, F&& f) {
    pool.run(
        parts, [](void* context, int64_t part) { (*static_cast<F*>(context))(part); }, &f);
}

}  // namespace tw
