// What the kernels of @matforge/engine use of WebAssembly's SIMD, relaxed multiply-add included, in vector extensions of
// GCC and Clang, so that the same sources compile to machine code.
#pragma once
#include <stddef.h>
#include <stdint.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

// A name that the kernels use and that <sys/select.h>, which the vector headers bring along, has taken.
#define select mf_select

typedef float v128_t __attribute__((vector_size(16), may_alias));
typedef float mf_f4u __attribute__((vector_size(16), aligned(1), may_alias));
typedef int32_t mf_i4 __attribute__((vector_size(16), may_alias));
typedef uint32_t mf_u4 __attribute__((vector_size(16), may_alias));
typedef int64_t mf_l2 __attribute__((vector_size(16), may_alias));
typedef double mf_d2 __attribute__((vector_size(16), may_alias));
#define MF static inline __attribute__((always_inline))
#define MF_I(v) ((mf_i4)(v))
#define MF_F(v) ((v128_t)(v))

MF v128_t wasm_v128_load(const void *p) { return *(const mf_f4u *)p; }
MF void wasm_v128_store(void *p, v128_t v) { *(mf_f4u *)p = v; }
MF v128_t wasm_f32x4_splat(float x) { return (v128_t){x, x, x, x}; }
MF v128_t wasm_v128_load32_splat(const void *p) { return wasm_f32x4_splat(*(const float *)p); }
#define wasm_f32x4_const(a, b, c, d) ((v128_t){a, b, c, d})
#define wasm_f32x4_extract_lane(v, i) ((v)[i])
MF v128_t mf_replace(v128_t v, int i, float x) {
  v[i] = x;
  return v;
}
#define wasm_f32x4_replace_lane(v, i, x) mf_replace(v, i, x)
MF v128_t wasm_f32x4_add(v128_t a, v128_t b) { return a + b; }
MF v128_t wasm_f32x4_sub(v128_t a, v128_t b) { return a - b; }
MF v128_t wasm_f32x4_mul(v128_t a, v128_t b) { return a * b; }
MF v128_t wasm_f32x4_div(v128_t a, v128_t b) { return a / b; }
MF v128_t wasm_f32x4_neg(v128_t a) { return -a; }
MF v128_t wasm_v128_and(v128_t a, v128_t b) { return MF_F(MF_I(a) & MF_I(b)); }
MF v128_t wasm_v128_or(v128_t a, v128_t b) { return MF_F(MF_I(a) | MF_I(b)); }
MF v128_t wasm_v128_bitselect(v128_t yes, v128_t no, v128_t mask) {
  return MF_F((MF_I(yes) & MF_I(mask)) | (MF_I(no) & ~MF_I(mask)));
}
MF v128_t wasm_f32x4_eq(v128_t a, v128_t b) { return MF_F(a == b); }
MF v128_t wasm_f32x4_ne(v128_t a, v128_t b) { return MF_F(a != b); }
MF v128_t wasm_f32x4_lt(v128_t a, v128_t b) { return MF_F(a < b); }
MF v128_t wasm_f32x4_le(v128_t a, v128_t b) { return MF_F(a <= b); }
MF v128_t wasm_f32x4_gt(v128_t a, v128_t b) { return MF_F(a > b); }
MF v128_t wasm_f32x4_ge(v128_t a, v128_t b) { return MF_F(a >= b); }
MF v128_t wasm_f32x4_abs(v128_t a) { return MF_F(MF_I(a) & 0x7fffffff); }
#if defined(__x86_64__)
MF v128_t wasm_f32x4_relaxed_madd(v128_t a, v128_t b, v128_t c) { return MF_F(_mm_fmadd_ps((__m128)a, (__m128)b, (__m128)c)); }
MF v128_t wasm_f32x4_sqrt(v128_t a) { return MF_F(_mm_sqrt_ps((__m128)a)); }
MF v128_t wasm_f32x4_nearest(v128_t a) { return MF_F(_mm_round_ps((__m128)a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)); }
MF v128_t wasm_i32x4_trunc_sat_f32x4(v128_t a) {
  // The instruction gives the smallest integer for all that does not fit: turn it round for what is too large, 0 for NaN.
  mf_i4 fits = (mf_i4)_mm_cvttps_epi32((__m128)a), large = a >= 2147483648.0f;
  return MF_F((fits ^ large) & MF_I(a == a));
}
#elif defined(__aarch64__)
MF v128_t wasm_f32x4_relaxed_madd(v128_t a, v128_t b, v128_t c) {
  return MF_F(vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b));
}
MF v128_t wasm_f32x4_sqrt(v128_t a) { return MF_F(vsqrtq_f32((float32x4_t)a)); }
MF v128_t wasm_f32x4_nearest(v128_t a) { return MF_F(vrndnq_f32((float32x4_t)a)); }
MF v128_t wasm_i32x4_trunc_sat_f32x4(v128_t a) { return MF_F(vcvtq_s32_f32((float32x4_t)a)); }
#endif
// NaN if either is NaN; -0 is less than +0.
MF v128_t mf_nan_or(v128_t a, v128_t b, v128_t otherwise) {
  return wasm_v128_bitselect(a + b, otherwise, wasm_v128_or(wasm_f32x4_ne(a, a), wasm_f32x4_ne(b, b)));
}
MF v128_t wasm_f32x4_max(v128_t a, v128_t b) {
  v128_t larger = wasm_v128_bitselect(a, b, wasm_f32x4_gt(a, b));
  return mf_nan_or(a, b, wasm_v128_bitselect(wasm_v128_and(a, b), larger, wasm_f32x4_eq(a, b)));
}
MF v128_t wasm_f32x4_min(v128_t a, v128_t b) {
  v128_t smaller = wasm_v128_bitselect(a, b, wasm_f32x4_lt(a, b));
  return mf_nan_or(a, b, wasm_v128_bitselect(wasm_v128_or(a, b), smaller, wasm_f32x4_eq(a, b)));
}
MF v128_t wasm_f32x4_pmin(v128_t a, v128_t b) { return wasm_v128_bitselect(b, a, wasm_f32x4_lt(b, a)); }
MF v128_t wasm_f32x4_pmax(v128_t a, v128_t b) { return wasm_v128_bitselect(b, a, wasm_f32x4_lt(a, b)); }
#define wasm_f32x4_relaxed_min wasm_f32x4_pmin
#define wasm_f32x4_relaxed_max wasm_f32x4_pmax
#define wasm_i32x4_relaxed_trunc_f32x4 wasm_i32x4_trunc_sat_f32x4
MF v128_t wasm_v128_xor(v128_t a, v128_t b) { return MF_F(MF_I(a) ^ MF_I(b)); }
MF v128_t wasm_v128_not(v128_t a) { return MF_F(~MF_I(a)); }
MF v128_t wasm_v128_andnot(v128_t a, v128_t b) { return MF_F(MF_I(a) & ~MF_I(b)); }
MF v128_t wasm_i32x4_eq(v128_t a, v128_t b) { return MF_F(MF_I(a) == MF_I(b)); }
MF v128_t wasm_i32x4_gt(v128_t a, v128_t b) { return MF_F(MF_I(a) > MF_I(b)); }
MF float __builtin_wasm_max_f32(float a, float b) { return a != a || b != b ? a + b : a > b ? a : b; }
MF float __builtin_wasm_min_f32(float a, float b) { return a != a || b != b ? a + b : a < b ? a : b; }
MF v128_t wasm_f32x4_convert_i32x4(v128_t a) { return __builtin_convertvector(MF_I(a), v128_t); }
MF v128_t wasm_i32x4_splat(int32_t x) { return MF_F(((mf_i4){x, x, x, x})); }
MF v128_t wasm_i32x4_add(v128_t a, v128_t b) { return MF_F((mf_u4)a + (mf_u4)b); }
MF v128_t wasm_i32x4_sub(v128_t a, v128_t b) { return MF_F((mf_u4)a - (mf_u4)b); }
MF v128_t wasm_i32x4_lt(v128_t a, v128_t b) { return MF_F(MF_I(a) < MF_I(b)); }
MF v128_t wasm_i32x4_shl(v128_t a, int n) { return MF_F((mf_u4)a << n); }
MF v128_t wasm_i32x4_shr(v128_t a, int n) { return MF_F(MF_I(a) >> n); }
#define wasm_i32x4_shuffle(a, b, c0, c1, c2, c3) __builtin_shufflevector(a, b, c0, c1, c2, c3)
#define wasm_i64x2_shuffle(a, b, c0, c1) MF_F(__builtin_shufflevector((mf_l2)(a), (mf_l2)(b), c0, c1))
MF v128_t wasm_f64x2_splat(double x) { return MF_F(((mf_d2){x, x})); }
MF v128_t wasm_f64x2_add(v128_t a, v128_t b) { return MF_F((mf_d2)a + (mf_d2)b); }
MF v128_t wasm_f64x2_promote_low_f32x4(v128_t a) { return MF_F(((mf_d2){a[0], a[1]})); }
#define wasm_f64x2_extract_lane(v, i) (((mf_d2)(v))[i])
