// The instruction set, chosen once: the best this processor runs.
#include <atomic>
#include <cstring>

#include "kernels.h"
#include "processor.h"

namespace tw {

#if defined(TW_HAS_AVX512_BF16)
namespace avx512_bf16 {
extern const Kernels table;
}
#endif
#if defined(TW_HAS_AVX512)
namespace avx512 {
extern const Kernels table;
}
#endif
#if defined(TW_HAS_AVX2)
namespace avx2 {
extern const Kernels table;
}
#endif
namespace portable {
extern const Kernels table;
}

struct Choice {
    const Kernels* table;
    bool runs;
};

static const Choice* choices(int* count) {
    static const Choice list[] = {
#if defined(TW_HAS_AVX512_BF16)
        {&avx512_bf16::table, has_avx512_bf16()},
#endif
#if defined(TW_HAS_AVX512)
        {&avx512::table, has_avx512()},
#endif
#if defined(TW_HAS_AVX2)
        {&avx2::table, has_avx2()},
#endif
        {&portable::table, true},
    };
    *count = int(sizeof list / sizeof list[0]);
    return list;
}

static const Kernels* best() {
    int count;
    const Choice* list = choices(&count);
    while (!list->runs) ++list;
    return list->table;
}

static std::atomic<const Kernels*> chosen{nullptr};

const Kernels& kernels() {
    const Kernels* table = chosen.load(std::memory_order_acquire);
    if (!table) chosen.store(table = best(), std::memory_order_release);
    return *table;
}

int32_t force_kernels(const char* name) {
    int count;
    const Choice* list = choices(&count);
    for (int i = 0; i < count; ++i)
        if (!std::strcmp(list[i].table->name, name) && list[i].runs) {
            chosen.store(list[i].table, std::memory_order_release);
            return 0;
        }
    return 1;
}

}  // namespace tw
