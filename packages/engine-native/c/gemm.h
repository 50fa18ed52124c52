#pragma once
#include <stddef.h>

// The instruction set that products run on here: "avx512", "avx2", "neon", or null where there is none of these.
const char *gemm_isa(void);
// Picks one by name (for tests); returns 0 where the machine lacks it.
int gemm_use(const char *isa);

// Whether a product was left undone for want of memory since the process began.
int gemm_failed(void);
