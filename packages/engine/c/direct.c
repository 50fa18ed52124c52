// Convolutions without gathered patches: with a border of zeros around the image, the numbers that one row of the kernel
// covers lie side by side, so a tile of the product can read them where they are.
#include "direct.h"

#define NR 8
// Beyond these the tiles over patches are as fast or faster: kernels whose packed columns leave the first-level cache, small
// images, few columns.
#ifdef __wasm_relaxed_simd__
#define MOST_DEPTH 576
#else
#define MOST_DEPTH 288
#endif
#define LEAST_PIXELS 64
#define LEAST_PIXELS_OF_SUMS 128

INLINE int depth(const Geometry *g) { return g->kernel_h * g->kernel_w * g->channels; }
INLINE int up(int n) { return (n + NR - 1) / NR * NR; }

// Rows and columns that the kernel covers on its way over the image, from [-top, -left] on.
INLINE int covered_h(const Geometry *g) { return (g->out_h - 1) * g->stride_h + g->kernel_h; }
INLINE int covered_w(const Geometry *g) { return (g->out_w - 1) * g->stride_w + g->kernel_w; }
INLINE int is_whole(const Geometry *g) {
  return g->top == 0 && g->left == 0 && covered_h(g) <= g->in_h && covered_w(g) <= g->in_w;
}

// One image and the floats from one of its rows to the next; in `to`, with zeros around, where the kernel reaches beyond it.
static const float *bordered(const Geometry *g, const float *x, float *to, int *line) {
  int c = g->channels, h = covered_h(g), w = covered_w(g);
  if (is_whole(g)) {
    *line = g->in_w * c;
    return x;
  }
  *line = w * c;
  int left = g->left * c, from = left < 0 ? -left : 0, most = g->in_w * c - from;
  int lead = left > 0 ? left : 0, length = w * c - lead < most ? w * c - lead : most;
  if (length < 0) length = 0;
  if (lead > w * c) lead = w * c;
  for (int i = 0; i < h; i++) {
    float *row = to + (size_t)i * *line;
    int source = i - g->top;
    if (source < 0 || source >= g->in_h) {
      zero(row, *line);
      continue;
    }
    zero(row, lead);
    copy(row + lead, x + (size_t)source * g->in_w * c + from, length);
    zero(row + lead + length, *line - lead - length);
  }
  return to;
}
INLINE size_t border_floats(const Geometry *g) {
  return is_whole(g) ? 0 : (size_t)covered_h(g) * covered_w(g) * g->channels;
}

static int fits(const Geometry *g, int pixels) {
  return g->dilation_h == 1 && g->dilation_w == 1 && depth(g) > 0 && depth(g) <= MOST_DEPTH && g->kernel_h * g->kernel_w > 1 &&
         g->out_h * g->out_w >= pixels;
}
int direct_fits(const Geometry *g) { return fits(g, LEAST_PIXELS); }

size_t direct_floats(const Geometry *g) { return (size_t)depth(g) * up(g->filters) + border_floats(g); }

// The tile fits the 16 vector registers of x86-64; without fused multiply-add a product needs one more.
#define THREE(X) X(0) X(1) X(2)
#ifdef __wasm_relaxed_simd__
#define MR 6
#define EACH(X) THREE(X) X(3) X(4) X(5)
#else
#define MR 4
#define EACH(X) THREE(X) X(3)
#endif
#define DECLARE(r) f4 c##r##0 = splat(0), c##r##1 = splat(0);
#define STEP(r, i)                    \
  {                                      \
    f4 ar = load_splat(a##r + (i));      \
    c##r##0 = madd(ar, b0, c##r##0);     \
    c##r##1 = madd(ar, b1, c##r##1);     \
  }

// MR pixels times NR filters. `at`: the first number that the kernel covers, for each pixel.
static void pixels_times_filters(const float *const *at, int kernel_h, int width, int line, const float *b, float *c) {
#define POINT(r) const float *a##r = at[r];
  EACH(POINT)
  EACH(DECLARE)
  for (int kh = 0; kh < kernel_h; kh++) {
    for (int i = 0; i < width; i++, b += NR) {
      f4 b0 = load(b), b1 = load(b + 4);
#define ONE(r) STEP(r, i)
      EACH(ONE)
    }
#define DOWN(r) a##r += line;
    EACH(DOWN)
  }
#define PUT(r)                   \
  store(c + r * NR, c##r##0);    \
  store(c + r * NR + 4, c##r##1);
  EACH(PUT)
}

void direct_conv(const Geometry *g, const float *x, const float *w, float *y, float *work) {
  int k = depth(g), n = g->filters, c = g->channels, pixels = g->out_h * g->out_w, line;
  float *packed = work, *border = work + (size_t)k * up(n), tile[MR * NR];
  sgemm_pack_b(0, k, n, w, n, packed);
  for (int b = 0; b < g->batch; b++, x += (size_t)g->in_h * g->in_w * c, y += (size_t)pixels * n) {
    const float *image = bordered(g, x, border, &line), *panel = packed;
    for (int j = 0; j < n; j += NR, panel += (size_t)NR * k) {
      int columns = n - j < NR ? n - j : NR, oh = 0, ow = 0;
      for (int p = 0; p < pixels; p += MR) {
        int rows = pixels - p < MR ? pixels - p : MR;
        const float *at[MR];
        for (int r = 0; r < MR; r++) {
          at[r] = r < rows ? image + (size_t)oh * g->stride_h * line + (size_t)ow * g->stride_w * c : at[0];
          if (++ow == g->out_w) ow = 0, oh++;
        }
        pixels_times_filters(at, g->kernel_h, g->kernel_w * c, line, panel, tile);
        float *to = y + (size_t)p * n + j;
        for (int r = 0; r < rows; r++, to += n) {
          if (columns == NR) {
            store(to, load(tile + r * NR));
            store(to + 4, load(tile + r * NR + 4));
          } else {
            for (int q = 0; q < columns; q++) to[q] = tile[r * NR + q];
          }
        }
      }
    }
  }
}

// The gradient of the image is a convolution of dy with the kernel turned round, where no pixel was skipped.
static Geometry turned(const Geometry *g) {
  return (Geometry){
      g->batch, g->out_h, g->out_w, g->filters, g->in_h, g->in_w, g->channels, g->kernel_h, g->kernel_w, 1, 1,
      g->kernel_h - 1 - g->top, g->kernel_w - 1 - g->left, 1, 1,
  };
}
int direct_back_input_fits(const Geometry *g) {
  Geometry t = turned(g);
  return g->stride_h == 1 && g->stride_w == 1 && g->dilation_h == 1 && g->dilation_w == 1 && t.filters >= NR && fits(&t, LEAST_PIXELS);
}
size_t direct_back_input_floats(const Geometry *g) {
  Geometry t = turned(g);
  return (size_t)depth(&t) * t.filters + direct_floats(&t);
}
void direct_back_input(const Geometry *g, const float *dy, const float *w, float *dx, float *work) {
  Geometry t = turned(g);
  int taps = g->kernel_h * g->kernel_w, c = g->channels, n = g->filters;
  float *filter = work;
  for (int tap = 0; tap < taps; tap++)
    for (int i = 0; i < c; i++)
      for (int f = 0; f < n; f++)
        filter[((size_t)(taps - 1 - tap) * n + f) * c + i] = w[((size_t)tap * c + i) * n + f];
  direct_conv(&t, dy, filter, dx, work + (size_t)depth(&t) * c);
}

// Sums over the pixels of one image: numbers of the kernel, each at its place in the image, times NR filters, added to dw.
#define TAPS(name, EACH)                                                                                    \
  static void name(const Geometry *g, const float *const *at, int line, const float *dy, float *sums) {     \
    int right = g->stride_w * g->channels, down = g->stride_h * line, length = g->out_w * right;            \
    EACH(POINT)                                                                                             \
    EACH(DECLARE)                                                                                           \
    for (int oh = 0; oh < g->out_h; oh++) {                                                                 \
      for (int i = 0; i < length; i += right, dy += NR) {                                                   \
        f4 b0 = load(dy), b1 = load(dy + 4);                                                                \
        EACH(ONE)                                                                                           \
      }                                                                                                     \
      EACH(NEXT)                                                                                            \
    }                                                                                                       \
    float *c = sums;                                                                                        \
    EACH(PUT)                                                                                               \
  }
#define NEXT(r) a##r += down;
TAPS(taps, EACH)
TAPS(three_taps, THREE)

int direct_back_filter_fits(const Geometry *g) { return fits(g, LEAST_PIXELS_OF_SUMS); }
size_t direct_back_filter_floats(const Geometry *g) {
  return border_floats(g) + (size_t)g->out_h * g->out_w * up(g->filters);
}
void direct_back_filter(const Geometry *g, const float *x, const float *dy, float *dw, float *work) {
  int k = depth(g), n = g->filters, c = g->channels, width = g->kernel_w * c, pixels = g->out_h * g->out_w, line;
  int step = k % MR != 0 && k % 3 == 0 ? 3 : MR;
  float *packed = work + border_floats(g), sums[MR * NR];
  zero(dw, (size_t)k * n);
  for (int b = 0; b < g->batch; b++, x += (size_t)g->in_h * g->in_w * c, dy += (size_t)pixels * n) {
    const float *image = bordered(g, x, work, &line), *panel = packed;
    sgemm_pack_b(0, pixels, n, dy, n, packed);
    for (int j = 0; j < n; j += NR, panel += (size_t)NR * pixels) {
      int columns = n - j < NR ? n - j : NR;
      for (int t = 0; t < k; t += step) {
        int rows = k - t < step ? k - t : step;
        const float *at[MR];
        for (int r = 0; r < step; r++) at[r] = r < rows ? image + (size_t)((t + r) / width) * line + (t + r) % width : image;
        (step == 3 ? three_taps : taps)(g, at, line, panel, sums);
        float *to = dw + (size_t)t * n + j;
        for (int r = 0; r < rows; r++, to += n)
          for (int q = 0; q < columns; q++) to[q] += sums[r * NR + q];
      }
    }
  }
}
