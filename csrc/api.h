// What every part of the C API needs.
#pragma once

#include <cstdint>

#include "kernels.h"
#include "threads.h"

#if defined(_WIN32)
#define TW_API extern "C" __declspec(dllexport)
#else
#define TW_API extern "C" __attribute__((visibility("default")))
#endif

