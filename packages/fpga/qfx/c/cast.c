// The round-half-up, saturating cast and its gradient on the heap of the TensorFlow.js wasm backend, in float64 lanes:
// the same numbers as quantizer.ts computes, element by element. No data section and no stack.
#include <wasm_simd128.h>

typedef unsigned int u32;
#define EXPORT __attribute__((visibility("default")))

static inline double floor64(double x) { return __builtin_floor(x); }
static inline v128_t high64(v128_t x) { return wasm_f64x2_promote_low_f32x4(wasm_i32x4_shuffle(x, x, 2, 3, 2, 3)); }
static inline v128_t low64(v128_t x) { return wasm_f64x2_promote_low_f32x4(x); }


static inline v128_t cast64(v128_t u, v128_t scale, v128_t step, v128_t least, v128_t high) {
  v128_t q = wasm_f64x2_floor(wasm_f64x2_add(wasm_f64x2_mul(u, scale), wasm_f64x2_const_splat(0.5)));
  return wasm_f64x2_mul(wasm_f64x2_pmin(wasm_f64x2_pmax(q, least), high), step);
}

// y = clamp(floor((v + bias) * scale + 1/2)) * step, row by row of `channels`; bias may be null (0). Returns 1 when a
// value is NaN or infinite.
EXPORT u32 qfx_round(u32 n, u32 channels, const float *v, const float *bias, double scale, double step, double least,
                     double high, float *y) {
  const v128_t s = wasm_f64x2_splat(scale), t = wasm_f64x2_splat(step);
  const v128_t a = wasm_f64x2_splat(least), b = wasm_f64x2_splat(high);
  v128_t broken = wasm_i32x4_const_splat(0);
  float rest = 0;
  for (u32 row = 0; row < n; row += channels) {
    u32 c = 0;
    for (; c + 4 <= channels; c += 4) {
      v128_t x = wasm_v128_load(v + row + c);
      broken = wasm_v128_or(broken, wasm_f32x4_ne(wasm_f32x4_sub(x, x), wasm_f32x4_const_splat(0)));
      v128_t u0 = low64(x), u1 = high64(x);
      if (bias) {
        v128_t shift = wasm_v128_load(bias + c);
        u0 = wasm_f64x2_add(u0, low64(shift));
        u1 = wasm_f64x2_add(u1, high64(shift));
      }
      v128_t y0 = wasm_f32x4_demote_f64x2_zero(cast64(u0, s, t, a, b));
      v128_t y1 = wasm_f32x4_demote_f64x2_zero(cast64(u1, s, t, a, b));
      wasm_v128_store(y + row + c, wasm_i64x2_shuffle(y0, y1, 0, 2));
    }
    for (; c < channels; c++) {
      float x = v[row + c];
      rest += x - x;
      double q = floor64(((double)x + (bias ? (double)bias[c] : 0)) * scale + 0.5);
      q = q < least ? least : q;
      y[row + c] = (float)((q > high ? high : q) * step);
    }
  }
  return wasm_v128_any_true(broken) || rest != 0;
}

// dv = dy where v + bias is in [from, to) (and above 0 for ReLU), else 0. Returns sum of dy * (y - (v + bias) * mask).
EXPORT double qfx_pull(u32 n, u32 channels, const float *dy, const float *v, const float *bias, const float *y,
                       double from, double to, u32 relu, float *dv) {
  const v128_t a = wasm_f64x2_splat(from), b = wasm_f64x2_splat(to);
  const v128_t above = wasm_f64x2_splat(relu ? 0 : -__builtin_inf());
  v128_t sum0 = wasm_f64x2_const_splat(0), sum1 = sum0;
  double rest = 0;
  for (u32 row = 0; row < n; row += channels) {
    u32 c = 0;
    for (; c + 4 <= channels; c += 4) {
      v128_t x = wasm_v128_load(v + row + c), d = wasm_v128_load(dy + row + c), z = wasm_v128_load(y + row + c);
      v128_t u0 = low64(x), u1 = high64(x);
      if (bias) {
        v128_t shift = wasm_v128_load(bias + c);
        u0 = wasm_f64x2_add(u0, low64(shift));
        u1 = wasm_f64x2_add(u1, high64(shift));
      }
      v128_t m0 = wasm_v128_and(wasm_v128_and(wasm_f64x2_ge(u0, a), wasm_f64x2_lt(u0, b)), wasm_f64x2_gt(u0, above));
      v128_t m1 = wasm_v128_and(wasm_v128_and(wasm_f64x2_ge(u1, a), wasm_f64x2_lt(u1, b)), wasm_f64x2_gt(u1, above));
      wasm_v128_store(dv + row + c, wasm_v128_and(d, wasm_i32x4_shuffle(m0, m1, 0, 2, 4, 6)));
      v128_t e0 = wasm_f64x2_sub(low64(z), wasm_v128_and(u0, m0)), e1 = wasm_f64x2_sub(high64(z), wasm_v128_and(u1, m1));
      sum0 = wasm_f64x2_add(sum0, wasm_f64x2_mul(low64(d), e0));
      sum1 = wasm_f64x2_add(sum1, wasm_f64x2_mul(high64(d), e1));
    }
    for (; c < channels; c++) {
      double u = (double)v[row + c] + (bias ? (double)bias[c] : 0), d = dy[row + c];
      u32 inside = u >= from && u < to && (!relu || u > 0);
      dv[row + c] = inside ? dy[row + c] : 0;
      rest += d * ((double)y[row + c] - (inside ? u : 0));
    }
  }
  sum0 = wasm_f64x2_add(sum0, sum1);
  return wasm_f64x2_extract_lane(sum0, 0) + wasm_f64x2_extract_lane(sum0, 1) + rest;
}

// The largest sum of |w| over the rows of [rows, channels], in float32: off by at most one part in 2^24 a row. `sums`
// is room for `channels` floats.
EXPORT float qfx_column(u32 n, u32 channels, const float *w, float *sums) {
  for (u32 c = 0; c < channels; c++) sums[c] = 0;
  for (u32 row = 0; row < n; row += channels) {
    u32 c = 0;
    for (; c + 4 <= channels; c += 4) {
      wasm_v128_store(sums + c, wasm_f32x4_add(wasm_v128_load(sums + c), wasm_f32x4_abs(wasm_v128_load(w + row + c))));
    }
    for (; c < channels; c++) sums[c] += __builtin_fabsf(w[row + c]);
  }
  float largest = 0;
  for (u32 c = 0; c < channels; c++) largest = sums[c] > largest ? sums[c] : largest;
  return largest;
}
