// Shared by the kernels of @matforge/engine. No libc, no static data: the module lives on the heap of the wasm backend
// of TensorFlow.js, so a data section would overwrite what the backend keeps at low addresses.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <wasm_simd128.h>

#define EXPORT __attribute__((visibility("default")))
// How threads share the work of the exported function that follows: a letter for each parameter. N rows to share, u and i
// factors of a row's length, q rows that stay together; a pointer moves with the rows by R u·i floats, S i floats, T the
// bytes in the next argument; G a geometry whose images are shared, I, O and P pointers that move by an image of input, of
// output, of output with the input's channels, A one that has a result for each piece, which are added up in order at the
// end, W a work area that each thread needs for itself; - stays. Read by build.mjs and by the sources of the native addon.
#define SHARE(letters)
#define INLINE static inline __attribute__((always_inline))

typedef v128_t f4;

INLINE f4 load(const float *p) { return wasm_v128_load(p); }
INLINE void store(float *p, f4 v) { wasm_v128_store(p, v); }
INLINE f4 splat(float v) { return wasm_f32x4_splat(v); }
INLINE f4 load_splat(const float *p) { return wasm_v128_load32_splat(p); }
INLINE f4 add(f4 a, f4 b) { return wasm_f32x4_add(a, b); }
INLINE f4 sub(f4 a, f4 b) { return wasm_f32x4_sub(a, b); }
INLINE f4 mul(f4 a, f4 b) { return wasm_f32x4_mul(a, b); }
INLINE f4 div4(f4 a, f4 b) { return wasm_f32x4_div(a, b); }

// a·b + c: one rounding where the machine's relaxed SIMD has it, two elsewhere.
INLINE f4 madd(f4 a, f4 b, f4 c) {
#ifdef __wasm_relaxed_simd__
  return wasm_f32x4_relaxed_madd(a, b, c);
#else
  return wasm_f32x4_add(wasm_f32x4_mul(a, b), c);
#endif
}

// One instruction each, unlike wasm's own min and max: the first argument where that is not a number.
INLINE f4 max4(f4 a, f4 b) { return wasm_f32x4_pmax(a, b); }
INLINE f4 min4(f4 a, f4 b) { return wasm_f32x4_pmin(a, b); }

INLINE float sum_lanes(f4 v) {
  f4 high = wasm_i32x4_shuffle(v, v, 2, 3, 0, 1);
  f4 two = add(v, high);
  return wasm_f32x4_extract_lane(two, 0) + wasm_f32x4_extract_lane(two, 1);
}
INLINE float max_lanes(f4 v) {
  f4 two = max4(v, wasm_i32x4_shuffle(v, v, 2, 3, 0, 1));
  return wasm_f32x4_extract_lane(max4(two, wasm_i32x4_shuffle(two, two, 1, 0, 3, 2)), 0);
}

// The first n < 4 lanes; the others are zero, respectively left alone.
INLINE f4 load_part(const float *p, int n) {
  f4 v = wasm_f32x4_const(0, 0, 0, 0);
  if (n > 0) v = wasm_f32x4_replace_lane(v, 0, p[0]);
  if (n > 1) v = wasm_f32x4_replace_lane(v, 1, p[1]);
  if (n > 2) v = wasm_f32x4_replace_lane(v, 2, p[2]);
  return v;
}
INLINE void store_part(float *p, f4 v, int n) {
  if (n > 0) p[0] = wasm_f32x4_extract_lane(v, 0);
  if (n > 1) p[1] = wasm_f32x4_extract_lane(v, 1);
  if (n > 2) p[2] = wasm_f32x4_extract_lane(v, 2);
}

// Runs BODY(x) over n floats, four at a time, the tail in part vectors.
#define MAP1(n, x, y, BODY)                                  \
  do {                                                       \
    int i_ = 0;                                              \
    for (; i_ + 4 <= (n); i_ += 4) store((y) + i_, BODY(load((x) + i_)));                    \
    if (i_ < (n)) store_part((y) + i_, BODY(load_part((x) + i_, (n) - i_)), (n) - i_);       \
  } while (0)

INLINE void zero(float *p, size_t n) { __builtin_memset(p, 0, n * sizeof(float)); }
INLINE void copy(float *to, const float *from, size_t n) { __builtin_memcpy(to, from, n * sizeof(float)); }
