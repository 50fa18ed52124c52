// Functions of whole rows: softmax, layer norm, cross-entropy, sums; and moving rows about.
#include "vmath.h"

static float row_max(const float *x, int n) {
  f4 best = splat(-__builtin_inff());
  int i = 0;
  for (; i + 4 <= n; i += 4) best = max4(best, load(x + i));
  float top = max_lanes(best);
  for (; i < n; i++) top = __builtin_wasm_max_f32(top, x[i]);
  return top;
}

// Sums run in blocks, so that the rounding error grows with the number of blocks and not with that of elements.
static double row_sum(const float *x, int n) {
  double total = 0;
  for (int from = 0; from < n; from += 512) {
    int to = from + 512 < n ? from + 512 : n, i = from;
    f4 s0 = splat(0), s1 = splat(0), s2 = splat(0), s3 = splat(0);
    for (; i + 16 <= to; i += 16) {
      s0 = add(s0, load(x + i));
      s1 = add(s1, load(x + i + 4));
      s2 = add(s2, load(x + i + 8));
      s3 = add(s3, load(x + i + 12));
    }
    for (; i + 4 <= to; i += 4) s0 = add(s0, load(x + i));
    float block = sum_lanes(add(add(s0, s1), add(s2, s3)));
    for (; i < to; i++) block += x[i];
    total += block;
  }
  return total;
}

static float row_dot(const float *x, const float *y, int n) {
  f4 s0 = splat(0), s1 = splat(0);
  int i = 0;
  for (; i + 8 <= n; i += 8) {
    s0 = madd(load(x + i), load(y + i), s0);
    s1 = madd(load(x + i + 4), load(y + i + 4), s1);
  }
  float s = sum_lanes(add(s0, s1));
  for (; i < n; i++) s += x[i] * y[i];
  return s;
}

// y = exp(x - top); returns the sum.
static float exp_row(const float *x, float top, float *y, int n) {
  f4 t = splat(top), sum = splat(0);
  int i = 0;
  for (; i + 4 <= n; i += 4) {
    f4 e = exp4(sub(load(x + i), t));
    store(y + i, e);
    sum = add(sum, e);
  }
  float total = sum_lanes(sum);
  if (i < n) {
    store_part(y + i, exp4(sub(load_part(x + i, n - i), t)), n - i);
    for (; i < n; i++) total += y[i];
  }
  return total;
}

static float log1(float x) { return wasm_f32x4_extract_lane(log4(splat(x)), 0); }

static void scale_row(float *y, float factor, int n) {
  f4 f = splat(factor);
  int i = 0;
  for (; i + 4 <= n; i += 4) store(y + i, mul(load(y + i), f));
  for (; i < n; i++) y[i] *= factor;
}

SHARE("NuRR")
EXPORT void mf_softmax(int rows, int n, const float *x, float *y) {
  for (int r = 0; r < rows; r++, x += n, y += n) scale_row(y, 1 / exp_row(x, row_max(x, n), y, n), n);
}

// Softmax of scale·x over the keys up to the query's own place: rows come as [..., queries, n], row q of each block sees
// the first n - queries + q + 1 keys.
SHARE("Nqu-RR")
EXPORT void mf_causal_softmax(int rows, int queries, int n, float scale, const float *x, float *y) {
  for (int r = 0; r < rows; r++, x += n, y += n) {
    int seen = n - queries + r % queries + 1;
    for (int i = 0; i < seen; i++) y[i] = scale * x[i];
    scale_row(y, 1 / exp_row(y, row_max(y, seen), y, seen), seen);
    zero(y + seen, n - seen);
  }
}

// dx = scale · y · (dy - Σ y·dy)
SHARE("Nu-RRR")
EXPORT void mf_softmax_back(int rows, int n, float scale, const float *y, const float *dy, float *dx) {
  for (int r = 0; r < rows; r++, y += n, dy += n, dx += n) {
    float dot = row_dot(y, dy, n);
    f4 d = splat(dot), s = splat(scale);
    int i = 0;
    for (; i + 4 <= n; i += 4) store(dx + i, mul(s, mul(load(y + i), sub(load(dy + i), d))));
    for (; i < n; i++) dx[i] = scale * y[i] * (dy[i] - dot);
  }
}

SHARE("NuRR")
EXPORT void mf_log_softmax(int rows, int n, const float *x, float *y) {
  for (int r = 0; r < rows; r++, x += n, y += n) {
    // One after the other: beside a large top, the logarithm would be lost in their sum.
    float top = row_max(x, n), rest = log1(exp_row(x, top, y, n));
    for (int i = 0; i < n; i++) y[i] = (x[i] - top) - rest;
  }
}

// dx = dy - exp(y) · Σ dy
SHARE("NuRRR")
EXPORT void mf_log_softmax_back(int rows, int n, const float *y, const float *dy, float *dx) {
  for (int r = 0; r < rows; r++, y += n, dy += n, dx += n) {
    f4 s = splat(row_sum(dy, n));
    int i = 0;
    for (; i + 4 <= n; i += 4) store(dx + i, sub(load(dy + i), mul(exp4(load(y + i)), s)));
    if (i < n) store_part(dx + i, sub(load_part(dy + i, n - i), mul(exp4(load_part(y + i, n - i)), s)), n - i);
  }
}

// loss[r] = log Σ exp(x[r]) - x[r, label]. A label outside [0, n) is an ignored row: loss and gradient 0.
INLINE int ignored(int label, int n) { return label < 0 || label >= n; }
EXPORT void mf_cross_entropy(int rows, int n, const float *x, const int *labels, float *loss, float *work) {
  for (int r = 0; r < rows; r++, x += n) {
    loss[r] = 0;
    if (ignored(labels[r], n)) continue;
    float top = row_max(x, n);
    loss[r] = (top - x[labels[r]]) + log1(exp_row(x, top, work, n));
  }
}
SHARE("NuRSSR")
EXPORT void mf_cross_entropy_back(int rows, int n, const float *x, const int *labels, const float *dloss, float *dx) {
  for (int r = 0; r < rows; r++, x += n, dx += n) {
    if (ignored(labels[r], n)) {
      zero(dx, n);
      continue;
    }
    scale_row(dx, dloss[r] / exp_row(x, row_max(x, n), dx, n), n);
    dx[labels[r]] -= dloss[r];
  }
}

// Layer norm over rows of n: y = γ·(x - mean)·rstd + β. mean and rstd stay for the gradient.
SHARE("NuR---RSS")
EXPORT void mf_layer_norm(int rows, int n, const float *x, const float *gamma, const float *beta, float eps, float *y,
                          float *mean, float *rstd) {
  for (int r = 0; r < rows; r++, x += n, y += n) {
    float m = (float)(row_sum(x, n) / n);
    f4 mm = splat(m), s = splat(0);
    int i = 0;
    for (; i + 4 <= n; i += 4) {
      f4 d = sub(load(x + i), mm);
      s = madd(d, d, s);
    }
    float square = sum_lanes(s);
    for (; i < n; i++) square += (x[i] - m) * (x[i] - m);
    float scale = 1 / __builtin_sqrtf(square / n + eps);
    f4 ss = splat(scale);
    for (i = 0; i + 4 <= n; i += 4)
      store(y + i, madd(mul(sub(load(x + i), mm), ss), load(gamma + i), load(beta + i)));
    for (; i < n; i++) y[i] = (x[i] - m) * scale * gamma[i] + beta[i];
    mean[r] = m;
    rstd[r] = scale;
  }
}
// dx = rstd·(γ·dy - mean(γ·dy) - x̂·mean(γ·dy·x̂)), dγ = Σ dy·x̂, dβ = Σ dy
SHARE("NuR-RSSRAA")
EXPORT void mf_layer_norm_back(int rows, int n, const float *x, const float *gamma, const float *dy, const float *mean,
                               const float *rstd, float *dx, float *dgamma, float *dbeta) {
  zero(dgamma, n);
  zero(dbeta, n);
  for (int r = 0; r < rows; r++, x += n, dy += n, dx += n) {
    float m = mean[r], scale = rstd[r], first = 0, second = 0;
    f4 mm = splat(m), ss = splat(scale), s0 = splat(0), s1 = splat(0);
    int i = 0;
    for (; i + 4 <= n; i += 4) {
      f4 d = load(dy + i), hat = mul(sub(load(x + i), mm), ss), gd = mul(d, load(gamma + i));
      store(dgamma + i, madd(d, hat, load(dgamma + i)));
      store(dbeta + i, add(d, load(dbeta + i)));
      s0 = add(s0, gd);
      s1 = madd(gd, hat, s1);
    }
    first = sum_lanes(s0);
    second = sum_lanes(s1);
    for (; i < n; i++) {
      float hat = (x[i] - m) * scale, gd = dy[i] * gamma[i];
      dgamma[i] += dy[i] * hat;
      dbeta[i] += dy[i];
      first += gd;
      second += gd * hat;
    }
    first /= n;
    second /= n;
    f4 f = splat(first), q = splat(second);
    for (i = 0; i + 4 <= n; i += 4) {
      f4 hat = mul(sub(load(x + i), mm), ss), gd = mul(load(dy + i), load(gamma + i));
      store(dx + i, mul(ss, sub(sub(gd, f), mul(hat, q))));
    }
    for (; i < n; i++) dx[i] = scale * (dy[i] * gamma[i] - first - (x[i] - m) * scale * second);
  }
}

// ---------------------------------------------------------------------------------------------------------- reduce

// x[outer, n, inner] summed over n, times scale.
SHARE("NuiRS-")
EXPORT void mf_sum(int outer, int n, int inner, const float *x, float *y, float scale) {
  if (inner == 1) {
    for (int o = 0; o < outer; o++, x += n) y[o] = (float)(row_sum(x, n) * scale);
    return;
  }
  for (int o = 0; o < outer; o++, x += (size_t)n * inner, y += inner) {
    int j = 0;
    for (; j + 16 <= inner; j += 16) {
      v128_t s[8];
      for (int q = 0; q < 8; q++) s[q] = wasm_f64x2_splat(0);
      const float *at = x + j;
      // Blocks of 32 rows in single precision, added up in double precision.
      for (int from = 0; from < n; from += 32) {
        f4 b0 = splat(0), b1 = splat(0), b2 = splat(0), b3 = splat(0);
        int to = from + 32 < n ? from + 32 : n;
        for (int i = from; i < to; i++, at += inner) {
          b0 = add(b0, load(at));
          b1 = add(b1, load(at + 4));
          b2 = add(b2, load(at + 8));
          b3 = add(b3, load(at + 12));
        }
#define LOW(v) wasm_f64x2_promote_low_f32x4(v)
#define HIGH(v) wasm_f64x2_promote_low_f32x4(wasm_i64x2_shuffle(v, v, 1, 0))
        s[0] = wasm_f64x2_add(s[0], LOW(b0));
        s[1] = wasm_f64x2_add(s[1], HIGH(b0));
        s[2] = wasm_f64x2_add(s[2], LOW(b1));
        s[3] = wasm_f64x2_add(s[3], HIGH(b1));
        s[4] = wasm_f64x2_add(s[4], LOW(b2));
        s[5] = wasm_f64x2_add(s[5], HIGH(b2));
        s[6] = wasm_f64x2_add(s[6], LOW(b3));
        s[7] = wasm_f64x2_add(s[7], HIGH(b3));
      }
      for (int q = 0; q < 8; q++) {
        y[j + 2 * q] = (float)(wasm_f64x2_extract_lane(s[q], 0) * scale);
        y[j + 2 * q + 1] = (float)(wasm_f64x2_extract_lane(s[q], 1) * scale);
      }
    }
    for (; j < inner; j++) {
      double s = 0;
      for (int i = 0; i < n; i++) s += x[(size_t)i * inner + j];
      y[j] = (float)(s * scale);
    }
  }
}

// ------------------------------------------------------------------------------------------------------------ move

// Rows x[index[i]] of `row` bytes for each of `outer` tables of `dim` rows. Returns the place of an index out of range, or -1.
EXPORT int mf_gather(int outer, int dim, int count, int row, const uint8_t *x, const int *index, uint8_t *y) {
  for (int i = 0; i < count; i++)
    if (index[i] < 0 || index[i] >= dim) return i;
  for (int o = 0; o < outer; o++, x += (size_t)dim * row)
    for (int i = 0; i < count; i++, y += row) {
      const uint8_t *from = x + (size_t)index[i] * row;
      if (row == 4) *(uint32_t *)y = *(const uint32_t *)from;
      else __builtin_memcpy(y, from, row);
    }
  return -1;
}

EXPORT void mf_segment_sum(int count, int segments, int row, const float *x, const int *ids, float *y) {
  zero(y, (size_t)segments * row);
  for (int i = 0; i < count; i++, x += row) {
    if (ids[i] < 0 || ids[i] >= segments) continue;
    float *to = y + (size_t)ids[i] * row;
    int j = 0;
    for (; j + 4 <= row; j += 4) store(to + j, add(load(to + j), load(x + j)));
    for (; j < row; j++) to[j] += x[j];
  }
}

// `rows` pieces of `bytes` from one regular place to another.
SHARE("N-T-T-")
EXPORT void mf_copy_rows(int rows, int bytes, const uint8_t *from, int from_step, uint8_t *to, int to_step) {
  for (int i = 0; i < rows; i++, from += from_step, to += to_step) __builtin_memcpy(to, from, bytes);
}

// y at strides d0, d1, d2, 1 = x at strides s0..s3 (in 4-byte elements): any transposition after merging of axes. Where
// s2 is 1, tiles of 4×4 go through registers.
EXPORT void mf_transpose(int n0, int n1, int n2, int n3, int s0, int s1, int s2, int s3, int d0, int d1, int d2,
                         const uint32_t *x, uint32_t *y) {
  for (int i0 = 0; i0 < n0; i0++)
    for (int i1 = 0; i1 < n1; i1++) {
      const uint32_t *from = x + (size_t)i0 * s0 + (size_t)i1 * s1;
      uint32_t *out = y + (size_t)i0 * d0 + (size_t)i1 * d1;
      if (s3 == 1) {
        for (int i2 = 0; i2 < n2; i2++) __builtin_memcpy(out + (size_t)i2 * d2, from + (size_t)i2 * s2, 4 * (size_t)n3);
        continue;
      }
      int i2 = 0;
      if (s2 == 1)
        for (; i2 + 4 <= n2; i2 += 4) {
          int i3 = 0;
          uint32_t *to = out + (size_t)i2 * d2;
          for (; i3 + 4 <= n3; i3 += 4) {
            const uint32_t *at = from + i2 + (size_t)i3 * s3;
            v128_t r0 = wasm_v128_load(at), r1 = wasm_v128_load(at + s3), r2 = wasm_v128_load(at + 2 * (size_t)s3),
                   r3 = wasm_v128_load(at + 3 * (size_t)s3);
            v128_t t0 = wasm_i32x4_shuffle(r0, r1, 0, 4, 1, 5), t1 = wasm_i32x4_shuffle(r0, r1, 2, 6, 3, 7);
            v128_t t2 = wasm_i32x4_shuffle(r2, r3, 0, 4, 1, 5), t3 = wasm_i32x4_shuffle(r2, r3, 2, 6, 3, 7);
            wasm_v128_store(to + i3, wasm_i64x2_shuffle(t0, t2, 0, 2));
            wasm_v128_store(to + d2 + i3, wasm_i64x2_shuffle(t0, t2, 1, 3));
            wasm_v128_store(to + 2 * (size_t)d2 + i3, wasm_i64x2_shuffle(t1, t3, 0, 2));
            wasm_v128_store(to + 3 * (size_t)d2 + i3, wasm_i64x2_shuffle(t1, t3, 1, 3));
          }
          for (; i3 < n3; i3++)
            for (int q = 0; q < 4; q++) to[(size_t)q * d2 + i3] = from[i2 + q + (size_t)i3 * s3];
        }
      for (; i2 < n2; i2++)
        for (int i3 = 0; i3 < n3; i3++) out[(size_t)i2 * d2 + i3] = from[(size_t)i2 * s2 + (size_t)i3 * s3];
    }
}
