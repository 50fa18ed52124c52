// 3-D convolutions (as matrix products over gathered patches) and pooling, with gradients. Volumes are
// [batch, depth, height, width, channels], filters [depth, height, width, in, out].
#include "sgemm.h"

typedef struct {
  int batch, in_d, in_h, in_w, channels, out_d, out_h, out_w, filters, kernel_d, kernel_h, kernel_w, stride_d, stride_h,
      stride_w, front, top, left, dilation_d, dilation_h, dilation_w;
} Volume;

INLINE int patch(const Volume *g) { return g->kernel_d * g->kernel_h * g->kernel_w * g->channels; }
INLINE int voxels(const Volume *g) { return g->batch * g->out_d * g->out_h * g->out_w; }
INLINE size_t floats_in(const Volume *g) { return (size_t)g->batch * g->in_d * g->in_h * g->in_w * g->channels; }

INLINE void put_row(float *to, const float *from, int n) {
  int i = 0;
  for (; i + 4 <= n; i += 4) store(to + i, load(from + i));
  for (; i < n; i++) to[i] = from[i];
}
INLINE void add_row(float *to, const float *from, int n) {
  int i = 0;
  for (; i + 4 <= n; i += 4) store(to + i, add(load(to + i), load(from + i)));
  for (; i < n; i++) to[i] += from[i];
}

// Patches of output voxels [from, to) as rows, gathered from x; with `back` the transpose of that: rows added to x.
INLINE void patches(const Volume *g, float *x, int from, int to, float *rows, int back) {
  int c = g->channels, width = g->kernel_w * c;
  int ow = from % g->out_w, oh = from / g->out_w % g->out_h, od = from / (g->out_w * g->out_h) % g->out_d;
  int b = from / (g->out_w * g->out_h * g->out_d);
  for (int p = from; p < to; p++) {
    int d0 = od * g->stride_d - g->front, h0 = oh * g->stride_h - g->top, w0 = ow * g->stride_w - g->left;
    int whole = g->dilation_w == 1 && w0 >= 0 && w0 + g->kernel_w <= g->in_w;
    for (int kd = 0; kd < g->kernel_d; kd++) {
      int d = d0 + kd * g->dilation_d;
      if (d < 0 || d >= g->in_d) {
        if (!back) zero(rows, (size_t)g->kernel_h * width);
        rows += (size_t)g->kernel_h * width;
        continue;
      }
      for (int kh = 0; kh < g->kernel_h; kh++, rows += width) {
        int h = h0 + kh * g->dilation_h;
        if (h < 0 || h >= g->in_h) {
          if (!back) zero(rows, width);
          continue;
        }
        float *line = x + (((size_t)b * g->in_d + d) * g->in_h + h) * g->in_w * c;
        if (whole) {
          if (back) add_row(line + w0 * c, rows, width);
          else put_row(rows, line + w0 * c, width);
          continue;
        }
        for (int kw = 0; kw < g->kernel_w; kw++) {
          int w = w0 + kw * g->dilation_w, inside = w >= 0 && w < g->in_w;
          if (back && inside) add_row(line + w * c, rows + kw * c, c);
          if (!back && inside) put_row(rows + kw * c, line + w * c, c);
          if (!back && !inside) zero(rows + kw * c, c);
        }
      }
    }
    if (++ow < g->out_w) continue;
    ow = 0;
    if (++oh < g->out_h) continue;
    oh = 0;
    if (++od < g->out_d) continue;
    od = 0;
    b++;
  }
}
static void gather_patches(const Volume *g, const float *x, int from, int to, float *rows) {
  patches(g, (float *)x, from, to, rows, 0);
}
static void add_patches(const Volume *g, float *x, int from, int to, float *rows) { patches(g, x, from, to, rows, 1); }

#define CHUNK_FLOATS (1 << 17)
static int chunk(const Volume *g) {
  int rows = CHUNK_FLOATS / (patch(g) > 0 ? patch(g) : 1);
  rows = rows < SGEMM_MC ? SGEMM_MC : rows - rows % SGEMM_MC;
  int all = voxels(g);
  return rows < all ? rows : all;
}
INLINE int pointwise(const Volume *g) {
  return g->kernel_d == 1 && g->kernel_h == 1 && g->kernel_w == 1 && g->stride_d == 1 && g->stride_h == 1 &&
         g->stride_w == 1 && g->in_d == g->out_d && g->in_h == g->out_h && g->in_w == g->out_w;
}

// Bytes of work area: one chunk of patches and that of sgemm.
EXPORT double mf_conv3d_work(const Volume *g) {
  return (double)(pointwise(g) ? 0 : chunk(g)) * patch(g) * sizeof(float) + SGEMM_WORK * sizeof(float);
}

EXPORT void mf_conv3d(const Volume *g, const float *x, const float *w, float *y, float *work) {
  int k = patch(g), n = g->filters, all = voxels(g), step = chunk(g);
  if (pointwise(g)) {
    sgemm(0, 0, all, n, k, x, k, w, n, y, n, 0, work);
    return;
  }
  float *rows = work + SGEMM_WORK;
  for (int p = 0; p < all; p += step) {
    int to = p + step < all ? p + step : all;
    gather_patches(g, x, p, to, rows);
    sgemm(0, 0, to - p, n, k, rows, k, w, n, y + (size_t)p * n, n, 0, work);
  }
}

EXPORT void mf_conv3d_back_filter(const Volume *g, const float *x, const float *dy, float *dw, float *work) {
  int k = patch(g), n = g->filters, all = voxels(g), step = chunk(g);
  if (pointwise(g)) {
    sgemm(1, 0, k, n, all, x, k, dy, n, dw, n, 0, work);
    return;
  }
  float *rows = work + SGEMM_WORK;
  if (all == 0) zero(dw, (size_t)k * n);
  for (int p = 0; p < all; p += step) {
    int to = p + step < all ? p + step : all;
    gather_patches(g, x, p, to, rows);
    sgemm(1, 0, k, n, to - p, rows, k, dy + (size_t)p * n, n, dw, n, p > 0, work);
  }
}

EXPORT void mf_conv3d_back_input(const Volume *g, const float *dy, const float *w, float *dx, float *work) {
  int k = patch(g), n = g->filters, all = voxels(g), step = chunk(g);
  if (pointwise(g)) {
    sgemm(0, 1, all, k, n, dy, n, w, n, dx, k, 0, work);
    return;
  }
  float *rows = work + SGEMM_WORK;
  zero(dx, floats_in(g));
  for (int p = 0; p < all; p += step) {
    int to = p + step < all ? p + step : all;
    sgemm(0, 1, to - p, k, n, dy + (size_t)p * n, n, w, n, rows, k, 0, work);
    add_patches(g, dx, p, to, rows);
  }
}

// --------------------------------------------------------------------------------------------------------- pooling

// The part of a window along one axis that lies in the volume: [first, last) for a window that begins at `begin`.
INLINE int first_of(int begin) { return begin < 0 ? 0 : begin; }
INLINE int last_of(int begin, int kernel, int all) { return begin + kernel < all ? begin + kernel : all; }

#define FOR_OUTPUTS(g)                                                                                             \
  size_t out = 0;                                                                                                  \
  for (int b = 0; b < g->batch; b++)                                                                               \
    for (int od = 0, d0 = -g->front; od < g->out_d; od++, d0 += g->stride_d)                                       \
      for (int oh = 0, h0 = -g->top; oh < g->out_h; oh++, h0 += g->stride_h)                                       \
        for (int ow = 0, w0 = -g->left; ow < g->out_w; ow++, w0 += g->stride_w, out += g->channels)
#define FOR_INPUTS(g)                                                                                              \
  for (int d = first_of(d0), d1 = last_of(d0, g->kernel_d, g->in_d); d < d1; d++)                                  \
    for (int h = first_of(h0), h1 = last_of(h0, g->kernel_h, g->in_h); h < h1; h++)                                \
      for (int w = first_of(w0), w1 = last_of(w0, g->kernel_w, g->in_w),                                           \
               at = (((b * g->in_d + d) * g->in_h + h) * g->in_w + w) * g->channels;                               \
           w < w1; w++, at += g->channels)

// Where the element replaces the best so far: greater, or not a number.
INLINE v128_t beats(f4 v, f4 best) { return wasm_v128_or(wasm_f32x4_gt(v, best), wasm_f32x4_ne(v, v)); }

// The largest element of each window; NaN where the window holds one.
EXPORT void mf_max_pool3d(const Volume *g, const float *x, float *y) {
  int c = g->channels;
  FOR_OUTPUTS(g) {
    for (int i = 0; i < c; i += 4) {
      int lanes = c - i < 4 ? c - i : 4;
      f4 best = splat(-__builtin_inff());
      FOR_INPUTS(g) {
        f4 v = lanes == 4 ? load(x + at + i) : load_part(x + at + i, lanes);
        best = wasm_v128_bitselect(v, best, beats(v, best));
      }
      if (lanes == 4) store(y + out + i, best);
      else store_part(y + out + i, best, lanes);
    }
  }
}

// To the first maximum of each window, or its first NaN.
EXPORT void mf_max_pool3d_back(const Volume *g, const float *x, const float *dy, float *dx) {
  int c = g->channels;
  zero(dx, floats_in(g));
  FOR_OUTPUTS(g) {
    for (int i = 0; i < c; i += 4) {
      int lanes = c - i < 4 ? c - i : 4;
      f4 best = splat(-__builtin_inff());
      v128_t place = wasm_i32x4_splat(-1);
      FOR_INPUTS(g) {
        f4 v = lanes == 4 ? load(x + at + i) : load_part(x + at + i, lanes);
        v128_t none = wasm_i32x4_lt(place, wasm_i32x4_splat(0));
        v128_t better = wasm_v128_or(wasm_v128_and(beats(v, best), wasm_f32x4_eq(best, best)), none);
        best = wasm_v128_bitselect(v, best, better);
        place = wasm_v128_bitselect(wasm_i32x4_splat(at), place, better);
      }
      int found[4];
      wasm_v128_store(found, place);
      for (int q = 0; q < lanes; q++)
        if (found[q] >= 0) dx[found[q] + i + q] += dy[out + i + q];
    }
  }
}

INLINE float share_of(const Volume *g, int d0, int h0, int w0) {
  int d = last_of(d0, g->kernel_d, g->in_d) - first_of(d0), h = last_of(h0, g->kernel_h, g->in_h) - first_of(h0);
  int w = last_of(w0, g->kernel_w, g->in_w) - first_of(w0);
  return d > 0 && h > 0 && w > 0 ? 1.0f / (d * h * w) : 0;
}

// The mean of the voxels of a window that lie in the volume.
EXPORT void mf_avg_pool3d(const Volume *g, const float *x, float *y) {
  int c = g->channels;
  FOR_OUTPUTS(g) {
    float share = share_of(g, d0, h0, w0);
    zero(y + out, c);
    FOR_INPUTS(g) add_row(y + out, x + at, c);
    for (int i = 0; i < c; i++) y[out + i] *= share;
  }
}
EXPORT void mf_avg_pool3d_back(const Volume *g, const float *dy, float *dx) {
  int c = g->channels;
  zero(dx, floats_in(g));
  FOR_OUTPUTS(g) {
    float share = share_of(g, d0, h0, w0);
    f4 s = splat(share);
    FOR_INPUTS(g) {
      int i = 0;
      for (; i + 4 <= c; i += 4) store(dx + at + i, madd(s, load(dy + out + i), load(dx + at + i)));
      for (; i < c; i++) dx[at + i] += share * dy[out + i];
    }
  }
}
