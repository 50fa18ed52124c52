// Packing, register tiles and blocking of the matrix product for one instruction set. Included once for each, with
//   NAME(x)  a name of its own,    TARGET  the function attribute that allows the instructions,
//   LANES    floats in a vector,   MR x (NV * LANES)  the tile of C that stays in registers.
#define NR (NV * LANES)

typedef float NAME(vec) __attribute__((vector_size(4 * LANES)));
typedef float NAME(any) __attribute__((vector_size(4 * LANES), aligned(4), may_alias));  // at any address

// C tile (+)= A B over k. Entry (r, p) of A is a[r * row + p * column]; row p of B starts at b + p * step.
#define TILE(name, vectors, row, column)                                                                               \
  TARGET static void name(int k, const float *a, size_t lda, const float *b, size_t step, float *c, size_t ldc,        \
                          int accumulate) {                                                                            \
    NAME(vec) sum[MR][vectors];                                                                                        \
    (void)lda;                                                                                                         \
    UNROLL for (int r = 0; r < MR; r++) UNROLL for (int v = 0; v < vectors * LANES; v += 16)                           \
        __builtin_prefetch(c + r * ldc + v, 1);                                                                        \
    UNROLL for (int r = 0; r < MR; r++) UNROLL for (int v = 0; v < vectors; v++) sum[r][v] = (NAME(vec)){0};           \
    for (int p = 0; p < k; p++, a += column, b += step) {                                                              \
      NAME(vec) right[vectors];                                                                                        \
      UNROLL for (int v = 0; v < vectors; v++) right[v] = *(const NAME(any) *)(b + v * LANES);                         \
      UNROLL for (int r = 0; r < MR; r++) UNROLL for (int v = 0; v < vectors; v++) sum[r][v] += a[r * (row)] * right[v]; \
    }                                                                                                                  \
    UNROLL for (int r = 0; r < MR; r++) UNROLL for (int v = 0; v < vectors; v++) {                                     \
      NAME(any) *to = (NAME(any) *)(c + r * ldc + v * LANES);                                                          \
      if (accumulate) sum[r][v] += *to;                                                                                \
      *to = sum[r][v];                                                                                                 \
    }                                                                                                                  \
  }
TILE(NAME(wide_packed), NV, 1, MR)
TILE(NAME(wide_rows), NV, lda, 1)
TILE(NAME(narrow_packed), 1, 1, MR)
TILE(NAME(narrow_rows), 1, lda, 1)
#undef TILE

// out[p][l] = x[l][p] for `lines` lines of length k; lines up to `width` are zero.
TARGET static void NAME(pack_across)(const float *x, size_t ld, int lines, int k, int width, float *out) {
  for (int l = 0; l < width; l += 4) {
    float *to = out + l;
    if (l + 4 <= lines) {
      const float *r0 = x + (size_t)l * ld, *r1 = r0 + ld, *r2 = r1 + ld, *r3 = r2 + ld;
      int p = 0;
      for (; p + 4 <= k; p += 4) {
        v4 a = LOAD4(r0 + p), b = LOAD4(r1 + p), c = LOAD4(r2 + p), d = LOAD4(r3 + p);
        v4 ab = SHUFFLE(a, b, 0, 4, 1, 5), cd = SHUFFLE(c, d, 0, 4, 1, 5);
        v4 ef = SHUFFLE(a, b, 2, 6, 3, 7), gh = SHUFFLE(c, d, 2, 6, 3, 7);
        float *t = to + (size_t)p * width;
        STORE4(t, SHUFFLE(ab, cd, 0, 1, 4, 5));
        STORE4(t + width, SHUFFLE(ab, cd, 2, 3, 6, 7));
        STORE4(t + 2 * width, SHUFFLE(ef, gh, 0, 1, 4, 5));
        STORE4(t + 3 * width, SHUFFLE(ef, gh, 2, 3, 6, 7));
      }
      for (; p < k; p++) {
        float *t = to + (size_t)p * width;
        t[0] = r0[p], t[1] = r1[p], t[2] = r2[p], t[3] = r3[p];
      }
      continue;
    }
    int many = width - l < 4 ? width - l : 4;
    for (int i = 0; i < many; i++) {
      const float *from = x + (size_t)(l + i) * ld;
      if (l + i < lines)
        for (int p = 0; p < k; p++) to[(size_t)p * width + i] = from[p];
      else
        for (int p = 0; p < k; p++) to[(size_t)p * width + i] = 0;
    }
  }
}

// Four panels of `width` lines, out[panel][p][l] = x[p][panel * width + l]: reads whole cache lines.
TARGET static void NAME(pack_four)(const float *x, size_t ld, int k, int width, float *out) {
  for (int p = 0; p < k; p++, x += ld, out += width)
    for (int q = 0; q < 4; q++) {
      float *to = out + (size_t)q * width * k;
      const float *from = x + q * width;
      for (int l = 0; l < width; l++) to[l] = from[l];
    }
}

// out[p][l] = x[p][l]
TARGET static void NAME(pack_along)(const float *x, size_t ld, int lines, int k, int width, float *out) {
  for (int p = 0; p < k; p++, x += ld, out += width) {
    if (lines == width) {
      for (int l = 0; l < width; l++) out[l] = x[l];
      continue;
    }
    for (int l = 0; l < lines; l++) out[l] = x[l];
    for (int l = lines; l < width; l++) out[l] = 0;
  }
}

#define WIDTH_OF(columns) ((columns) <= LANES ? LANES : NR)

TARGET static void NAME(block)(const Product *g, int i0, int m, int j0, int n, float *work) {
  enum { DEPTH = 256, ROWS = 240 / MR * MR, COLUMNS = 1024 };
  float *packed_a = work, *packed_b = work + (ROWS + MR) * DEPTH, edge[MR * NR];
  // Rows that are read once or twice are read where they are; all else pays for a copy in the order of use. Panels that are
  // not whole are always copied, padded with zeros.
  int all_a = g->ta || n > 2 * NR, all_b = g->tb || m > 2 * MR;
  for (int j = 0; j < n; j += COLUMNS) {
    int nc = least(COLUMNS, n - j);
    for (int p = 0; p < g->k; p += DEPTH) {
      int kc = least(DEPTH, g->k - p), accumulate = g->accumulate || p > 0;
      const float *b = g->tb ? g->b + (size_t)(j0 + j) * g->ldb + p : g->b + (size_t)p * g->ldb + j0 + j;
      for (int q = 0; q < nc; q += NR) {
        int columns = least(NR, nc - q), width = WIDTH_OF(columns);
        if (g->tb) NAME(pack_across)(b + (size_t)q * g->ldb, g->ldb, columns, kc, width, packed_b + (size_t)q * kc);
        else if (all_b || columns < width) NAME(pack_along)(b + q, g->ldb, columns, kc, width, packed_b + (size_t)q * kc);
      }
      for (int i = 0; i < m; i += ROWS) {
        int mc = least(ROWS, m - i);
        const float *a = g->ta ? g->a + (size_t)p * g->lda + i0 + i : g->a + (size_t)(i0 + i) * g->lda + p;
        for (int r = 0; r < mc; r += MR) {
          int rows = least(MR, mc - r);
          if (!all_a && rows == MR) continue;
          if (g->ta && mc - r >= 4 * MR) {
            NAME(pack_four)(a + r, g->lda, kc, MR, packed_a + (size_t)r * kc);
            r += 3 * MR;
          } else if (g->ta) NAME(pack_along)(a + r, g->lda, rows, kc, MR, packed_a + (size_t)r * kc);
          else NAME(pack_across)(a + (size_t)r * g->lda, g->lda, rows, kc, MR, packed_a + (size_t)r * kc);
        }
        for (int q = 0; q < nc; q += NR) {
          int columns = least(NR, nc - q), width = WIDTH_OF(columns), narrow = width < NR;
          int is_packed = all_b || columns < width;
          const float *right = is_packed ? packed_b + (size_t)q * kc : b + q;
          size_t step = is_packed ? (size_t)width : g->ldb;
          for (int r = 0; r < mc; r += MR) {
            int rows = least(MR, mc - r);
            int whole = rows == MR && columns == width;
            float *to = g->c + (size_t)(i0 + i + r) * g->ldc + j0 + j + q;
            float *c = whole ? to : edge;
            size_t ldc = whole ? g->ldc : NR;
            int add = whole && accumulate;
            if (all_a || rows < MR) {
              const float *left = packed_a + (size_t)r * kc;
              (narrow ? NAME(narrow_packed) : NAME(wide_packed))(kc, left, 0, right, step, c, ldc, add);
            } else {
              (narrow ? NAME(narrow_rows) : NAME(wide_rows))(kc, a + (size_t)r * g->lda, g->lda, right, step, c, ldc, add);
            }
            if (whole) continue;
            for (int x = 0; x < rows; x++)
              for (int y = 0; y < columns; y++)
                to[x * g->ldc + y] = accumulate ? to[x * g->ldc + y] + edge[x * NR + y] : edge[x * NR + y];
          }
        }
      }
    }
  }
}
#undef WIDTH_OF
#undef NR
#undef NAME
#undef TARGET
#undef LANES
#undef MR
#undef NV
