// Single precision matrix multiplication after Goto and van de Geijn (2008): panels of A and B are packed so that the
// innermost loop reads both in order, and a tile of C stays in registers for the whole depth of a panel.
#include "sgemm.h"

// The tile fits the 16 vector registers of x86-64 with the operands; without fused multiply-add a product needs one more.
#ifdef __wasm_relaxed_simd__
#define MR 6
#else
#define MR 4
#endif
#define NR 8

// Panels of MR rows, each stored k by k: panel[p][k][r].
static void pack_a(int ta, int m, int k, const float *a, int lda, float *out) {
  for (int i = 0; i < m; i += MR) {
    int rows = m - i < MR ? m - i : MR;
    if (ta) {
      const float *from = a + i;
      // Four panels at once: a stored row of A is then read by whole cache lines.
      if (m - i >= 4 * MR) {
        for (int p = 0; p < k; p++, from += lda) {
          for (int q = 0; q < 4; q++) {
            float *to = out + ((size_t)q * k + p) * MR;
            store(to, load(from + q * MR));
#if MR == 6
            __builtin_memcpy(to + 4, from + q * MR + 4, 8);
#endif
          }
        }
        out += (size_t)4 * MR * k;
        i += 3 * MR;
        continue;
      }
      for (int p = 0; p < k; p++, from += lda, out += MR)
        for (int r = 0; r < MR; r++) out[r] = r < rows ? from[r] : 0;
      continue;
    }
    const float *from = a + (size_t)i * lda;
    int p = 0;
    if (rows == MR) {
      for (; p + 4 <= k; p += 4, out += 4 * MR) {
        f4 r0 = load(from + p), r1 = load(from + lda + p), r2 = load(from + 2 * (size_t)lda + p),
           r3 = load(from + 3 * (size_t)lda + p);
        f4 t0 = wasm_i32x4_shuffle(r0, r1, 0, 4, 1, 5), t1 = wasm_i32x4_shuffle(r0, r1, 2, 6, 3, 7);
        f4 t2 = wasm_i32x4_shuffle(r2, r3, 0, 4, 1, 5), t3 = wasm_i32x4_shuffle(r2, r3, 2, 6, 3, 7);
        store(out, wasm_i64x2_shuffle(t0, t2, 0, 2));
        store(out + MR, wasm_i64x2_shuffle(t0, t2, 1, 3));
        store(out + 2 * MR, wasm_i64x2_shuffle(t1, t3, 0, 2));
        store(out + 3 * MR, wasm_i64x2_shuffle(t1, t3, 1, 3));
#if MR == 6
        const float *r4 = from + 4 * (size_t)lda + p, *r5 = from + 5 * (size_t)lda + p;
        for (int q = 0; q < 4; q++) {
          out[q * MR + 4] = r4[q];
          out[q * MR + 5] = r5[q];
        }
#endif
      }
    }
    for (; p < k; p++, out += MR)
      for (int r = 0; r < MR; r++) out[r] = r < rows ? from[(size_t)r * lda + p] : 0;
  }
}

// Panels of NR columns, each stored k by k: panel[p][k][c].
void sgemm_pack_b(int tb, int k, int n, const float *b, int ldb, float *out) {
  for (int j = 0; j < n; j += NR) {
    int columns = n - j < NR ? n - j : NR;
    if (!tb) {
      const float *from = b + j;
      if (n - j >= 4 * NR) {
        for (int p = 0; p < k; p++, from += ldb) {
          for (int q = 0; q < 4; q++) {
            float *to = out + ((size_t)q * k + p) * NR;
            store(to, load(from + q * NR));
            store(to + 4, load(from + q * NR + 4));
          }
        }
        out += (size_t)4 * NR * k;
        j += 3 * NR;
        continue;
      }
      if (columns == NR) {
        for (int p = 0; p < k; p++, from += ldb, out += NR) {
          store(out, load(from));
          store(out + 4, load(from + 4));
        }
      } else {
        for (int p = 0; p < k; p++, from += ldb, out += NR)
          for (int c = 0; c < NR; c++) out[c] = c < columns ? from[c] : 0;
      }
      continue;
    }
    const float *from = b + (size_t)j * ldb;
    int p = 0;
    if (columns == NR) {
      for (; p + 4 <= k; p += 4, out += 4 * NR) {
        for (int h = 0; h < 2; h++) {
          const float *at = from + (size_t)(4 * h) * ldb + p;
          f4 r0 = load(at), r1 = load(at + ldb), r2 = load(at + 2 * (size_t)ldb), r3 = load(at + 3 * (size_t)ldb);
          f4 t0 = wasm_i32x4_shuffle(r0, r1, 0, 4, 1, 5), t1 = wasm_i32x4_shuffle(r0, r1, 2, 6, 3, 7);
          f4 t2 = wasm_i32x4_shuffle(r2, r3, 0, 4, 1, 5), t3 = wasm_i32x4_shuffle(r2, r3, 2, 6, 3, 7);
          store(out + 4 * h, wasm_i64x2_shuffle(t0, t2, 0, 2));
          store(out + NR + 4 * h, wasm_i64x2_shuffle(t0, t2, 1, 3));
          store(out + 2 * NR + 4 * h, wasm_i64x2_shuffle(t1, t3, 0, 2));
          store(out + 3 * NR + 4 * h, wasm_i64x2_shuffle(t1, t3, 1, 3));
        }
      }
    }
    for (; p < k; p++, out += NR)
      for (int c = 0; c < NR; c++) out[c] = c < columns ? from[(size_t)c * ldb + p] : 0;
  }
}

#define ROWS(X) X(0) X(1) X(2) X(3)
#if MR == 6
#define MORE_ROWS(X) X(4) X(5)
#else
#define MORE_ROWS(X)
#endif

// One MR×NR tile of C from a packed panel of each operand.
INLINE void tile(int k, const float *a, const float *b, float *c, int ldc, int accumulate) {
#define DECLARE(r) f4 c##r##0 = splat(0), c##r##1 = splat(0);
  ROWS(DECLARE) MORE_ROWS(DECLARE)
  for (int p = 0; p < k; p++, a += MR, b += NR) {
    f4 b0 = load(b), b1 = load(b + 4);
#define STEP(r)                  \
  {                              \
    f4 ar = load_splat(a + r);   \
    c##r##0 = madd(ar, b0, c##r##0); \
    c##r##1 = madd(ar, b1, c##r##1); \
  }
    ROWS(STEP) MORE_ROWS(STEP)
  }
  if (accumulate) {
#define ADD_TO(r)                                        \
  {                                                      \
    float *to = c + (size_t)r * ldc;                     \
    store(to, add(load(to), c##r##0));                   \
    store(to + 4, add(load(to + 4), c##r##1));           \
  }
    ROWS(ADD_TO) MORE_ROWS(ADD_TO)
  } else {
#define PUT(r)                           \
  {                                      \
    float *to = c + (size_t)r * ldc;     \
    store(to, c##r##0);                  \
    store(to + 4, c##r##1);              \
  }
    ROWS(PUT) MORE_ROWS(PUT)
  }
}

static void block(int m, int n, int k, const float *a, const float *b, float *c, int ldc, int accumulate) {
  float edge[MR * NR];
  for (int j = 0; j < n; j += NR, b += (size_t)NR * k) {
    int columns = n - j < NR ? n - j : NR;
    const float *panel = a;
    for (int i = 0; i < m; i += MR, panel += (size_t)MR * k) {
      int rows = m - i < MR ? m - i : MR;
      float *to = c + (size_t)i * ldc + j;
      if (rows == MR && columns == NR) {
        tile(k, panel, b, to, ldc, accumulate);
        continue;
      }
      tile(k, panel, b, edge, NR, 0);
      for (int r = 0; r < rows; r++)
        for (int q = 0; q < columns; q++)
          to[(size_t)r * ldc + q] = accumulate ? to[(size_t)r * ldc + q] + edge[r * NR + q] : edge[r * NR + q];
    }
  }
}

static void blocked(int ta, int tb, int m, int n, int k, const float *a, int lda, const float *b, int ldb, float *c, int ldc,
                    int accumulate, float *work) {
  float *packed_a = work, *packed_b = work + (SGEMM_MC + 8) * SGEMM_KC;
  for (int j = 0; j < n; j += SGEMM_NC) {
    int nc = n - j < SGEMM_NC ? n - j : SGEMM_NC;
    for (int p = 0; p < k; p += SGEMM_KC) {
      int kc = k - p < SGEMM_KC ? k - p : SGEMM_KC;
      sgemm_pack_b(tb, kc, nc, tb ? b + (size_t)j * ldb + p : b + (size_t)p * ldb + j, ldb, packed_b);
      for (int i = 0; i < m; i += SGEMM_MC) {
        int mc = m - i < SGEMM_MC ? m - i : SGEMM_MC;
        pack_a(ta, mc, kc, ta ? a + (size_t)p * lda + i : a + (size_t)i * lda + p, lda, packed_a);
        block(mc, nc, kc, packed_a, packed_b, c + (size_t)i * ldc + j, ldc, accumulate || p > 0);
      }
    }
  }
}

void sgemm(int ta, int tb, int m, int n, int k, const float *a, int lda, const float *b, int ldb, float *c, int ldc,
           int accumulate, float *work) {
  if (k > 0) {
    blocked(ta, tb, m, n, k, a, lda, b, ldb, c, ldc, accumulate, work);
  } else if (!accumulate) {
    for (int i = 0; i < m; i++) zero(c + (size_t)i * ldc, n);
  }
}

EXPORT int mf_sgemm_work(void) { return SGEMM_WORK * sizeof(float); }

// `batch` products at fixed distances (0 repeats one operand).
EXPORT void mf_sgemm(int batch, int ta, int tb, int m, int n, int k, const float *a, int a_step, const float *b, int b_step,
                     float *c, int accumulate, float *work) {
  const int lda = ta ? m : k, ldb = tb ? k : n;
  for (int i = 0; i < batch; i++, a += a_step, b += b_step, c += (size_t)m * n) {
    if (m <= SGEMM_FEW_ROWS && k > 0) sgemm_few(ta, tb, m, n, k, a, lda, b, ldb, c, n, 1, accumulate, work);
    else if (n <= SGEMM_FEW_COLUMNS && k > 0) sgemm_few(!tb, !ta, n, m, k, b, ldb, a, lda, c, 1, n, accumulate, work);
    else sgemm(ta, tb, m, n, k, a, lda, b, ldb, c, n, accumulate, work);
  }
}

// A rectangle of one product, as a thread computes it: each number of C is summed in the same order whatever the rectangle.
EXPORT void mf_sgemm_part(int ta, int tb, int m, int n, int k, const float *a, int lda, const float *b, int ldb, float *c, int ldc,
                          int accumulate, float *work) {
  blocked(ta, tb, m, n, k, a, lda, b, ldb, c, ldc, accumulate, work);
}

// Some columns of a product with few rows, alike.
EXPORT void mf_sgemm_few(int ta, int tb, int m, int n, int k, const float *a, int lda, const float *b, int ldb, float *c, int row_c,
                         int column_c, int accumulate, float *work) {
  sgemm_few(ta, tb, m, n, k, a, lda, b, ldb, c, row_c, column_c, accumulate, work);
}
