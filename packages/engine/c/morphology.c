// Grey-scale dilation with a structuring function: y = max over the window of x + filter, channel by channel, and its
// gradients, which go to the first maximum. Images are [batch, height, width, channels], filters [height, width, channels].
#include "common.h"

typedef struct {
  int batch, in_h, in_w, channels, out_h, out_w, kernel_h, kernel_w, stride_h, stride_w, top, left, dilation_h, dilation_w;
} Window;

// One of y, dx and dw is wanted; the gradients take dy.
INLINE void dilate(const Window *g, const float *x, const float *filter, const float *dy, float *y, float *dx, float *dw) {
  int c = g->channels;
  size_t out = 0;
  for (int b = 0; b < g->batch; b++)
    for (int oh = 0, h0 = -g->top; oh < g->out_h; oh++, h0 += g->stride_h)
      for (int ow = 0, w0 = -g->left; ow < g->out_w; ow++, w0 += g->stride_w, out += c)
        for (int i = 0; i < c; i += 4) {
          int lanes = c - i < 4 ? c - i : 4;
          f4 best = splat(-__builtin_inff());
          v128_t place = wasm_i32x4_splat(-1);
          for (int kh = 0, h = h0; kh < g->kernel_h; kh++, h += g->dilation_h) {
            if (h < 0 || h >= g->in_h) continue;
            for (int kw = 0, w = w0; kw < g->kernel_w; kw++, w += g->dilation_w) {
              if (w < 0 || w >= g->in_w) continue;
              int at = ((b * g->in_h + h) * g->in_w + w) * c + i, tap = (kh * g->kernel_w + kw) * c + i;
              f4 v = lanes == 4 ? add(load(x + at), load(filter + tap))
                                : add(load_part(x + at, lanes), load_part(filter + tap, lanes));
              v128_t beats = wasm_v128_or(wasm_f32x4_gt(v, best), wasm_f32x4_ne(v, v));
              // The first NaN stays; the first element of all counts even if it is -infinity.
              v128_t first = wasm_i32x4_lt(place, wasm_i32x4_splat(0));
              v128_t better = wasm_v128_or(wasm_v128_and(beats, wasm_f32x4_eq(best, best)), first);
              best = wasm_v128_bitselect(v, best, better);
              place = wasm_v128_bitselect(wasm_i32x4_splat(dw ? tap : at), place, better);
            }
          }
          if (y) {
            if (lanes == 4) store(y + out + i, best);
            else store_part(y + out + i, best, lanes);
            continue;
          }
          int found[4];
          wasm_v128_store(found, place);
          float *to = dw ? dw : dx;
          for (int q = 0; q < lanes; q++)
            if (found[q] >= 0) to[found[q] + q] += dy[out + i + q];
        }
}

EXPORT void mf_dilation(const Window *g, const float *x, const float *filter, float *y) { dilate(g, x, filter, 0, y, 0, 0); }
EXPORT void mf_dilation_back_input(const Window *g, const float *x, const float *filter, const float *dy, float *dx) {
  zero(dx, (size_t)g->batch * g->in_h * g->in_w * g->channels);
  dilate(g, x, filter, dy, 0, dx, 0);
}
EXPORT void mf_dilation_back_filter(const Window *g, const float *x, const float *filter, const float *dy, float *dw) {
  zero(dw, (size_t)g->kernel_h * g->kernel_w * g->channels);
  dilate(g, x, filter, dy, 0, 0, dw);
}
