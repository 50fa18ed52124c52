// Products with few rows, which read every number of B once: packing it would cost as much as the product.
#include "sgemm.h"

// Stored rows of B that are read side by side, and how many numbers of each at a time; with several rows of A, no more
// than stay in the first cache until all of them have used it.
enum { ABREAST = 8, WHOLE = 4096, CLOSE = 512 };
#define EACH(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)

INLINE int least(int a, int b) { return a < b ? a : b; }

// sums[r] = x · row r of b.
static void dots(int rows, int k, const float *x, const float *b, int ldb, float *sums) {
  int p = 0;
  if (rows == ABREAST) {
#define ZERO(r) f4 s##r = splat(0); const float *b##r = b + (size_t)r * ldb;
#define STEP(r) s##r = madd(v, load(b##r + p), s##r);
#define PUT(r) sums[r] = sum_lanes(s##r);
    EACH(ZERO)
    for (; p + 4 <= k; p += 4) {
      f4 v = load(x + p);
      EACH(STEP)
    }
    EACH(PUT)
  } else {
    for (int r = 0; r < rows; r++) {
      f4 s = splat(0);
      for (p = 0; p + 4 <= k; p += 4) s = madd(load(x + p), load(b + (size_t)r * ldb + p), s);
      sums[r] = sum_lanes(s);
    }
  }
  for (; p < k; p++)
    for (int r = 0; r < rows; r++) sums[r] += x[p] * b[(size_t)r * ldb + p];
}

// y += x · rows of b.
static void combine(int rows, int n, const float *x, const float *b, int ldb, float *y) {
  if (rows == ABREAST) {
#define FACTOR(r) const float *b##r = b + (size_t)r * ldb; f4 x##r = splat(x[r]);
#define ADD(r) sum = madd(x##r, load(b##r + j), sum);
#define ADD_ONE(r) y[j] += x[r] * b##r[j];
    EACH(FACTOR)
    int j = 0;
    for (; j + 4 <= n; j += 4) {
      f4 sum = load(y + j);
      EACH(ADD)
      store(y + j, sum);
    }
    for (; j < n; j++) {
      EACH(ADD_ONE)
    }
    return;
  }
  for (int r = 0; r < rows; r++, b += ldb) {
    f4 v = splat(x[r]);
    int j = 0;
    for (; j + 4 <= n; j += 4) store(y + j, madd(v, load(b + j), load(y + j)));
    for (; j < n; j++) y[j] += x[r] * b[j];
  }
}

void sgemm_few(int ta, int tb, int m, int n, int k, const float *a, int lda, const float *b, int ldb, float *c, size_t row_c,
               size_t column_c, int accumulate, float *work) {
  const size_t row_a = ta ? 1 : lda, column_a = ta ? lda : 1;
  const int most = m == 1 ? WHOLE : CLOSE, depth = tb ? most : WHOLE, width = tb ? ABREAST : most;
  float *x = work, *y = work + (size_t)m * depth;
  for (int p = 0; p < k; p += depth) {
    int kc = least(depth, k - p);
    for (int i = 0; i < m; i++)
      for (int q = 0; q < kc; q++) x[i * depth + q] = a[i * row_a + (p + q) * column_a];
    for (int j = 0; j < n; j += width) {
      int nc = least(width, n - j);
      if (tb) {
        for (int i = 0; i < m; i++) dots(nc, kc, x + i * depth, b + (size_t)j * ldb + p, ldb, y + i * width);
      } else {
        zero(y, (size_t)m * width);
        for (int q = 0; q < kc; q += ABREAST)
          for (int i = 0; i < m; i++)
            combine(least(ABREAST, kc - q), nc, x + i * depth + q, b + (size_t)(p + q) * ldb + j, ldb, y + i * width);
      }
      for (int i = 0; i < m; i++)
        for (int q = 0; q < nc; q++) {
          float *to = c + i * row_c + (j + q) * column_c;
          *to = accumulate || p > 0 ? *to + y[i * width + q] : y[i * width + q];
        }
    }
  }
}
