// Single precision matrix product, in the blocking of Goto & van de Geijn (2008). C is cut into pieces that threads work
// on; no sum is ever split between threads, so the result does not depend on their number.
#include "gemm.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "pool.h"

typedef struct {
  int ta, tb, m, n, k, accumulate;
  size_t lda, ldb, row_c, column_c;
  const float *a, *b;
  float *c;
} Product;

// In few.c of @matforge/engine.
void sgemm_few(int ta, int tb, int m, int n, int k, const float *a, int lda, const float *b, int ldb, float *c, size_t row_c,
               size_t column_c, int accumulate, float *work);

static inline int least(int a, int b) { return a < b ? a : b; }

typedef float v4 __attribute__((vector_size(16), aligned(4), may_alias));
#define LOAD4(p) (*(const v4 *)(p))
#define STORE4(p, v) (*(v4 *)(p) = (v))
#define SHUFFLE __builtin_shufflevector
#define UNROLL _Pragma("GCC unroll 16")

// Blocks of A and B, multiples of every tile. Rows of at most CLOSE floats are close together. Products of at most SLIM
// columns, as in low-rank adapters, have tiles of their own, for they would waste half of a wide vector; those of at most
// FEW rows or columns read their operands once, without tiles.
enum { DEPTH = 384, ROWS = 480, COLUMNS = 128, CLOSE = 256, SLIM = 8, FEW = 3 };

typedef void (*Tile)(int, const float *, size_t, const float *, size_t, float *, size_t, int);

// What will be needed soon: `width` floats of each of `rows` rows.
typedef struct {
  const float *row;
  size_t ld;
  int rows, width, at;
} Ahead;

static inline void fetch(Ahead *x, int lines) {
  for (; lines > 0 && x->rows > 0; lines--) {
    __builtin_prefetch(x->row + x->at, 0, 2);
    x->at += 16;
    if (x->at >= x->width) x->at = 0, x->row += x->ld, x->rows--;
  }
}

#if defined(__x86_64__)
#define NAME(x) x##_avx512
#define TARGET __attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")))
#define LANES 16
#define MR 8
#define NV 2
#include "gemm_tile.h"
#define NAME(x) x##_slim
#define TARGET __attribute__((target("avx2,fma")))
#define LANES 8
#define MR 8
#define NV 1
#include "gemm_tile.h"
#define NAME(x) x##_avx2
#define TARGET __attribute__((target("avx2,fma")))
#define LANES 8
#define MR 6
#define NV 2
#include "gemm_tile.h"
#elif defined(__aarch64__)
#define NAME(x) x##_slim
#define TARGET
#define LANES 4
#define MR 8
#define NV 2
#include "gemm_tile.h"
#define NAME(x) x##_neon
#define TARGET
#define LANES 4
#define MR 6
#define NV 4
#include "gemm_tile.h"
#endif

typedef void (*Block)(const Product *, int, int, int, int, float *);
static const struct {
  const char *name;
  Block block;
  int rows, columns;
} kinds[] = {
#if defined(__x86_64__)
    {"avx512", block_avx512, 8, 32},
    {"avx2", block_avx2, 6, 16},
#elif defined(__aarch64__)
    {"neon", block_neon, 6, 16},
#endif
    {0, 0, 0, 0},
};

static int has(const char *isa) {
#if defined(__x86_64__)
  if (!strcmp(isa, "avx512"))
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw");
  if (!strcmp(isa, "avx2")) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return !strcmp(isa, "neon");
}

static int chosen = -1;

static int choose(void) {
  if (chosen < 0)
    for (chosen = 0; kinds[chosen].name && !has(kinds[chosen].name);) chosen++;
  return chosen;
}

const char *gemm_isa(void) { return kinds[choose()].name; }

int gemm_use(const char *isa) {
  for (int i = 0; kinds[i].name; i++)
    if (!strcmp(kinds[i].name, isa) && has(isa)) {
      chosen = i;
      return 1;
    }
  return 0;
}

static void block_few(const Product *g, int i0, int m, int j0, int n, float *work) {
  const float *a = g->a + i0 * (g->ta ? (size_t)1 : g->lda), *b = g->b + j0 * (g->tb ? g->ldb : (size_t)1);
  float *c = g->c + i0 * g->row_c + j0 * g->column_c;
  sgemm_few(g->ta, g->tb, m, n, g->k, a, (int)g->lda, b, (int)g->ldb, c, g->row_c, g->column_c, g->accumulate, work);
}

typedef struct {
  Product product;
  Block block;
  int rows, columns;  // pieces of every product
  int step_m, step_n;
  size_t step_a, step_b, step_c;
} Job;

// Kept for the life of a thread: 0.9 MB.
static _Thread_local float *work_area;
static _Atomic int out_of_memory;

int gemm_failed(void) { return out_of_memory; }

static void piece(void *data, int index, int worker) {
  const Job *job = data;
  (void)worker;
  if (!work_area) {
    void *area = malloc((ROWS + COLUMNS) * DEPTH * sizeof(float) + 64);
    if (!area) {
      out_of_memory = 1;
      return;
    }
    work_area = (float *)(((uintptr_t)area + 63) & ~(uintptr_t)63);
  }
  int grid = job->rows * job->columns, number = index / grid, cell = index % grid;
  Product g = job->product;
  g.a += number * job->step_a, g.b += number * job->step_b, g.c += number * job->step_c;
  int i = cell / job->columns * job->step_m, j = cell % job->columns * job->step_n;
  job->block(&g, i, least(job->step_m, g.m - i), j, least(job->step_n, g.n - j), work_area);
}

static int pieces_of(int length, int parts, int unit, int *step) {
  *step = ((length + parts - 1) / parts + unit - 1) / unit * unit;
  return (length + *step - 1) / *step;
}

static void run(Product g, int batch, size_t step_a, size_t step_b, size_t step_c) {
  if (batch <= 0 || g.m <= 0 || g.n <= 0) return;
  if (g.k <= 0) {
    for (int b = 0; b < batch && !g.accumulate; b++)
      for (int i = 0; i < g.m; i++) memset(g.c + b * step_c + i * g.row_c, 0, g.n * sizeof(float));
    return;
  }
  // Few columns are few rows of the transposed product. With a slim operand, the large one may lie across: the transposed
  // product reads it along its rows, without a copy.
  int few = g.m <= FEW, turn = few ? 0 : g.n <= FEW || (g.ta && g.n <= SLIM && g.n < g.m) || (g.tb && g.m <= SLIM && g.m < g.n);
  if (turn) {
    Product across = {!g.tb, !g.ta, g.n, g.m, g.k, g.accumulate, g.ldb, g.lda, g.column_c, g.row_c, g.b, g.a, g.c};
    run(across, batch, step_b, step_a, step_c);
    return;
  }
  int kind = choose(), slim = !few && g.n <= SLIM;
  Job job = {.product = g, .step_a = step_a, .step_b = step_b, .step_c = step_c};
  job.block = few ? block_few : slim ? block_slim : kinds[kind].block;
  const int mr = few ? FEW : slim ? 8 : kinds[kind].rows, nr = few ? 64 : slim ? SLIM : kinds[kind].columns;
  const int threads = pool_size();
  double one = (double)g.m * g.n * g.k;
  // Waking a thread costs about as much as half a million multiplications, or as reading a quarter of a million numbers.
  int parallel = threads > 1 && one * batch >= 1 << (few ? 18 : 19), down = 1, across = 1;
  if (parallel && batch < 2 * threads) {
    int want = ((one * batch >= 1 << 26 ? 2 : 1) * threads + batch - 1) / batch;
    // Of the grids with that many pieces, the one that copies least.
    double best = 0;
    for (int r = 1; r <= want; r++) {
      int c = (want + r - 1) / r;
      if ((r > 1 && g.m / r < mr) || (c > 1 && g.n / c < nr)) continue;
      double copied = (double)g.m / r + (double)g.n / c;
      if (best == 0 || copied < best) best = copied, down = r, across = c;
    }
  }
  job.rows = pieces_of(g.m, down, mr, &job.step_m);
  job.columns = pieces_of(g.n, across, nr, &job.step_n);
  int pieces = batch * job.rows * job.columns;
  if (parallel) pool_run(piece, &job, pieces);
  else
    for (int i = 0; i < pieces; i++) piece(&job, i, -1);
}

// What the other kernels of @matforge/engine call; they bring a work area that this one does not need.
void sgemm(int ta, int tb, int m, int n, int k, const float *a, int lda, const float *b, int ldb, float *c, int ldc,
           int accumulate, float *work) {
  (void)work;
  run((Product){ta, tb, m, n, k, accumulate, lda, ldb, ldc, 1, a, b, c}, 1, 0, 0, 0);
}

void mf_sgemm(int batch, int ta, int tb, int m, int n, int k, const float *a, int a_step, const float *b, int b_step,
              float *c, int accumulate, float *work) {
  (void)work;
  Product one = {ta, tb, m, n, k, accumulate, ta ? m : k, tb ? k : n, n, 1, a, b, c};
  run(one, batch, a_step, b_step, (size_t)m * n);
}
