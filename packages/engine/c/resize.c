// Gradient of resizing images [batch, height, width, channels].
#include "common.h"

// For each row (column) of the result: the two of the image that it is made of, and the share of the second.
typedef struct {
  int first, second;
  float share;
} Source;

INLINE void add_scaled(float *to, const float *from, float factor, int n) {
  f4 f = splat(factor);
  int i = 0;
  for (; i + 4 <= n; i += 4) store(to + i, madd(load(from + i), f, load(to + i)));
  for (; i < n; i++) to[i] += factor * from[i];
}

EXPORT void mf_resize_back(int batch, int in_h, int in_w, int c, int out_h, int out_w, const Source *rows,
                           const Source *columns, const float *dy, float *dx) {
  size_t image = (size_t)in_h * in_w * c;
  zero(dx, batch * image);
  for (int b = 0; b < batch; b++, dx += image)
    for (int h = 0; h < out_h; h++) {
      float *top = dx + (size_t)rows[h].first * in_w * c, *bottom = dx + (size_t)rows[h].second * in_w * c;
      float down = rows[h].share;
      for (int w = 0; w < out_w; w++, dy += c) {
        size_t left = (size_t)columns[w].first * c, right = (size_t)columns[w].second * c;
        float across = columns[w].share;
        add_scaled(top + left, dy, (1 - down) * (1 - across), c);
        if (across != 0) add_scaled(top + right, dy, (1 - down) * across, c);
        if (down == 0) continue;
        add_scaled(bottom + left, dy, down * (1 - across), c);
        if (across != 0) add_scaled(bottom + right, dy, down * across, c);
      }
    }
}
