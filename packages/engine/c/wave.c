// Sine and cosine.
#include "vmath.h"

// Beyond, the nearest multiple of π/2 is no longer found exactly.
#define FARTHEST 1048576.0f

// x less the nearest multiple k of π/2; the first part of π/2 has so few bits that its product with k is exact.
INLINE f4 reduced(v128_t x, v128_t *k) {
  *k = wasm_f64x2_nearest(wasm_f64x2_mul(x, wasm_f64x2_splat(0.63661977236758134)));
  v128_t rest = wasm_f64x2_sub(x, wasm_f64x2_mul(*k, wasm_f64x2_splat(0x1.921fb54400000p+0)));
  return wasm_f32x4_demote_f64x2_zero(
      wasm_f64x2_sub(rest, wasm_f64x2_mul(*k, wasm_f64x2_splat(0x1.0b4611a626331p-34))));
}

INLINE f4 wave(f4 x, int quarters) {
  v128_t k0, k1;
  f4 r0 = reduced(wasm_f64x2_promote_low_f32x4(x), &k0);
  f4 r1 = reduced(wasm_f64x2_promote_low_f32x4(wasm_i64x2_shuffle(x, x, 1, 0)), &k1);
  f4 r = wasm_i64x2_shuffle(r0, r1, 0, 2), z = mul(r, r);
  v128_t k = wasm_i64x2_shuffle(wasm_i32x4_trunc_sat_f64x2_zero(k0), wasm_i32x4_trunc_sat_f64x2_zero(k1), 0, 2);
  k = wasm_i32x4_add(k, wasm_i32x4_splat(quarters));
  f4 s = splat(1.0f / 362880);
  s = madd(s, z, splat(-1.0f / 5040));
  s = madd(s, z, splat(1.0f / 120));
  s = madd(s, z, splat(-1.0f / 6));
  s = madd(mul(s, z), r, r);
  f4 c = splat(-1.0f / 3628800);
  c = madd(c, z, splat(1.0f / 40320));
  c = madd(c, z, splat(-1.0f / 720));
  c = madd(c, z, splat(1.0f / 24));
  c = madd(c, z, splat(-0.5f));
  c = madd(c, z, splat(1.0f));
  v128_t one = wasm_i32x4_splat(1), two = wasm_i32x4_splat(2);
  f4 y = select(c, s, wasm_i32x4_eq(wasm_v128_and(k, one), one));
  return wasm_v128_xor(y, wasm_i32x4_shl(wasm_v128_and(k, two), 30));
}

// y = sin x, or cos x. Returns 0 where a number is too large for it: its place in y is then to be filled.
EXPORT int mf_wave(int cosine, int n, const float *x, float *y) {
  f4 largest = splat(0);
  for (int i = 0; i < n; i += 4) {
    int lanes = n - i < 4 ? n - i : 4;
    f4 v = lanes == 4 ? load(x + i) : load_part(x + i, lanes);
    f4 size = absolute(v), finite = wasm_f32x4_lt(size, splat(__builtin_inff()));
    largest = max4(largest, wasm_v128_and(size, finite));
    f4 result = select(wave(v, cosine), sub(v, v), finite);
    if (lanes == 4) store(y + i, result);
    else store_part(y + i, result, lanes);
  }
  return max_lanes(largest) <= FARTHEST;
}
