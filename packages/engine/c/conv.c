// 2-D convolutions (as matrix products over gathered patches), depthwise convolutions and pooling, with gradients.
#include "geometry.h"
#include "sgemm.h"
#ifdef __wasm__
#include "direct.h"
#endif

// Patches of output pixels [from, to) as rows of kernel_h·kernel_w·channels. Written in order, so that the last of a few
// numbers may be written with what follows them: that is overwritten next (up to three floats past the end are not ours).
static void patches(const Geometry *g, const float *x, int from, int to, float *rows) {
  int c = g->channels, width = g->kernel_w * c;
  int ow = from % g->out_w, oh = from / g->out_w % g->out_h, b = from / (g->out_w * g->out_h);
  const float *end = x + (size_t)g->batch * g->in_h * g->in_w * c;
  for (int p = from; p < to; p++) {
    int h0 = oh * g->stride_h - g->top, w0 = ow * g->stride_w - g->left;
    int whole = g->dilation_w == 1 && w0 >= 0 && w0 + g->kernel_w <= g->in_w;
    for (int kh = 0; kh < g->kernel_h; kh++, rows += width) {
      int h = h0 + kh * g->dilation_h;
      if (h < 0 || h >= g->in_h) {
        zero(rows, width);
        continue;
      }
      const float *line = x + ((size_t)b * g->in_h + h) * g->in_w * c;
      if (whole) {
        const float *at = line + w0 * c;
        int i = 0;
        for (; i + 4 <= width; i += 4) store(rows + i, load(at + i));
        if (i == width) continue;
        if (at + i + 4 <= end) store(rows + i, load(at + i));
        else
          for (; i < width; i++) rows[i] = at[i];
        continue;
      }
      for (int kw = 0; kw < g->kernel_w; kw++) {
        int w = w0 + kw * g->dilation_w;
        if (w < 0 || w >= g->in_w) zero(rows + kw * c, c);
        else
          for (int i = 0; i < c; i++) rows[kw * c + i] = line[w * c + i];
      }
    }
    if (++ow == g->out_w) {
      ow = 0;
      if (++oh == g->out_h) {
        oh = 0;
        b++;
      }
    }
  }
}

// The transpose of `patches`: adds rows to the pixels that they were gathered from.
static void add_patches(const Geometry *g, float *x, int from, int to, const float *rows) {
  int c = g->channels, width = g->kernel_w * c;
  int ow = from % g->out_w, oh = from / g->out_w % g->out_h, b = from / (g->out_w * g->out_h);
  for (int p = from; p < to; p++) {
    int h0 = oh * g->stride_h - g->top, w0 = ow * g->stride_w - g->left;
    int whole = g->dilation_w == 1 && w0 >= 0 && w0 + g->kernel_w <= g->in_w;
    for (int kh = 0; kh < g->kernel_h; kh++, rows += width) {
      int h = h0 + kh * g->dilation_h;
      if (h < 0 || h >= g->in_h) continue;
      float *line = x + ((size_t)b * g->in_h + h) * g->in_w * c;
      if (whole) {
        float *at = line + w0 * c;
        int i = 0;
        for (; i + 4 <= width; i += 4) store(at + i, add(load(at + i), load(rows + i)));
        for (; i < width; i++) at[i] += rows[i];
        continue;
      }
      for (int kw = 0; kw < g->kernel_w; kw++) {
        int w = w0 + kw * g->dilation_w;
        if (w >= 0 && w < g->in_w)
          for (int i = 0; i < c; i++) line[w * c + i] += rows[kw * c + i];
      }
    }
    if (++ow == g->out_w) {
      ow = 0;
      if (++oh == g->out_h) {
        oh = 0;
        b++;
      }
    }
  }
}

#define CHUNK_FLOATS (1 << 17)
INLINE int depth(const Geometry *g) { return g->kernel_h * g->kernel_w * g->channels; }
INLINE int pixels(const Geometry *g) { return g->batch * g->out_h * g->out_w; }
static int chunk(const Geometry *g) {
  int rows = CHUNK_FLOATS / (depth(g) > 0 ? depth(g) : 1);
  rows = rows < SGEMM_MC ? SGEMM_MC : rows - rows % SGEMM_MC;
  int all = pixels(g);
  return rows < all ? rows : all;
}
INLINE int pointwise(const Geometry *g) {
  return g->kernel_h == 1 && g->kernel_w == 1 && g->stride_h == 1 && g->stride_w == 1 && g->top == 0 && g->left == 0 &&
         g->in_h == g->out_h && g->in_w == g->out_w;
}

// Machine code has wider vectors for products over patches than for these.
#ifdef __wasm__
#define DIRECT(fits, run) \
  if (!pointwise(g) && fits(g)) { \
    run; \
    return; \
  }
static size_t direct_work(const Geometry *g) {
  size_t floats = direct_fits(g) ? direct_floats(g) : 0;
  size_t input = direct_back_input_fits(g) ? direct_back_input_floats(g) : 0;
  size_t filter = direct_back_filter_fits(g) ? direct_back_filter_floats(g) : 0;
  if (input > floats) floats = input;
  return filter > floats ? filter : floats;
}
#else
#define DIRECT(fits, run)
static size_t direct_work(const Geometry *g) { return g ? 0 : 0; }
#endif

// Bytes of work area: one chunk of patches and that of sgemm, or what is needed without patches.
EXPORT double mf_conv_work(const Geometry *g) {
  double patched = (double)(pointwise(g) ? 0 : chunk(g)) * depth(g) + SGEMM_WORK, direct = (double)direct_work(g);
  return (patched > direct ? patched : direct) * sizeof(float) + 64;
}

SHARE("GI-OW")
EXPORT void mf_conv(const Geometry *g, const float *x, const float *w, float *y, float *work) {
  DIRECT(direct_fits, direct_conv(g, x, w, y, work))
  int k = depth(g), n = g->filters, all = pixels(g), step = chunk(g);
  if (pointwise(g)) {
    sgemm(0, 0, all, n, k, x, k, w, n, y, n, 0, work);
    return;
  }
  float *rows = work + SGEMM_WORK;
  for (int p = 0; p < all; p += step) {
    int to = p + step < all ? p + step : all;
    patches(g, x, p, to, rows);
    sgemm(0, 0, to - p, n, k, rows, k, w, n, y + (size_t)p * n, n, 0, work);
  }
}

SHARE("GIOAW")
EXPORT void mf_conv_back_filter(const Geometry *g, const float *x, const float *dy, float *dw, float *work) {
  DIRECT(direct_back_filter_fits, direct_back_filter(g, x, dy, dw, work))
  int k = depth(g), n = g->filters, all = pixels(g), step = chunk(g);
  if (pointwise(g)) {
    sgemm(1, 0, k, n, all, x, k, dy, n, dw, n, 0, work);
    return;
  }
  float *rows = work + SGEMM_WORK;
  if (all == 0) zero(dw, (size_t)k * n);
  for (int p = 0; p < all; p += step) {
    int to = p + step < all ? p + step : all;
    patches(g, x, p, to, rows);
    sgemm(1, 0, k, n, to - p, rows, k, dy + (size_t)p * n, n, dw, n, p > 0, work);
  }
}

SHARE("GO-IW")
EXPORT void mf_conv_back_input(const Geometry *g, const float *dy, const float *w, float *dx, float *work) {
  DIRECT(direct_back_input_fits, direct_back_input(g, dy, w, dx, work))
  int k = depth(g), n = g->filters, all = pixels(g), step = chunk(g);
  if (pointwise(g)) {
    sgemm(0, 1, all, k, n, dy, n, w, n, dx, k, 0, work);
    return;
  }
  float *rows = work + SGEMM_WORK;
  zero(dx, (size_t)g->batch * g->in_h * g->in_w * g->channels);
  for (int p = 0; p < all; p += step) {
    int to = p + step < all ? p + step : all;
    sgemm(0, 1, to - p, k, n, dy + (size_t)p * n, n, w, n, rows, k, 0, work);
    add_patches(g, dx, p, to, rows);
  }
}

// --------------------------------------------------------------------------------------------------------- windows

// The taps [from, to) along one axis of a window that begins at pixel `start` which lie in the image.
typedef struct {
  int from, to;
} Taps;
INLINE Taps taps(int start, int step, int count, int length) {
  Taps t = {start < 0 ? (step - 1 - start) / step : 0, start < length ? (length - 1 - start) / step + 1 : 0};
  if (t.to > count) t.to = count;
  if (t.to < t.from) t.to = t.from;
  return t;
}

// Runs BODY for every output pixel `out`: the taps `rows` and `columns` of its window lie in the image.
#define FOR_PIXELS(g, BODY)                                                \
  for (int b = 0; b < g->batch; b++)                                       \
    for (int oh = 0; oh < g->out_h; oh++) {                                \
      int h0 = oh * g->stride_h - g->top;                                  \
      Taps rows = taps(h0, g->dilation_h, g->kernel_h, g->in_h);           \
      for (int ow = 0; ow < g->out_w; ow++) {                              \
        int w0 = ow * g->stride_w - g->left;                               \
        Taps columns = taps(w0, g->dilation_w, g->kernel_w, g->in_w);      \
        size_t out = ((size_t)b * g->out_h + oh) * g->out_w + ow;          \
        BODY                                                               \
      }                                                                    \
    }

// Runs BODY for those taps (kh, kw); `in` is the pixel under one.
#define FOR_WINDOW(g, BODY)                                                        \
  for (int kh = rows.from; kh < rows.to; kh++) {                                   \
    int line = (b * g->in_h + h0 + kh * g->dilation_h) * g->in_w + w0;             \
    for (int kw = columns.from; kw < columns.to; kw++) {                           \
      int in = line + kw * g->dilation_w;                                          \
      BODY                                                                         \
    }                                                                              \
  }

// Channels [0, c) of a pixel: START, STEP for each tap of its window, END, sixteen channels at a time as long as there are so
// many, then four. `i` is the first of them, `q` which four. The last channels are left to what follows.
#define EACH4(X) X(0) X(1) X(2) X(3)
#define CHANNELS(g, START, STEP, END) \
  int i = 0;                          \
  for (; i + 16 <= c; i += 16) {      \
    EACH4(START)                      \
    FOR_WINDOW(g, EACH4(STEP))        \
    EACH4(END)                        \
  }                                   \
  for (; i + 4 <= c; i += 4) {        \
    START(0)                          \
    FOR_WINDOW(g, STEP(0))            \
    END(0)                            \
  }

// ------------------------------------------------------------------------------------------------------- depthwise

#define FOR_TAPS(g, BODY)          \
  FOR_PIXELS(g, {                  \
    FOR_WINDOW(g, {                \
      int tap = kh * g->kernel_w + kw; \
      BODY                         \
    })                             \
  })

// One filter for each channel: y[p] = Σ x[p + tap]·w[tap]. `flipped` takes the taps of w from the last to the first.
static void one_each(const Geometry *g, const float *x, const float *w, int flipped, float *y) {
  int c = g->channels, step = flipped ? -c : c;
  if (flipped) w += (size_t)(g->kernel_h * g->kernel_w - 1) * c;
#define START(q) f4 sum##q = splat(0);
#define STEP(q) sum##q = madd(load(x + (size_t)in * c + i + 4 * q), load(w + (kh * g->kernel_w + kw) * step + i + 4 * q), sum##q);
#define END(q) store(y + out * c + i + 4 * q, sum##q);
  FOR_PIXELS(g, {
    CHANNELS(g, START, STEP, END)
    for (; i < c; i++) {
      float sum = 0;
      FOR_WINDOW(g, sum += x[(size_t)in * c + i] * w[(kh * g->kernel_w + kw) * step + i];)
      y[out * c + i] = sum;
    }
  })
#undef START
#undef STEP
#undef END
}

// Here `filters` is the number of output channels: channels times the multiplier.
SHARE("GI-O")
EXPORT void mf_depthwise(const Geometry *g, const float *x, const float *w, float *y) {
  int c = g->channels, n = g->filters, m = c ? n / c : 0;
  if (m == 1) {
    one_each(g, x, w, 0, y);
    return;
  }
  zero(y, (size_t)pixels(g) * n);
  FOR_TAPS(g, {
    const float *xi = x + (size_t)in * c; const float *wi = w + (size_t)tap * n; float *yi = y + out * n;
    for (int i = 0; i < c; i++)
      for (int q = 0; q < m; q++) yi[i * m + q] += xi[i] * wi[i * m + q];
  })
}

SHARE("GO-I")
EXPORT void mf_depthwise_back_input(const Geometry *g, const float *dy, const float *w, float *dx) {
  int c = g->channels, n = g->filters, m = c ? n / c : 0;
  if (m == 1 && g->stride_h == 1 && g->stride_w == 1) {
    int top = (g->kernel_h - 1) * g->dilation_h - g->top, left = (g->kernel_w - 1) * g->dilation_w - g->left;
    Geometry back = {g->batch, g->out_h, g->out_w, c, g->in_h, g->in_w, c, g->kernel_h, g->kernel_w, 1, 1, top, left, g->dilation_h, g->dilation_w};
    one_each(&back, dy, w, 1, dx);
    return;
  }
  zero(dx, (size_t)g->batch * g->in_h * g->in_w * c);
  FOR_TAPS(g, {
    float *xi = dx + (size_t)in * c; const float *wi = w + (size_t)tap * n; const float *yi = dy + out * n;
    int i = 0;
    if (m == 1) {
      for (; i + 4 <= c; i += 4) store(xi + i, madd(load(yi + i), load(wi + i), load(xi + i)));
      for (; i < c; i++) xi[i] += yi[i] * wi[i];
    } else
      for (; i < c; i++)
        for (int q = 0; q < m; q++) xi[i] += yi[i * m + q] * wi[i * m + q];
  })
}

// A tap's sums over one line of the image, with one filter for each channel.
static void line_sums(const float *x, size_t step, const float *dy, int count, int c, float *dw) {
  int i = 0;
#define START(q) f4 sum##q = load(dw + i + 4 * q);
#define STEP(q) sum##q = madd(load(x + p * step + i + 4 * q), load(dy + (size_t)p * c + i + 4 * q), sum##q);
#define END(q) store(dw + i + 4 * q, sum##q);
  for (; i + 16 <= c; i += 16) {
    EACH4(START)
    for (int p = 0; p < count; p++) {
      EACH4(STEP)
    }
    EACH4(END)
  }
  for (; i + 4 <= c; i += 4) {
    START(0)
    for (int p = 0; p < count; p++) STEP(0)
    END(0)
  }
  for (; i < c; i++)
    for (int p = 0; p < count; p++) dw[i] += x[p * step + i] * dy[(size_t)p * c + i];
#undef START
#undef STEP
#undef END
}

SHARE("GIOA")
EXPORT void mf_depthwise_back_filter(const Geometry *g, const float *x, const float *dy, float *dw) {
  int c = g->channels, n = g->filters, m = c ? n / c : 0;
  zero(dw, (size_t)g->kernel_h * g->kernel_w * n);
  if (m == 1) {
    for (int b = 0; b < g->batch; b++)
      for (int oh = 0; oh < g->out_h; oh++) {
        int h0 = oh * g->stride_h - g->top;
        Taps rows = taps(h0, g->dilation_h, g->kernel_h, g->in_h);
        for (int kh = rows.from; kh < rows.to; kh++)
          for (int kw = 0; kw < g->kernel_w; kw++) {
            // The outputs of the line whose pixel under this tap lies in the image.
            int w0 = kw * g->dilation_w - g->left;
            Taps along = taps(w0, g->stride_w, g->out_w, g->in_w);
            size_t in = ((size_t)b * g->in_h + h0 + kh * g->dilation_h) * g->in_w + w0 + along.from * g->stride_w;
            size_t out = ((size_t)b * g->out_h + oh) * g->out_w + along.from;
            line_sums(x + in * c, (size_t)g->stride_w * c, dy + out * c, along.to - along.from, c, dw + (kh * g->kernel_w + kw) * c);
          }
      }
    return;
  }
  FOR_TAPS(g, {
    const float *xi = x + (size_t)in * c; float *wi = dw + (size_t)tap * n; const float *yi = dy + out * n;
    for (int i = 0; i < c; i++)
      for (int q = 0; q < m; q++) wi[i * m + q] += yi[i * m + q] * xi[i];
  })
}

// --------------------------------------------------------------------------------------------------------- pooling

// Where the element replaces the best so far: greater, or not a number.
INLINE v128_t beats(f4 v, f4 best) { return wasm_v128_or(wasm_f32x4_gt(v, best), wasm_f32x4_ne(v, v)); }

// The largest element of each window; NaN where the window holds one.
static void max_pool(const Geometry *g, const float *x, float *y) {
  int c = g->channels;
#define START(q) f4 best##q = splat(-__builtin_inff()), bad##q = splat(0);
#define STEP(q) \
  f4 v##q = load(x + (size_t)in * c + i + 4 * q); \
  best##q = max4(best##q, v##q), bad##q = wasm_v128_or(bad##q, wasm_f32x4_ne(v##q, v##q));
#define END(q) store(y + out * c + i + 4 * q, wasm_v128_bitselect(splat(__builtin_nanf("")), best##q, bad##q));
  FOR_PIXELS(g, {
    CHANNELS(g, START, STEP, END)
    for (; i < c; i++) {
      float best = -__builtin_inff();
      FOR_WINDOW(g, best = __builtin_wasm_max_f32(best, x[(size_t)in * c + i]);)
      y[out * c + i] = best;
    }
  })
#undef START
#undef STEP
#undef END
}

// Adds dy to dx at the places of the maxima: the first of equals, the first NaN.
static void max_pool_back(const Geometry *g, const float *x, const float *dy, float *dx) {
  int c = g->channels;
  // Windows that do not overlap: each pixel of dx is written once, four channels at a time.
  int apart = g->stride_h >= g->kernel_h && g->stride_w >= g->kernel_w && g->dilation_h == 1 && g->dilation_w == 1;
  FOR_PIXELS(g, {
    for (int i = 0; i < c; i += 4) {
      int lanes = c - i < 4 ? c - i : 4;
      f4 best = splat(-__builtin_inff());
      v128_t place = wasm_i32x4_splat(-1);
      FOR_WINDOW(g, {
        const float *at = x + (size_t)in * c + i;
        f4 v = lanes == 4 ? load(at) : load_part(at, lanes);
        // The first element of all counts even if it is -infinity.
        v128_t first = wasm_i32x4_lt(place, wasm_i32x4_splat(0));
        v128_t better = wasm_v128_or(wasm_v128_and(beats(v, best), wasm_f32x4_eq(best, best)), first);
        best = wasm_v128_bitselect(v, best, better);
        place = wasm_v128_bitselect(wasm_i32x4_splat(in), place, better);
      })
      if (apart && lanes == 4) {
        f4 share = load(dy + out * c + i);
        FOR_WINDOW(g, { store(dx + (size_t)in * c + i, wasm_v128_and(share, wasm_i32x4_eq(place, wasm_i32x4_splat(in)))); })
        continue;
      }
      int at[4];
      wasm_v128_store(at, place);
      for (int q = 0; q < lanes; q++)
        if (at[q] >= 0) dx[(size_t)at[q] * c + i + q] += dy[out * c + i + q];
    }
  })
}

// Windows of two by two that lie side by side in the image, all channels in whole vectors: most of the pooling there is.
static int halves(const Geometry *g) {
  return g->kernel_h == 2 && g->kernel_w == 2 && g->stride_h == 2 && g->stride_w == 2 && g->dilation_h == 1 &&
         g->dilation_w == 1 && g->top == 0 && g->left == 0 && 2 * g->out_h <= g->in_h && 2 * g->out_w <= g->in_w &&
         g->channels % 4 == 0;
}
static void halve(const Geometry *g, const float *x, float *y, const float *dy, float *dx) {
  int c = g->channels, line = g->in_w * c;
  for (int b = 0; b < g->batch; b++)
    for (int oh = 0; oh < g->out_h; oh++) {
      size_t at = ((size_t)b * g->in_h + 2 * oh) * line, out = ((size_t)b * g->out_h + oh) * g->out_w * c;
      for (int ow = 0; ow < g->out_w; ow++, at += c)
        for (int i = 0; i < c; i += 4, at += 4, out += 4) {
          f4 v0 = load(x + at), v1 = load(x + at + c), v2 = load(x + at + line), v3 = load(x + at + line + c), best = v0;
#define NEXT(v)                                                                    \
  v128_t is_##v = wasm_v128_and(beats(v, best), wasm_f32x4_eq(best, best));        \
  best = wasm_v128_bitselect(v, best, is_##v);
          NEXT(v1) NEXT(v2) NEXT(v3)
          if (!dy) {
            store(y + out, best);
            continue;
          }
          f4 share = load(dy + out);
          store(dx + at + line + c, wasm_v128_and(share, is_v3));
          share = wasm_v128_andnot(share, is_v3);
          store(dx + at + line, wasm_v128_and(share, is_v2));
          share = wasm_v128_andnot(share, is_v2);
          store(dx + at + c, wasm_v128_and(share, is_v1));
          store(dx + at, wasm_v128_andnot(share, is_v1));
        }
    }
}

SHARE("GIP")
EXPORT void mf_max_pool(const Geometry *g, const float *x, float *y) {
  if (halves(g)) halve(g, x, y, 0, 0);
  else max_pool(g, x, y);
}
SHARE("GIPI")
EXPORT void mf_max_pool_back(const Geometry *g, const float *x, const float *dy, float *dx) {
  int half = halves(g);
  if (!half || 2 * g->out_h < g->in_h || 2 * g->out_w < g->in_w)
    zero(dx, (size_t)g->batch * g->in_h * g->in_w * g->channels);
  if (half) halve(g, x, 0, dy, dx);
  else max_pool_back(g, x, dy, dx);
}

// A pixel's part in the mean of its window: one by the number of pixels that lie in the image.
#define PART (1.0f / (float)((rows.to - rows.from) * (columns.to - columns.from)))

// The mean of the pixels of each window that lie in the image.
SHARE("GIP")
EXPORT void mf_avg_pool(const Geometry *g, const float *x, float *y) {
  int c = g->channels;
#define START(q) f4 sum##q = splat(0);
#define STEP(q) sum##q = add(sum##q, load(x + (size_t)in * c + i + 4 * q));
#define END(q) store(y + out * c + i + 4 * q, mul(sum##q, splat(part)));
  FOR_PIXELS(g, {
    float part = PART;
    CHANNELS(g, START, STEP, END)
    for (; i < c; i++) {
      float sum = 0;
      FOR_WINDOW(g, sum += x[(size_t)in * c + i];)
      y[out * c + i] = sum * part;
    }
  })
#undef START
#undef STEP
#undef END
}
SHARE("GPI")
EXPORT void mf_avg_pool_back(const Geometry *g, const float *dy, float *dx) {
  int c = g->channels;
  zero(dx, (size_t)g->batch * g->in_h * g->in_w * c);
  FOR_PIXELS(g, {
    f4 part = splat(PART);
    const float *from = dy + out * c;
    FOR_WINDOW(g, {
      float *to = dx + (size_t)in * c;
      int i = 0;
      for (; i + 4 <= c; i += 4) store(to + i, madd(load(from + i), part, load(to + i)));
      if (i < c) store_part(to + i, madd(load_part(from + i, c - i), part, load_part(to + i, c - i)), c - i);
    })
  })
}
