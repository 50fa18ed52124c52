// Elementary functions on four floats. The polynomials are minimax fits made for these files (relative error below one
// unit in the last place of a float before rounding). NaN gives NaN, infinities give the limits.
#pragma once
#include "common.h"

INLINE f4 select(f4 yes, f4 no, f4 mask) { return wasm_v128_bitselect(yes, no, mask); }
INLINE f4 absolute(f4 x) { return wasm_f32x4_abs(x); }
INLINE f4 with_sign(f4 magnitude, f4 x) { return wasm_v128_bitselect(magnitude, x, wasm_i32x4_splat(0x7fffffff)); }
INLINE f4 power_of_two(f4 n) { return wasm_i32x4_shl(wasm_i32x4_add(n, wasm_i32x4_splat(127)), 23); }

INLINE f4 exp4(f4 x) {
  // 2^n in two factors, so that results between the largest float and twice it, and subnormal ones, come out right.
  f4 t = max4(min4(x, splat(89.0f)), splat(-104.0f));
  // Adding 1.5·2^23 rounds to the nearest integer, which is then in the low bits.
  f4 shifted = madd(t, splat(1.44269504f), splat(12582912.0f)), n = sub(shifted, splat(12582912.0f));
  f4 r = sub(sub(t, mul(n, splat(0.693359375f))), mul(n, splat(-2.12194440e-4f)));
  f4 p = splat(1.395047682e-3f);
  p = madd(p, r, splat(8.368882434e-3f));
  p = madd(p, r, splat(4.166620601e-2f));
  p = madd(p, r, splat(1.666651890e-1f));
  p = madd(p, r, splat(5.000000095e-1f));
  p = madd(mul(r, r), p, add(r, splat(1.0f)));
  f4 i = wasm_i32x4_sub(shifted, wasm_i32x4_splat(0x4b400000)), half = wasm_i32x4_shr(i, 1);
  return mul(mul(p, power_of_two(half)), power_of_two(wasm_i32x4_sub(i, half)));
}

INLINE f4 log4(f4 x) {
  f4 tiny = wasm_f32x4_lt(x, splat(1.17549435e-38f));
  f4 y = select(mul(x, splat(8388608.0f)), x, tiny);
  f4 bias = select(splat(23.0f), splat(0.0f), tiny);
  // The mantissa between sqrt(1/2) and sqrt(2).
  f4 e = wasm_i32x4_shr(wasm_i32x4_sub(y, wasm_i32x4_splat(0x3f3504f3)), 23);
  f4 m = wasm_i32x4_sub(y, wasm_i32x4_shl(e, 23));
  f4 f = sub(m, splat(1.0f)), n = sub(wasm_f32x4_convert_i32x4(e), bias);
  f4 p = splat(6.915368071e-2f);
  p = madd(p, f, splat(-1.178980770e-1f));
  p = madd(p, f, splat(1.187297629e-1f));
  p = madd(p, f, splat(-1.238434847e-1f));
  p = madd(p, f, splat(1.421865809e-1f));
  p = madd(p, f, splat(-1.666925082e-1f));
  p = madd(p, f, splat(2.000222661e-1f));
  p = madd(p, f, splat(-2.499998660e-1f));
  p = madd(p, f, splat(3.333331044e-1f));
  f4 ff = mul(f, f);
  f4 low = madd(mul(f, ff), p, mul(ff, splat(-0.5f)));
  low = madd(n, splat(-2.12194440e-4f), low);
  f4 result = madd(n, splat(0.693359375f), add(f, low));
  result = select(x, result, wasm_f32x4_eq(x, splat(__builtin_inff())));
  result = select(splat(-__builtin_inff()), result, wasm_f32x4_eq(x, splat(0.0f)));
  f4 bad = wasm_v128_or(wasm_f32x4_lt(x, splat(0.0f)), wasm_f32x4_ne(x, x));
  return select(splat(__builtin_nanf("")), result, bad);
}

INLINE f4 tanh4(f4 x) {
  f4 a = absolute(x), z = mul(x, x);
  f4 p = splat(-5.717036558e-3f);
  p = madd(p, z, splat(2.065057900e-2f));
  p = madd(p, z, splat(-5.374349526e-2f));
  p = madd(p, z, splat(1.333149125e-1f));
  p = madd(p, z, splat(-3.333328392e-1f));
  f4 small = madd(mul(x, z), p, x);
  f4 large = sub(splat(1.0f), div4(splat(2.0f), add(exp4(add(a, a)), splat(1.0f))));
  return select(small, with_sign(large, x), wasm_f32x4_lt(a, splat(0.625f)));
}

INLINE f4 erf4(f4 x) {
  f4 a = absolute(x), z = mul(x, x);
  f4 p = splat(7.853857608e-5f);
  p = madd(p, z, splat(-8.010192494e-4f));
  p = madd(p, z, splat(5.188327557e-3f));
  p = madd(p, z, splat(-2.685381187e-2f));
  p = madd(p, z, splat(1.128358515e-1f));
  p = madd(p, z, splat(-3.761262582e-1f));
  f4 small = mul(x, madd(p, z, splat(1.128379166f)));
  // erf(4) differs from 1 by less than half a unit in the last place.
  f4 t = min4(a, splat(4.0f)), q = splat(2.168684997e-5f);
  q = madd(q, t, splat(-4.413363773e-4f));
  q = madd(q, t, splat(4.204561875e-3f));
  q = madd(q, t, splat(-2.520825674e-2f));
  q = madd(q, t, splat(1.084185773e-1f));
  q = madd(q, t, splat(6.332198931e-1f));
  q = madd(q, t, splat(1.129578424f));
  q = madd(q, t, splat(-1.880402311e-4f));
  f4 large = sub(splat(1.0f), exp4(wasm_f32x4_neg(q)));
  return select(small, with_sign(large, x), wasm_f32x4_lt(a, splat(1.0f)));
}

INLINE f4 sigmoid4(f4 x) { return div4(splat(1.0f), add(splat(1.0f), exp4(wasm_f32x4_neg(x)))); }

INLINE f4 softplus4(f4 x) {
  // max(x, 0) + log(1 + exp(-|x|)); below the rounding of 1 + e the logarithm is e itself.
  f4 e = exp4(wasm_f32x4_neg(absolute(x)));
  f4 tail = select(e, log4(add(splat(1.0f), e)), wasm_f32x4_lt(e, splat(1e-7f)));
  return add(max4(x, splat(0.0f)), tail);
}
