// What this processor runs of the instruction sets kernels are compiled for.
#pragma once

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace tw {

#if defined(__x86_64__)
inline bool has_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
inline bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
}
inline bool has_avx512_bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }

// Tile instructions for bfloat16. Linux gives tiles to a process that asks for them, which this does.
inline bool has_amx() {
#if defined(__linux__)
    constexpr unsigned kTiles = 1u << 24, kBfloat16 = 1u << 22;  // of leaf 7, register edx
    constexpr long kAskFor = 0x1023, kTileData = 18;             // ARCH_REQ_XCOMP_PERM, of asm/prctl.h
    unsigned a, b, c, d;
    if (!has_avx512_bf16() || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    return (d & kTiles) && (d & kBfloat16) && !syscall(SYS_arch_prctl, kAskFor, kTileData);
#else
    return false;
#endif
}
#endif

}  // namespace tw
