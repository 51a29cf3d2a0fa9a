// What every part of the C API needs. Python calls it by ctypes: plain C, pointers and sizes.
#pragma once

#include <cstdint>
#include <new>

#include "kernels.h"
#include "model.h"
#include "scratch.h"
#include "threads.h"

#if defined(_WIN32)
#define TW_API extern "C" __declspec(dllexport)
#else
#define TW_API extern "C" __attribute__((visibility("default")))
#endif

namespace tw {

// A pool and its scratch memory: for one calling thread at a time.
struct Runner {
    explicit Runner(int threads) : pool(threads) {}
    Pool pool;
    Scratch scratch;
};

// Calls f(run) with empty scratch memory; 0, or 1 when memory ran out.
template <typename F>
int32_t guarded(void* runner_, F&& f) {
    try {
        Runner& runner = *static_cast<Runner*>(runner_);
        runner.scratch.reset();
        Run run{runner.pool, runner.scratch, kernels()};
        f(run);
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

}  // namespace tw
