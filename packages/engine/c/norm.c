// Batch normalisation, local response normalisation, and their gradients.
#include "vmath.h"

// Rows so short that vectors would not fill are taken several at once, with the parameters repeated as often.
#define SHORT 16
#define LONGEST 64
INLINE int repeats(int n) { return n >= SHORT ? 1 : n % 4 == 0 ? SHORT / n : 4; }
INLINE const float *repeated(const float *v, int n, int times, float *room) {
  if (times == 1) return v;
  for (int i = 0; i < times * n; i++) room[i] = v[i % n];
  return room;
}

// y[rows, n] = (x - mean[n])·scale[n] + offset[n]
SHARE("NuR---R")
EXPORT void mf_affine(int rows, int n, const float *x, const float *mean, const float *scale, const float *offset, float *y) {
  float room[3][LONGEST];
  int times = repeats(n), wide = times * n, r = 0;
  const float *m = repeated(mean, n, times, room[0]), *s = repeated(scale, n, times, room[1]),
              *o = repeated(offset, n, times, room[2]);
  for (; r + times <= rows; r += times, x += wide, y += wide) {
    int i = 0;
    for (; i + 4 <= wide; i += 4) store(y + i, add(mul(sub(load(x + i), load(m + i)), load(s + i)), load(o + i)));
    for (; i < wide; i++) y[i] = (x[i] - m[i]) * s[i] + o[i];
  }
  for (; r < rows; r++, x += n, y += n)
    for (int i = 0; i < n; i++) y[i] = (x[i] - m[i]) * s[i] + o[i];
}

// The same for x[outer, n, inner].
EXPORT void mf_affine_planes(int outer, int n, int inner, const float *x, const float *mean, const float *scale,
                             const float *offset, float *y) {
  for (int b = 0; b < outer; b++)
    for (int c = 0; c < n; c++, x += inner, y += inner) {
      f4 m = splat(mean[c]), s = splat(scale[c]), o = splat(offset[c]);
      int i = 0;
      for (; i + 4 <= inner; i += 4) store(y + i, add(mul(sub(load(x + i), m), s), o));
      for (; i < inner; i++) y[i] = (x[i] - mean[c]) * scale[c] + offset[c];
    }
}

#define LOW(v) wasm_f64x2_promote_low_f32x4(v)
#define HIGH(v) wasm_f64x2_promote_low_f32x4(wasm_i64x2_shuffle(v, v, 1, 0))
#define BLOCK 32

// dx = scale·dy, sum = Σ dy, dot = Σ dy·(x - mean) over the rows; blocks of rows are summed in single precision, those in
// double precision.
static void back(int rows, int n, const float *x, const float *dy, const float *mean, const float *scale, float *dx,
                 float *sum, float *dot) {
  int j = 0;
  for (; j + 8 <= n; j += 8) {
    f4 m0 = load(mean + j), m1 = load(mean + j + 4), s0 = load(scale + j), s1 = load(scale + j + 4);
    v128_t total[8];
    for (int q = 0; q < 8; q++) total[q] = wasm_f64x2_splat(0);
    for (int from = 0; from < rows; from += BLOCK) {
      int to = from + BLOCK < rows ? from + BLOCK : rows;
      f4 a0 = splat(0), a1 = splat(0), b0 = splat(0), b1 = splat(0);
      size_t at = (size_t)from * n + j;
      for (int r = from; r < to; r++, at += n) {
        f4 d0 = load(dy + at), d1 = load(dy + at + 4);
        a0 = add(a0, d0);
        a1 = add(a1, d1);
        b0 = madd(d0, sub(load(x + at), m0), b0);
        b1 = madd(d1, sub(load(x + at + 4), m1), b1);
        store(dx + at, mul(d0, s0));
        store(dx + at + 4, mul(d1, s1));
      }
      total[0] = wasm_f64x2_add(total[0], LOW(a0));
      total[1] = wasm_f64x2_add(total[1], HIGH(a0));
      total[2] = wasm_f64x2_add(total[2], LOW(a1));
      total[3] = wasm_f64x2_add(total[3], HIGH(a1));
      total[4] = wasm_f64x2_add(total[4], LOW(b0));
      total[5] = wasm_f64x2_add(total[5], HIGH(b0));
      total[6] = wasm_f64x2_add(total[6], LOW(b1));
      total[7] = wasm_f64x2_add(total[7], HIGH(b1));
    }
    for (int q = 0; q < 4; q++) {
      sum[j + 2 * q] = (float)wasm_f64x2_extract_lane(total[q], 0);
      sum[j + 2 * q + 1] = (float)wasm_f64x2_extract_lane(total[q], 1);
      dot[j + 2 * q] = (float)wasm_f64x2_extract_lane(total[q + 4], 0);
      dot[j + 2 * q + 1] = (float)wasm_f64x2_extract_lane(total[q + 4], 1);
    }
  }
  for (; j < n; j++) {
    double a = 0, b = 0;
    size_t at = j;
    for (int r = 0; r < rows; r++, at += n) {
      a += dy[at];
      b += dy[at] * (x[at] - mean[j]);
      dx[at] = dy[at] * scale[j];
    }
    sum[j] = (float)a;
    dot[j] = (float)b;
  }
}

SHARE("NuRR--RAA")
EXPORT void mf_batch_norm_back(int rows, int n, const float *x, const float *dy, const float *mean, const float *scale,
                               float *dx, float *sum, float *dot) {
  int times = repeats(n), wide = times * n, groups = rows / times;
  if (times == 1) {
    back(rows, n, x, dy, mean, scale, dx, sum, dot);
    return;
  }
  float room[4][LONGEST];
  back(groups, wide, x, dy, repeated(mean, n, times, room[0]), repeated(scale, n, times, room[1]), dx, room[2], room[3]);
  size_t done = (size_t)groups * wide;
  back(rows - groups * times, n, x + done, dy + done, mean, scale, dx + done, sum, dot);
  for (int i = 0; i < wide; i++) {
    sum[i % n] += room[2][i];
    dot[i % n] += room[3][i];
  }
}

// The same for x[outer, n, inner].
EXPORT void mf_batch_norm_back_planes(int outer, int n, int inner, const float *x, const float *dy, const float *mean,
                                      const float *scale, float *dx, float *sum, float *dot) {
  for (int c = 0; c < n; c++) {
    double first = 0, second = 0;
    f4 m = splat(mean[c]), s = splat(scale[c]);
    for (int b = 0; b < outer; b++) {
      size_t at = ((size_t)b * n + c) * inner;
      for (int from = 0; from < inner; from += 4 * BLOCK) {
        int to = from + 4 * BLOCK < inner ? from + 4 * BLOCK : inner, i = from;
        f4 p = splat(0), q = splat(0);
        for (; i + 4 <= to; i += 4) {
          f4 d = load(dy + at + i);
          p = add(p, d);
          q = madd(d, sub(load(x + at + i), m), q);
          store(dx + at + i, mul(d, s));
        }
        first += sum_lanes(p);
        second += sum_lanes(q);
        for (; i < to; i++) {
          first += dy[at + i];
          second += dy[at + i] * (x[at + i] - mean[c]);
          dx[at + i] = dy[at + i] * scale[c];
        }
      }
    }
    sum[c] = (float)first;
    dot[c] = (float)second;
  }
}

// ---------------------------------------------------------------------------------- local response normalisation

// norm^(-beta); the usual exponents without logarithms.
INLINE f4 fall(f4 norm, float beta) {
  f4 one = splat(1.0f);
  if (beta == 1) return div4(one, norm);
  if (beta == 0.5f) return div4(one, wasm_f32x4_sqrt(norm));
  if (beta == 0.75f) return div4(one, wasm_f32x4_sqrt(mul(norm, wasm_f32x4_sqrt(norm))));
  return exp4(mul(splat(-beta), log4(norm)));
}

// Sums over windows of 2·radius + 1 in a row that has `radius` zeros and four more on either side.
INLINE f4 window(const float *padded, int i, int radius) {
  f4 sum = splat(0);
  for (int d = 0; d <= 2 * radius; d++) sum = add(sum, load(padded + i + d));
  return sum;
}

// y = x·(bias + alpha·Σ x²)^(-beta), the sum over channels at most `radius` away. `work`: n + 2·radius + 8 floats.
EXPORT void mf_local_response(int rows, int n, int radius, float bias, float alpha, float beta, const float *x, float *y,
                              float *work) {
  zero(work, (size_t)n + 2 * radius + 8);
  for (int r = 0; r < rows; r++, x += n, y += n) {
    for (int i = 0; i < n; i++) work[radius + i] = x[i] * x[i];
    for (int i = 0; i < n; i += 4) {
      int lanes = n - i < 4 ? n - i : 4;
      f4 scale = fall(madd(splat(alpha), window(work, i, radius), splat(bias)), beta);
      if (lanes == 4) store(y + i, mul(load(x + i), scale));
      else store_part(y + i, mul(load_part(x + i, lanes), scale), lanes);
    }
  }
}

// dx = dy·norm^(-beta) - 2·alpha·beta·x·Σ dy·y/norm. `work`: twice as much.
EXPORT void mf_local_response_back(int rows, int n, int radius, float bias, float alpha, float beta, const float *x,
                                   const float *y, const float *dy, float *dx, float *work) {
  size_t wide = (size_t)n + 2 * radius + 8;
  float *squares = work, *shares = work + wide;
  f4 factor = splat(-2 * alpha * beta);
  zero(work, 2 * wide);
  for (int r = 0; r < rows; r++, x += n, y += n, dy += n, dx += n) {
    for (int i = 0; i < n; i++) squares[radius + i] = x[i] * x[i];
    for (int i = 0; i < n; i += 4) {
      int lanes = n - i < 4 ? n - i : 4;
      f4 norm = madd(splat(alpha), window(squares, i, radius), splat(bias));
      f4 d = load_part(dy + i, lanes), out = load_part(y + i, lanes);
      if (lanes == 4) d = load(dy + i), out = load(y + i);
      f4 first = mul(d, fall(norm, beta)), share = div4(mul(d, out), norm);
      if (lanes == 4) {
        store(dx + i, first);
        store(shares + radius + i, share);
      } else {
        store_part(dx + i, first, lanes);
        store_part(shares + radius + i, share, lanes);
      }
    }
    for (int i = 0; i < n; i += 4) {
      int lanes = n - i < 4 ? n - i : 4;
      f4 sum = mul(factor, window(shares, i, radius));
      if (lanes == 4) store(dx + i, madd(sum, load(x + i), load(dx + i)));
      else store_part(dx + i, madd(sum, load_part(x + i, lanes), load_part(dx + i, lanes)), lanes);
    }
  }
}
