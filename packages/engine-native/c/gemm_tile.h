// Packing, register tiles and blocking of the matrix product for one instruction set. Included once for each, with
//   NAME(x)  a name of its own,    TARGET  the function attribute that allows the instructions,
//   LANES    floats in a vector,   MR x (NV * LANES)  the tile of C that stays in registers; MR is even.
#define NR (NV * LANES)

typedef float NAME(vec) __attribute__((vector_size(4 * LANES)));
typedef float NAME(any) __attribute__((vector_size(4 * LANES), aligned(4), may_alias));  // at any address

// C tile (+)= A B over k, `rows` x (`vectors` * LANES) large. Entry (r, p) of A is a[r * row + p * column]; row p of B
// starts at b + p * step.
#define TILE(name, rows, vectors, row, column)                                                                         \
  TARGET static void NAME(name)(int k, const float *a, size_t lda, const float *b, size_t step, float *c, size_t ldc,  \
                                int accumulate) {                                                                      \
    NAME(vec) sum[rows][vectors];                                                                                      \
    UNROLL for (int r = 0; r < rows; r++) UNROLL for (int v = 0; v < vectors; v++) sum[r][v] = (NAME(vec)){0};         \
    for (int p = 0; p < k; p++, a += column, b += step) {                                                              \
      NAME(vec) right[vectors];                                                                                        \
      UNROLL for (int v = 0; v < vectors; v++) right[v] = *(const NAME(any) *)(b + v * LANES);                         \
      UNROLL for (int r = 0; r < rows; r++) UNROLL for (int v = 0; v < vectors; v++)                                   \
          sum[r][v] += a[r * (row)] * right[v];                                                                        \
    }                                                                                                                  \
    UNROLL for (int r = 0; r < rows; r++) UNROLL for (int v = 0; v < vectors; v++) {                                   \
      NAME(any) *to = (NAME(any) *)(c + r * ldc + v * LANES);                                                          \
      if (accumulate) sum[r][v] += *to;                                                                                \
      *to = sum[r][v];                                                                                                 \
    }                                                                                                                  \
  }
#define TILES(name, rows, vectors)            \
  TILE(name##_columns, rows, vectors, 1, lda) \
  TILE(name##_rows, rows, vectors, lda, 1)
TILES(low_wide, MR / 2, NV)
TILES(low_narrow, MR / 2, 1)
TILES(high_wide, MR, NV)
TILES(high_narrow, MR, 1)
#define BOTH(name) {NAME(name##_columns), NAME(name##_rows)}
// The last rows and columns of C take a smaller tile, so that little is multiplied in vain.
static const Tile NAME(tiles)[2][2][2] = {{BOTH(low_wide), BOTH(low_narrow)}, {BOTH(high_wide), BOTH(high_narrow)}};
#define HEIGHT_OF(rows) ((rows) <= MR / 2 ? MR / 2 : MR)
#define WIDTH_OF(columns) ((columns) <= LANES ? LANES : NR)
#undef BOTH
#undef TILES
#undef TILE

// out[p][l] = x[l][p] for `lines` lines of length k; lines up to `width` are zero.
TARGET static void NAME(pack_short)(const float *x, size_t ld, int lines, int k, int width, float *out) {
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

// In pieces of k whose result stays in the first cache until its lines are full.
TARGET static void NAME(pack_across)(const float *x, size_t ld, int lines, int k, int width, float *out) {
  for (int p = 0; p < k; p += 64) NAME(pack_short)(x + p, ld, lines, least(64, k - p), width, out + (size_t)p * width);
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

// Panels of op(A), one after the other, each of the height of its tile.
TARGET static void NAME(pack_rows)(const Product *g, const float *a, int rows, int k, float *out) {
  if (g->ta && rows == 4 * MR) NAME(pack_four)(a, g->lda, k, MR, out);
  else
    for (int r = 0; r < rows; r += MR) {
      int lines = least(MR, rows - r);
      if (g->ta) NAME(pack_along)(a + r, g->lda, lines, k, HEIGHT_OF(lines), out + (size_t)r * k);
      else NAME(pack_across)(a + r * g->lda, g->lda, lines, k, HEIGHT_OF(lines), out + (size_t)r * k);
    }
}

// A panel of A stays in the first cache, a block of B in the second, whose panels pass by. What is copied is copied right
// before its first use, and fetched from memory during the products before.
TARGET static void NAME(block)(const Product *g, int i0, int m, int j0, int n, float *work) {
  float *packed_a = work, *packed_b = work + ROWS * DEPTH, edge[MR * NR];
  const size_t row_a = g->ta ? 1 : g->lda, column_a = g->ta ? g->lda : 1;
  const size_t row_b = g->tb ? 1 : g->ldb, column_b = g->tb ? g->ldb : 1;
  // Rows that few tiles share are read where they are; wide tiles, which take their time, also read close rows there. The MR
  // rows of A are copied only where they would displace each other from the cache, and that only narrow tiles feel. Panels
  // that are not whole are always copied, padded with zeros.
  const int direct = LANES == 16;
  int all_a = n > 2 * NR && (g->ta ? !direct || g->lda > CLOSE : !direct && g->lda % 1024 == 0);
  int all_b = g->tb || (m > 2 * MR && (!direct || g->ldb > CLOSE));
  int parts = (g->k + DEPTH - 1) / DEPTH, depth = (g->k + parts - 1) / parts, most = all_a ? ROWS : m;
  for (int i = 0; i < m; i += most) {
    int mc = least(most, m - i);
    for (int p = 0; p < g->k; p += depth) {
      int kc = least(depth, g->k - p), accumulate = g->accumulate || p > 0;
      // Short sums are those of small products, which the caches hold.
      int is_long = kc > 128;
      for (int j = 0; j < n; j += COLUMNS) {
        int nc = least(COLUMNS, n - j), across = (nc + NR - 1) / NR, share_a = kc * MR / 16 / across + 1, share_b = 0;
        const float *a = g->a + (i0 + i) * row_a + p * column_a, *b = g->b + p * row_b + (j0 + j) * column_b;
        Ahead next_a = {0}, next_b = {0};
        int next_j = j + COLUMNS < n ? j + COLUMNS : 0, next_p = next_j ? p : p + kc;
        if (all_b && next_p < g->k) {
          int rows = least(depth, g->k - next_p), columns = least(COLUMNS, n - next_j);
          const float *next = g->b + next_p * row_b + (j0 + next_j) * column_b;
          next_b = g->tb ? (Ahead){next, g->ldb, columns, rows, 0} : (Ahead){next, g->ldb, rows, columns, 0};
          share_b = rows * columns / 16 / ((mc + MR - 1) / MR * across) + 1;
        }
        for (int r = 0; r < mc; r += MR) {
          int rows = least(MR, mc - r), height = HEIGHT_OF(rows), a_packed = all_a || rows < height;
          const float *left = a + r * row_a;
          if (a_packed) {
            float *copy = packed_a + (all_a ? (size_t)r * kc : 0);
            if (j == 0 && !all_a) NAME(pack_rows)(g, left, rows, kc, copy);
            else if (j == 0 && r % (4 * MR) == 0) {
              NAME(pack_rows)(g, left, least(4 * MR, mc - r), kc, copy);
              const float *next = left + 4 * MR * row_a;
              int more = least(4 * MR, mc - r - 4 * MR);
              next_a = g->ta ? (Ahead){next, g->lda, more > 0 ? kc : 0, more, 0} : (Ahead){next, g->lda, more, kc, 0};
            }
            left = copy;
          }
          for (int q = 0; q < nc; q += NR) {
            int columns = least(NR, nc - q), width = WIDTH_OF(columns), b_packed = all_b || columns < width;
            const float *right = b + q * column_b;
            if (b_packed) {
              float *copy = packed_b + (size_t)q * kc;
              if (r == 0) (g->tb ? NAME(pack_across) : NAME(pack_along))(right, g->ldb, columns, kc, width, copy);
              right = copy;
            }
            float *to = g->c + (i0 + i + r) * g->row_c + (j0 + j + q) * g->column_c;
            if (is_long) {
              fetch(&next_a, share_a);
              fetch(&next_b, share_b);
              for (int x = 0; x < rows; x++)
                for (int y = 0; y < columns; y += 16) __builtin_prefetch(to + x * g->row_c + y * g->column_c, 1);
            }
            int whole = rows == height && columns == width && g->column_c == 1;
            size_t step_a = a_packed ? (size_t)height : g->lda, step_b = b_packed ? (size_t)width : g->ldb;
            NAME(tiles)[height == MR][width < NR][!a_packed && !g->ta](
                kc, left, step_a, right, step_b, whole ? to : edge, whole ? g->row_c : NR, whole && accumulate);
            if (whole) continue;
            for (int x = 0; x < rows; x++)
              for (int y = 0; y < columns; y++) {
                float *one = to + x * g->row_c + y * g->column_c;
                *one = accumulate ? *one + edge[x * NR + y] : edge[x * NR + y];
              }
          }
        }
      }
    }
  }
}
#undef HEIGHT_OF
#undef WIDTH_OF
#undef NR
#undef NAME
#undef TARGET
#undef LANES
#undef MR
#undef NV
