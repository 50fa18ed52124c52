// Dense linear algebra in float64 for WebAssembly SIMD: matrix product, QR, LU, Cholesky, triangular solves,
// symmetric eigenproblem and SVD. Matrices are row-major. Level-3 work goes through one packed product (`product`);
// reflectors are gathered in blocks I - V T V' (Schreiber & Van Loan 1989); plane rotations of the implicit QR sweeps are
// recorded and applied in batches to panels that fit the first-level cache (Van Zee, van de Geijn & Quintana-Orti 2014).
#include <wasm_simd128.h>

#define EXPORT(name) __attribute__((export_name(#name), visibility("default")))
#define APART __attribute__((noinline))
typedef double f64;
typedef unsigned long usize;

static const f64 EPS = 1.1102230246251565e-16;    // unit roundoff
static const f64 TINY = 2.2250738585072014e-308;  // smallest normal number
enum { BLOCK = 32, PANEL = 8, KC = 256, MC = 64, NC = 512 };

// ---------------------------------------------------------------------------------------------------- memory
extern unsigned char __heap_base;
static usize top;

EXPORT(reset) void reset(void) { top = ((usize)&__heap_base + 63) & ~(usize)63; }

static void *take_bytes(usize bytes) {
  usize start = top;
  bytes = (bytes + 63) & ~(usize)63;
  if (start + bytes < start) __builtin_trap();
  top = start + bytes;
  usize have = __builtin_wasm_memory_size(0) << 16;
  if (top > have && __builtin_wasm_memory_grow(0, (top - have + 0xffff) >> 16) == (usize)-1) __builtin_trap();
  return (void *)start;
}

EXPORT(take) f64 *take(int count) {
  if (count < 0 || (unsigned)count > 0x1fffffffu) __builtin_trap();
  return take_bytes((usize)count * sizeof(f64));
}

static APART void zero(f64 *x, int n) {
  v128_t none = wasm_f64x2_splat(0);
  int i = 0;
  for (; i + 1 < n; i += 2) wasm_v128_store(x + i, none);
  for (; i < n; i++) x[i] = 0;
}

// ---------------------------------------------------------------------------------------------------- vectors
static inline v128_t load(const f64 *x) { return wasm_v128_load(x); }
static inline v128_t all(f64 x) { return wasm_f64x2_splat(x); }
static inline v128_t mul_add(v128_t a, v128_t b, v128_t c) { return wasm_f64x2_add(wasm_f64x2_mul(a, b), c); }
static inline f64 sum2(v128_t a) { return wasm_f64x2_extract_lane(a, 0) + wasm_f64x2_extract_lane(a, 1); }
static inline f64 magnitude(f64 x) { return __builtin_fabs(x); }
static inline f64 larger(f64 a, f64 b) { return a > b ? a : b; }
static inline f64 smaller(f64 a, f64 b) { return a < b ? a : b; }
static inline int least(int a, int b) { return a < b ? a : b; }
static inline f64 with_sign(f64 size, f64 sign) { return __builtin_copysign(size, sign); }

static APART f64 dot(const f64 *x, const f64 *y, int n) {
  v128_t a = all(0), b = all(0), c = all(0), d = all(0);
  int i = 0;
  for (; i + 7 < n; i += 8) {
    a = mul_add(load(x + i), load(y + i), a);
    b = mul_add(load(x + i + 2), load(y + i + 2), b);
    c = mul_add(load(x + i + 4), load(y + i + 4), c);
    d = mul_add(load(x + i + 6), load(y + i + 6), d);
  }
  f64 sum = sum2(wasm_f64x2_add(wasm_f64x2_add(a, b), wasm_f64x2_add(c, d)));
  for (; i < n; i++) sum += x[i] * y[i];
  return sum;
}

static APART void add_scaled(f64 *y, f64 factor, const f64 *x, int n) {
  v128_t f = all(factor);
  int i = 0;
  for (; i + 1 < n; i += 2) wasm_v128_store(y + i, mul_add(f, load(x + i), load(y + i)));
  for (; i < n; i++) y[i] += factor * x[i];
}

static void scale(f64 *x, f64 factor, int n) {
  for (int i = 0; i < n; i++) x[i] *= factor;
}

static f64 largest_magnitude(const f64 *x, int n) {
  f64 most = 0;
  for (int i = 0; i < n; i++) most = larger(most, magnitude(x[i]));
  return most;
}

/** Two-norm without overflow or harmful underflow. */
static APART f64 norm(const f64 *x, int n) {
  f64 square = dot(x, x, n);
  if (square > 1e-280 && square < 1e280) return __builtin_sqrt(square);
  f64 most = largest_magnitude(x, n);
  if (most == 0) return 0;
  f64 sum = 0;
  for (int i = 0; i < n; i++) sum += (x[i] / most) * (x[i] / most);
  return most * __builtin_sqrt(sum);
}

/** y = A x for rows x columns entries of A, four rows at a time. */
static APART void matrix_vector(const f64 *a, int lda, int rows, int columns, const f64 *x, f64 *y) {
  int i = 0;
  for (; i + 3 < rows; i += 4) {
    const f64 *r0 = a + i * lda, *r1 = r0 + lda, *r2 = r1 + lda, *r3 = r2 + lda;
    v128_t s0 = all(0), s1 = all(0), s2 = all(0), s3 = all(0);
    int j = 0;
    for (; j + 1 < columns; j += 2) {
      v128_t xj = load(x + j);
      s0 = mul_add(load(r0 + j), xj, s0);
      s1 = mul_add(load(r1 + j), xj, s1);
      s2 = mul_add(load(r2 + j), xj, s2);
      s3 = mul_add(load(r3 + j), xj, s3);
    }
    f64 t0 = sum2(s0), t1 = sum2(s1), t2 = sum2(s2), t3 = sum2(s3);
    if (j < columns) t0 += r0[j] * x[j], t1 += r1[j] * x[j], t2 += r2[j] * x[j], t3 += r3[j] * x[j];
    y[i] = t0, y[i + 1] = t1, y[i + 2] = t2, y[i + 3] = t3;
  }
  for (; i < rows; i++) y[i] = dot(a + i * lda, x, columns);
}

/** y = A' x for rows x columns entries of A, four rows at a time. */
static APART void transposed_vector(const f64 *a, int lda, int rows, int columns, const f64 *x, f64 *y) {
  zero(y, columns);
  int i = 0;
  for (; i + 3 < rows; i += 4) {
    const f64 *r0 = a + i * lda, *r1 = r0 + lda, *r2 = r1 + lda, *r3 = r2 + lda;
    v128_t x0 = all(x[i]), x1 = all(x[i + 1]), x2 = all(x[i + 2]), x3 = all(x[i + 3]);
    int j = 0;
    for (; j + 1 < columns; j += 2) {
      v128_t s = mul_add(load(r0 + j), x0, mul_add(load(r1 + j), x1, load(y + j)));
      v128_t t = mul_add(load(r2 + j), x2, wasm_f64x2_mul(load(r3 + j), x3));
      wasm_v128_store(y + j, wasm_f64x2_add(s, t));
    }
    if (j < columns) y[j] += r0[j] * x[i] + r1[j] * x[i + 1] + r2[j] * x[i + 2] + r3[j] * x[i + 3];
  }
  for (; i < rows; i++) add_scaled(y, x[i], a + i * lda, columns);
}

/** y = A x where only the lower triangle of the symmetric A is read. */
static APART void symmetric_vector(const f64 *a, int lda, int n, const f64 *x, f64 *y) {
  zero(y, n);
  int i = 0;
  for (; i + 3 < n; i += 4) {
    const f64 *r0 = a + i * lda, *r1 = r0 + lda, *r2 = r1 + lda, *r3 = r2 + lda;
    v128_t x0 = all(x[i]), x1 = all(x[i + 1]), x2 = all(x[i + 2]), x3 = all(x[i + 3]);
    v128_t s0 = all(0), s1 = all(0), s2 = all(0), s3 = all(0);
    for (int j = 0; j < i; j += 2) {
      v128_t xj = load(x + j), a0 = load(r0 + j), a1 = load(r1 + j), a2 = load(r2 + j), a3 = load(r3 + j);
      s0 = mul_add(a0, xj, s0);
      s1 = mul_add(a1, xj, s1);
      s2 = mul_add(a2, xj, s2);
      s3 = mul_add(a3, xj, s3);
      v128_t p = mul_add(a0, x0, mul_add(a1, x1, load(y + j)));
      wasm_v128_store(y + j, wasm_f64x2_add(p, mul_add(a2, x2, wasm_f64x2_mul(a3, x3))));
    }
    y[i] += sum2(s0), y[i + 1] += sum2(s1), y[i + 2] += sum2(s2), y[i + 3] += sum2(s3);
    for (int p = i; p < i + 4; p++) {
      const f64 *row = a + p * lda;
      for (int q = i; q < p; q++) y[p] += row[q] * x[q], y[q] += row[q] * x[p];
      y[p] += row[p] * x[p];
    }
  }
  for (; i < n; i++) {
    const f64 *row = a + i * lda;
    add_scaled(y, x[i], row, i);
    y[i] += dot(row, x, i) + row[i] * x[i];
  }
}

// ---------------------------------------------------------------------------------------------------- products
/** 4 x 4 tile of C += factor * A B from packed panels. */
static APART void tile(int k, f64 factor, const f64 *a, const f64 *b, f64 *c, int ldc, int rows, int columns) {
  v128_t c00 = all(0), c01 = all(0), c10 = all(0), c11 = all(0), c20 = all(0), c21 = all(0), c30 = all(0), c31 = all(0);
  for (int p = 0; p < k; p++, a += 4, b += 4) {
    v128_t b0 = load(b), b1 = load(b + 2), x = wasm_v128_load64_splat(a);
    c00 = mul_add(x, b0, c00), c01 = mul_add(x, b1, c01);
    x = wasm_v128_load64_splat(a + 1);
    c10 = mul_add(x, b0, c10), c11 = mul_add(x, b1, c11);
    x = wasm_v128_load64_splat(a + 2);
    c20 = mul_add(x, b0, c20), c21 = mul_add(x, b1, c21);
    x = wasm_v128_load64_splat(a + 3);
    c30 = mul_add(x, b0, c30), c31 = mul_add(x, b1, c31);
  }
  v128_t f = all(factor);
  if (rows == 4 && columns == 4) {
    f64 *r0 = c, *r1 = c + ldc, *r2 = r1 + ldc, *r3 = r2 + ldc;
    wasm_v128_store(r0, mul_add(f, c00, load(r0))), wasm_v128_store(r0 + 2, mul_add(f, c01, load(r0 + 2)));
    wasm_v128_store(r1, mul_add(f, c10, load(r1))), wasm_v128_store(r1 + 2, mul_add(f, c11, load(r1 + 2)));
    wasm_v128_store(r2, mul_add(f, c20, load(r2))), wasm_v128_store(r2 + 2, mul_add(f, c21, load(r2 + 2)));
    wasm_v128_store(r3, mul_add(f, c30, load(r3))), wasm_v128_store(r3 + 2, mul_add(f, c31, load(r3 + 2)));
    return;
  }
  f64 whole[16];
  wasm_v128_store(whole, c00), wasm_v128_store(whole + 2, c01), wasm_v128_store(whole + 4, c10);
  wasm_v128_store(whole + 6, c11), wasm_v128_store(whole + 8, c20), wasm_v128_store(whole + 10, c21);
  wasm_v128_store(whole + 12, c30), wasm_v128_store(whole + 14, c31);
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < columns; j++) c[i * ldc + j] += factor * whole[4 * i + j];
}

/** Packs `count` lines of length k in groups of four: out[group][p][line]. Lines past the end are zero. */
static APART void pack(const f64 *x, int line_stride, int k_stride, int count, int k, f64 *out) {
  for (int g = 0; g < count; g += 4, out += 4 * k) {
    const f64 *from = x + g * line_stride;
    int here = least(4, count - g);
    if (here == 4 && line_stride == 1) {
      for (int p = 0; p < k; p++, from += k_stride)
        wasm_v128_store(out + 4 * p, load(from)), wasm_v128_store(out + 4 * p + 2, load(from + 2));
    } else if (here == 4) {
      const f64 *l0 = from, *l1 = l0 + line_stride, *l2 = l1 + line_stride, *l3 = l2 + line_stride;
      for (int p = 0, q = 0; p < k; p++, q += k_stride)
        out[4 * p] = l0[q], out[4 * p + 1] = l1[q], out[4 * p + 2] = l2[q], out[4 * p + 3] = l3[q];
    } else {
      for (int p = 0; p < k; p++)
        for (int l = 0; l < 4; l++) out[4 * p + l] = l < here ? from[l * line_stride + p * k_stride] : 0;
    }
  }
}

/** C += factor * A B with A m x k and B k x n of any strides; lower: only tiles that meet i >= j. */
static APART void product(int m, int n, int k, f64 factor, const f64 *a, int a_row, int a_column, const f64 *b, int b_row,
                    int b_column, f64 *c, int ldc, int lower) {
  if (m <= 0 || n <= 0 || k <= 0) return;
  usize mark = top;
  f64 *packed_b = take(KC * least(NC, (n + 3) & ~3)), *packed_a = take(KC * MC);
  for (int jc = 0; jc < n; jc += NC) {
    int nc = least(NC, n - jc);
    for (int pc = 0; pc < k; pc += KC) {
      int kc = least(KC, k - pc);
      pack(b + pc * b_row + jc * b_column, b_column, b_row, nc, kc, packed_b);
      for (int ic = lower ? jc / MC * MC : 0; ic < m; ic += MC) {
        int mc = least(MC, m - ic);
        pack(a + ic * a_row + pc * a_column, a_row, a_column, mc, kc, packed_a);
        for (int jr = 0; jr < nc; jr += 4)
          for (int ir = 0; ir < mc; ir += 4)
            if (!lower || jc + jr <= ic + ir + 3)
              tile(kc, factor, packed_a + ir * kc, packed_b + jr * kc, c + (ic + ir) * ldc + jc + jr, ldc,
                   least(4, mc - ir), least(4, nc - jr));
      }
    }
  }
  top = mark;
}

EXPORT(multiply)
void multiply(int m, int n, int k, const f64 *a, int a_row, int a_column, const f64 *b, int b_row, int b_column, f64 *c) {
  zero(c, m * n);
  product(m, n, k, 1, a, a_row, a_column, b, b_row, b_column, c, n, 0);
}

// ---------------------------------------------------------------------------------------------------- reflectors
/** Turns x into v (v[0] = 1) with (I - tau v v') x = beta e1. Returns tau and writes beta. */
static APART f64 reflector(f64 *x, int n, f64 *beta) {
  f64 alpha = x[0], rest = norm(x + 1, n - 1);
  // Subnormal numbers have too few digits for a direction.
  if (rest > 0 && larger(magnitude(alpha), rest) < 0x1p-960) {
    for (int i = 0; i < n; i++) x[i] *= 0x1p600;
    f64 tau = reflector(x, n, beta);
    *beta *= 0x1p-600;
    return tau;
  }
  x[0] = 1;
  *beta = alpha;
  if (rest == 0) return 0;
  f64 most = larger(magnitude(alpha), rest), least_part = smaller(magnitude(alpha), rest) / most;
  f64 length = -with_sign(most * __builtin_sqrt(1 + least_part * least_part), alpha);
  f64 pivot = alpha - length;
  for (int i = 1; i < n; i++) x[i] /= pivot;
  *beta = length;
  return (length - alpha) / length;
}

/** Upper triangular T of I - V T V', reflectors in the rows of vt (Schreiber & Van Loan 1989). */
static APART void block_factor(const f64 *vt, int ldv, int count, int length, const f64 *tau, f64 *t) {
  f64 gram[BLOCK * BLOCK];
  zero(gram, BLOCK * BLOCK);
  product(count, count, length, 1, vt, ldv, 1, vt, 1, ldv, gram, BLOCK, 0);
  zero(t, BLOCK * BLOCK);
  for (int j = 0; j < count; j++) {
    for (int i = 0; i < j; i++) {
      f64 sum = 0;
      for (int p = i; p < j; p++) sum += t[i * BLOCK + p] * gram[p * BLOCK + j];
      t[i * BLOCK + j] = -tau[j] * sum;
    }
    t[j * BLOCK + j] = tau[j];
  }
}

/** C := (I - V T V') C, or with T' when transposed; C is length x columns. */
static APART void apply_block(const f64 *vt, int ldv, int count, int length, const f64 *t, int transposed, f64 *c, int ldc,
                        int columns) {
  if (columns <= 0) return;
  usize mark = top;
  f64 *w = take(count * columns), *tw = take(count * columns);
  zero(w, count * columns), zero(tw, count * columns);
  product(count, columns, length, 1, vt, ldv, 1, c, ldc, 1, w, columns, 0);
  product(count, columns, count, 1, t, transposed ? 1 : BLOCK, transposed ? BLOCK : 1, w, columns, 1, tw, columns, 0);
  product(length, columns, count, -1, vt, 1, ldv, tw, columns, 1, c, ldc, 0);
  top = mark;
}

/** Q := H_0 H_1 ... H_{count-1} I, the first `columns` columns; reflector j acts on entries from j + shift on. */
static APART void accumulate(const f64 *vt, int ldv, int count, int length, int shift, const f64 *tau, f64 *q, int columns) {
  f64 t[BLOCK * BLOCK];
  zero(q, length * columns);
  for (int i = 0; i < least(length, columns); i++) q[i * columns + i] = 1;
  for (int j = (count - 1) / BLOCK * BLOCK; j >= 0; j -= BLOCK) {
    int here = least(BLOCK, count - j), from = j + shift;
    if (here <= 0 || from >= columns) continue;
    const f64 *v = vt + j * ldv + from;
    block_factor(v, ldv, here, length - from, tau + j, t);
    apply_block(v, ldv, here, length - from, t, 0, q + from * columns + from, columns, columns - from);
  }
}

// ---------------------------------------------------------------------------------------------------- QR
/** Factors a (m x n) in place into R on and above the diagonal; reflectors go to the rows of vt (k x m). */
static void factor_qr(int m, int n, f64 *a, f64 *vt, f64 *tau) {
  int k = least(m, n);
  f64 t[BLOCK * BLOCK], w[BLOCK];
  for (int jb = 0; jb < k; jb += BLOCK) {
    int here = least(BLOCK, k - jb), end = jb + here;
    for (int j = jb; j < end; j++) {
      f64 *v = vt + j * m;
      zero(v, j);
      for (int i = j; i < m; i++) v[i] = a[i * n + j];
      tau[j] = reflector(v + j, m - j, a + j * n + j);
      for (int i = j + 1; i < m; i++) a[i * n + j] = 0;
      int right = end - j - 1;
      if (tau[j] == 0 || right == 0) continue;
      transposed_vector(a + j * n + j + 1, n, m - j, right, v + j, w);
      for (int i = j; i < m; i++) add_scaled(a + i * n + j + 1, -tau[j] * v[i], w, right);
    }
    if (end == n) continue;
    block_factor(vt + jb * m + jb, m, here, m - jb, tau + jb, t);
    apply_block(vt + jb * m + jb, m, here, m - jb, t, 1, a + jb * n + end, n, n - end);
  }
}

/** Thin Q (m x k) from the reflectors, then signs such that R has no negative diagonal entry. */
static void finish_qr(int m, int n, f64 *a, const f64 *vt, const f64 *tau, f64 *q) {
  int k = least(m, n);
  accumulate(vt, m, k, m, 0, tau, q, k);
  for (int j = 0; j < k; j++) {
    if (!(a[j * n + j] < 0)) continue;
    for (int p = j; p < n; p++) a[j * n + p] = -a[j * n + p];
    for (int i = 0; i < m; i++) q[i * k + j] = -q[i * k + j];
  }
}

EXPORT(qr) void qr(int m, int n, f64 *a, f64 *q) {
  usize mark = top;
  int k = least(m, n);
  f64 *vt = take(k * m), *tau = take(k);
  factor_qr(m, n, a, vt, tau);
  finish_qr(m, n, a, vt, tau, q);
  top = mark;
}

/** Column-pivoted QR (Businger & Golub 1965): the largest remaining column first, the lowest index among equals. */
EXPORT(qr_pivoted) void qr_pivoted(int m, int n, f64 *a, f64 *q, int *order) {
  usize mark = top;
  int k = least(m, n);
  f64 *vt = take(k * m), *tau = take(k), *size = take(n), *start = take(n), *w = take(n);
  for (int j = 0; j < n; j++) {
    order[j] = j;
    f64 *v = vt;  // the first row is free until the first reflector
    if (m > 0 && k > 0) {
      for (int i = 0; i < m; i++) v[i] = a[i * n + j];
      size[j] = start[j] = norm(v, m);
    }
  }
  for (int j = 0; j < k; j++) {
    int best = j;
    for (int p = j + 1; p < n; p++)
      if (size[p] > size[best] * (1 + 1e-13)) best = p;
    if (best != j) {
      // The columns between keep their order, so that "lowest index first" stays true.
      int moved = order[best];
      f64 s = size[best], s0 = start[best];
      for (int p = best; p > j; p--) order[p] = order[p - 1], size[p] = size[p - 1], start[p] = start[p - 1];
      order[j] = moved, size[j] = s, start[j] = s0;
      for (int i = 0; i < m; i++) {
        f64 *row = a + i * n, x = row[best];
        for (int p = best; p > j; p--) row[p] = row[p - 1];
        row[j] = x;
      }
    }
    f64 *v = vt + j * m;
    zero(v, j);
    for (int i = j; i < m; i++) v[i] = a[i * n + j];
    tau[j] = reflector(v + j, m - j, a + j * n + j);
    for (int i = j + 1; i < m; i++) a[i * n + j] = 0;
    int right = n - j - 1;
    if (right == 0) continue;
    if (tau[j] != 0) {
      transposed_vector(a + j * n + j + 1, n, m - j, right, v + j, w);
      for (int i = j; i < m; i++) add_scaled(a + i * n + j + 1, -tau[j] * v[i], w, right);
    }
    for (int p = j + 1; p < n; p++) {
      if (size[p] == 0) continue;
      f64 part = a[j * n + p] / size[p], left = larger(0, 1 - part * part), drift = size[p] / start[p];
      if (left * drift * drift <= 1e-8) {  // cancellation: the running norm has lost half its digits
        f64 sum = 0, most = 0;
        for (int i = j + 1; i < m; i++) most = larger(most, magnitude(a[i * n + p]));
        if (most > 0)
          for (int i = j + 1; i < m; i++) sum += (a[i * n + p] / most) * (a[i * n + p] / most);
        size[p] = start[p] = most * __builtin_sqrt(sum);
      } else {
        size[p] *= __builtin_sqrt(left);
      }
    }
  }
  finish_qr(m, n, a, vt, tau, q);
  top = mark;
}

// ---------------------------------------------------------------------------------------------------- triangles
/** Solves T X = B in place, T n x n triangular with any strides (so that a transpose costs nothing). */
static APART void solve_triangle(int n, int columns, const f64 *t, int row, int column, int upper, int unit, f64 *b, int ldb) {
  int blocks = (n + BLOCK - 1) / BLOCK;
  for (int step = 0; step < blocks; step++) {
    int from = (upper ? blocks - 1 - step : step) * BLOCK, to = least(n, from + BLOCK);
    if (upper) product(to - from, columns, n - to, -1, t + from * row + to * column, row, column, b + to * ldb, ldb, 1, b + from * ldb, ldb, 0);
    else product(to - from, columns, from, -1, t + from * row, row, column, b, ldb, 1, b + from * ldb, ldb, 0);
    for (int s = 0; s < to - from; s++) {
      int i = upper ? to - 1 - s : from + s;
      f64 *x = b + i * ldb;
      for (int p = upper ? i + 1 : from; p < (upper ? to : i); p++) add_scaled(x, -t[i * row + p * column], b + p * ldb, columns);
      if (unit) continue;
      f64 pivot = t[i * row + i * column];
      for (int j = 0; j < columns; j++) x[j] /= pivot;
    }
  }
}

EXPORT(triangular_solve)
void triangular_solve(int n, int columns, const f64 *t, int upper, int transposed, int unit, f64 *b) {
  if (transposed) solve_triangle(n, columns, t, 1, n, !upper, unit, b, columns);
  else solve_triangle(n, columns, t, n, 1, upper, unit, b, columns);
}

/** P A = L U in place (unit L below the diagonal), partial pivoting; order[i] = the row of A that became row i. Returns the sign of P. */
EXPORT(lu) int lu(int m, int n, f64 *a, int *order) {
  int k = least(m, n), sign = 1;
  for (int i = 0; i < m; i++) order[i] = i;
  for (int jb = 0; jb < k; jb += BLOCK) {
    int end = least(jb + BLOCK, k);
    for (int j = jb; j < end; j++) {
      int best = j;
      for (int i = j + 1; i < m; i++)
        if (magnitude(a[i * n + j]) > magnitude(a[best * n + j])) best = i;
      if (best != j) {
        for (int p = 0; p < n; p++) {
          f64 x = a[j * n + p];
          a[j * n + p] = a[best * n + p], a[best * n + p] = x;
        }
        int o = order[j];
        order[j] = order[best], order[best] = o, sign = -sign;
      }
      f64 pivot = a[j * n + j];
      if (pivot == 0) continue;
      for (int i = j + 1; i < m; i++) {
        f64 factor = a[i * n + j] /= pivot;
        if (factor != 0) add_scaled(a + i * n + j + 1, -factor, a + j * n + j + 1, end - j - 1);
      }
    }
    if (end == n) continue;
    solve_triangle(end - jb, n - end, a + jb * n + jb, n, 1, 0, 1, a + jb * n + end, n);
    product(m - end, n - end, end - jb, -1, a + end * n + jb, n, 1, a + jb * n + end, n, 1, a + end * n + end, n, 0);
  }
  return sign;
}

/** A = L L' in place, lower triangle, zeros above. Returns 0, or 1 + the index of the first pivot that is not positive. */
EXPORT(cholesky) int cholesky(int n, f64 *a) {
  for (int jb = 0; jb < n; jb += BLOCK) {
    int end = least(jb + BLOCK, n);
    for (int i = jb; i < n; i++) {
      f64 *row = a + i * n;
      for (int j = jb; j < least(end, i + 1); j++) {
        f64 rest = row[j] - dot(row + jb, a + j * n + jb, j - jb);
        if (j < i) row[j] = rest / a[j * n + j];
        else if (rest > 0) row[j] = __builtin_sqrt(rest);
        else return j + 1;
      }
    }
    product(n - end, n - end, end - jb, -1, a + end * n + jb, n, 1, a + end * n + jb, 1, n, a + end * n + end, n, 1);
  }
  for (int i = 0; i < n; i++) zero(a + i * n + i + 1, n - i - 1);
  return 0;
}

// ---------------------------------------------------------------------------------------------------- rotations
/** Recorded plane rotations: runs of neighbours that start at a row and walk up or down. */
typedef struct {
  int first, count, step;
} Run;
typedef struct {
  int length;     // number of rotated rows
  int panels;     // each holds PANEL entries of every row
  f64 *vectors;   // [panels][length][PANEL]
  Run *runs;
  int used_runs, used;
  f64 *cosines;   // pairs (cosine, sine)
} Rotor;
enum { RUNS = 512, ROTATIONS = 8192 };

static APART void rotor_open(Rotor *r, const f64 *columns, int rows, int length) {
  // `columns` is rows x length: the vectors to be rotated are its columns.
  r->length = length, r->panels = (rows + PANEL - 1) / PANEL, r->used = r->used_runs = 0;
  r->vectors = take(r->panels * length * PANEL);
  r->runs = take_bytes(RUNS * sizeof(Run));
  r->cosines = take(2 * (ROTATIONS + length));
  for (int p = 0; p < r->panels; p++)
    for (int l = 0; l < PANEL; l++) {
      int i = p * PANEL + l;
      f64 *to = r->vectors + p * length * PANEL + l;
      for (int j = 0; j < length; j++) to[j * PANEL] = i < rows ? columns[i * length + j] : 0;
    }
}

static APART void rotor_flush(Rotor *r) {
  for (int p = 0; p < r->panels; p++) {
    f64 *panel = r->vectors + p * r->length * PANEL;
    const f64 *cs = r->cosines;
    for (int q = 0; q < r->used_runs; q++) {
      Run run = r->runs[q];
      int stride = run.step * PANEL;
      f64 *x = panel + run.first * PANEL;
      v128_t k0 = load(x), k1 = load(x + 2), k2 = load(x + 4), k3 = load(x + 6);
      for (int t = 0; t < run.count; t++, cs += 2) {
        v128_t c = wasm_v128_load64_splat(cs), s = wasm_v128_load64_splat(cs + 1), next;
        f64 *y = x + stride;
        next = load(y), wasm_v128_store(x, mul_add(c, k0, wasm_f64x2_mul(s, next)));
        k0 = wasm_f64x2_sub(wasm_f64x2_mul(c, next), wasm_f64x2_mul(s, k0));
        next = load(y + 2), wasm_v128_store(x + 2, mul_add(c, k1, wasm_f64x2_mul(s, next)));
        k1 = wasm_f64x2_sub(wasm_f64x2_mul(c, next), wasm_f64x2_mul(s, k1));
        next = load(y + 4), wasm_v128_store(x + 4, mul_add(c, k2, wasm_f64x2_mul(s, next)));
        k2 = wasm_f64x2_sub(wasm_f64x2_mul(c, next), wasm_f64x2_mul(s, k2));
        next = load(y + 6), wasm_v128_store(x + 6, mul_add(c, k3, wasm_f64x2_mul(s, next)));
        k3 = wasm_f64x2_sub(wasm_f64x2_mul(c, next), wasm_f64x2_mul(s, k3));
        x = y;
      }
      wasm_v128_store(x, k0), wasm_v128_store(x + 2, k1), wasm_v128_store(x + 4, k2), wasm_v128_store(x + 6, k3);
    }
  }
  r->used = r->used_runs = 0;
}

/** Opens a run of `count` rotations and returns where its (cosine, sine) pairs go. */
static APART f64 *rotor_run(Rotor *r, int first, int count, int step) {
  if (r->used_runs == RUNS || r->used + count > ROTATIONS + r->length) rotor_flush(r);
  Run *run = r->runs + r->used_runs++;
  run->first = first, run->count = count, run->step = step;
  f64 *pairs = r->cosines + 2 * r->used;
  r->used += count;
  return pairs;
}

static inline f64 rotor_entry(const Rotor *r, int row, int vector) {
  return r->vectors[(row / PANEL) * r->length * PANEL + vector * PANEL + row % PANEL];
}

/** Cosine and sine with c f + s g = r and c g - s f = 0; returns r. */
static inline f64 rotation(f64 f, f64 g, f64 *c, f64 *s) {
  if (g == 0) {
    *c = 1, *s = 0;
    return f;
  }
  if (f == 0) {
    *c = 0, *s = 1;
    return g;
  }
  f64 most = larger(magnitude(f), magnitude(g)), unit = 1;
  if (most > 1e150 || most < 1e-140) unit = most, f /= most, g /= most;
  f64 r = __builtin_sqrt(f * f + g * g), inverse = 1 / r;
  *c = f * inverse, *s = g * inverse;
  return r * unit;
}

/** Indices of x in rising order (merge sort: equal values keep their order). */
static APART void rising_order(const f64 *x, int n, int *order) {
  usize mark = top;
  int *from = order, *to = take_bytes(n * sizeof(int));
  for (int i = 0; i < n; i++) order[i] = i;
  for (int width = 1; width < n; width *= 2) {
    for (int start = 0; start < n; start += 2 * width) {
      int middle = least(start + width, n), end = least(start + 2 * width, n);
      for (int i = start, j = middle, k = start; k < end; k++)
        to[k] = i < middle && (j >= end || x[from[i]] <= x[from[j]]) ? from[i++] : from[j++];
    }
    int *swap = from;
    from = to, to = swap;
  }
  if (from != order)
    for (int i = 0; i < n; i++) order[i] = from[i];
  top = mark;
}

// ---------------------------------------------------------------------------------------------------- symmetric eigen
/** Householder reduction of the lower triangle of a to tridiagonal (d, e); panels update the rest by one product. */
static void tridiagonalise(int n, f64 *a, f64 *d, f64 *e, f64 *vt, f64 *tau) {
  usize mark = top;
  f64 *wt = take(BLOCK * n), p1[BLOCK], p2[BLOCK];
  for (int jb = 0; jb < n; jb += BLOCK) {
    int end = least(jb + BLOCK, n);
    for (int j = jb; j < end; j++) {
      f64 *v = vt + j * n, *w = wt + (j - jb) * n;
      for (int i = j; i < n; i++) v[i] = a[i * n + j];
      for (int p = jb; p < j; p++) {
        const f64 *vp = vt + p * n, *wp = wt + (p - jb) * n;
        add_scaled(v + j, -wp[j], vp + j, n - j);
        add_scaled(v + j, -vp[j], wp + j, n - j);
      }
      d[j] = v[j];
      if (j + 1 == n) break;
      zero(v, j + 1);
      int from = j + 1, rest = n - from;
      tau[j] = reflector(v + from, rest, e + j);
      zero(w, n);
      if (tau[j] == 0) continue;
      symmetric_vector(a + from * n + from, n, rest, v + from, w + from);
      for (int p = jb; p < j; p++) {
        p1[p - jb] = dot(wt + (p - jb) * n + from, v + from, rest);
        p2[p - jb] = dot(vt + p * n + from, v + from, rest);
      }
      for (int p = jb; p < j; p++) {
        add_scaled(w + from, -p1[p - jb], vt + p * n + from, rest);
        add_scaled(w + from, -p2[p - jb], wt + (p - jb) * n + from, rest);
      }
      scale(w + from, tau[j], rest);
      add_scaled(w + from, -0.5 * tau[j] * dot(w + from, v + from, rest), v + from, rest);
    }
    int rest = n - end, here = end - jb;
    if (rest == 0) break;
    product(rest, rest, here, -1, vt + jb * n + end, 1, n, wt + end, n, 1, a + end * n + end, n, 1);
    product(rest, rest, here, -1, wt + end, 1, n, vt + jb * n + end, n, 1, a + end * n + end, n, 1);
  }
  top = mark;
}

/** Implicit shifted QL/QR on a symmetric tridiagonal matrix. Returns the number of values left unconverged. */
static int diagonalise(int n, f64 *d, f64 *e, Rotor *rotor) {
  int high = n - 1, block_low = -1, block_high = -1, up = 0;
  for (int left = 40 * n; high > 0;) {
    int low = high;
    for (; low > 0; low--) {
      f64 size = magnitude(e[low - 1]);
      if (size <= TINY || size * size <= EPS * EPS * magnitude(d[low - 1]) * magnitude(d[low])) {
        e[low - 1] = 0;
        break;
      }
    }
    if (low == high) {
      high--;
      continue;
    }
    if (left-- == 0) return high;
    if (low != block_low || high != block_high)  // converge at the smaller end (graded matrices)
      block_low = low, block_high = high, up = magnitude(d[high]) >= magnitude(d[low]);
    // The chase starts at `first` and walks by `step` towards the end where it converges.
    int count = high - low, step = up ? -1 : 1, first = up ? high : low;
    f64 *dd = d + first, *ee = e + (up ? first - 1 : first);
    f64 *pairs = rotor ? rotor_run(rotor, first, count, step) : 0;
    f64 last = dd[step * count], *coupling = ee + step * (count - 1);
    f64 g = (dd[step * (count - 1)] - last) / (2 * *coupling);
    f64 r = magnitude(g) > 1e150 ? magnitude(g) : __builtin_sqrt(g * g + 1), s = 1, c = 1, p = 0;
    g = dd[0] - last + *coupling / (g + with_sign(r, g));
    for (int i = 0; i < count; i++) {
      f64 f = s * ee[step * i], b = c * ee[step * i];
      r = rotation(g, f, &c, &s);
      if (i > 0) ee[step * (i - 1)] = r;
      g = dd[step * i] - p;
      r = (dd[step * (i + 1)] - g) * s + 2 * c * b;
      p = s * r;
      dd[step * i] = g + p;
      g = c * r - b;
      if (pairs) *pairs++ = c, *pairs++ = s;
    }
    dd[step * count] -= p;
    *coupling = g;
  }
  if (rotor) rotor_flush(rotor);
  return 0;
}

// Divide and conquer (Cuppen 1981): eigenvalues of diag(d) + rho z z' are the roots of a secular equation, eigenvectors
// follow from the z that has exactly the computed roots (Gu & Eisenstat 1995).

/** Sums z_i^2 / (delta_i - tau) and its derivative over [from, to). */
static void secular_sum(const f64 *delta, const f64 *z, int from, int to, f64 tau, f64 *value, f64 *slope) {
  v128_t sum = all(0), squares = all(0), t = all(tau);
  int i = from;
  for (; i + 1 < to; i += 2) {
    v128_t zi = load(z + i), ratio = wasm_f64x2_div(zi, wasm_f64x2_sub(load(delta + i), t));
    sum = mul_add(zi, ratio, sum);
    squares = mul_add(ratio, ratio, squares);
  }
  *value = sum2(sum), *slope = sum2(squares);
  if (i < to) {
    f64 ratio = z[i] / (delta[i] - tau);
    *value += z[i] * ratio, *slope += ratio * ratio;
  }
}

/**
 * Root j of 1 + rho sum z_i^2 / (d_i - lambda), d rising, rho > 0. Writes d_i - lambda for all i to `delta`, accurate since
 * lambda is kept as a distance from the nearest d, and returns lambda.
 */
static APART f64 secular_root(int n, int j, const f64 *d, const f64 *z, f64 rho, f64 *delta) {
  const int last = j == n - 1;
  f64 norm2 = dot(z, z, n), gap = last ? rho * norm2 : d[j + 1] - d[j], psi, dpsi, phi = 0, dphi = 0;
  for (int i = 0; i < n; i++) delta[i] = d[i] - d[j];
  secular_sum(delta, z, 0, n, gap / 2, &psi, &dpsi);
  int origin = !last && 1 + rho * psi < 0 ? j + 1 : j;
  f64 low = 0, high = gap;
  if (origin == j && !last) high = gap / 2;
  if (origin != j) low = -gap / 2, high = 0;
  for (int i = 0; i < n; i++) delta[i] = d[i] - d[origin];
  f64 tau = (low + high) / 2;
  if (last) tau = high / 2;
  for (int step = 0; step < 100; step++) {
    secular_sum(delta, z, 0, j + 1, tau, &psi, &dpsi);
    if (!last) secular_sum(delta, z, j + 1, n, tau, &phi, &dphi);
    psi *= rho, dpsi *= rho, phi *= rho, dphi *= rho;
    f64 f = 1 + psi + phi;
    if (magnitude(f) <= EPS * n * (1 + magnitude(psi) + magnitude(phi))) break;
    if (f < 0) low = tau;
    else high = tau;
    // The rational function with poles at both ends that agrees in value and slopes (Li 1993, the middle way).
    f64 left = delta[j] - tau, next;
    if (last) {
      f64 c = f - dpsi * left;
      next = tau + left + dpsi * left * left / c;
    } else {
      f64 right = delta[j + 1] - tau;
      f64 c = f - left * dpsi - right * dphi, b = left * right * f, a = (left + right) * f - left * right * (dpsi + dphi);
      f64 root = __builtin_sqrt(larger(0, a * a - 4 * b * c));
      next = tau + (a <= 0 ? (a - root) / (2 * c) : 2 * b / (a + root));
    }
    if (!(next > low && next < high)) next = (low + high) / 2;
    if (next == tau || next == low || next == high) break;
    tau = next;
  }
  f64 lambda = d[origin] + tau;
  for (int i = 0; i < n; i++) delta[i] -= tau;
  return lambda;
}

/** Joins two solved halves: rows of zt hold the vectors of each, coupling is the entry between them. */
static APART void join(int n1, int n2, f64 coupling, f64 *d, f64 *zt, int ld) {
  usize mark = top;
  const int n = n1 + n2;
  f64 *z = take(n), *dl = take(n), *zl = take(n), *hat = take(n), *values = take(n);
  int *order = take_bytes(n * sizeof(int)), *type = take_bytes(n * sizeof(int)), *kept = take_bytes(n * sizeof(int));
  int *place = take_bytes(n * sizeof(int));
  const f64 half = 0.70710678118654752440;
  for (int i = 0; i < n1; i++) z[i] = half * zt[i * ld + n1 - 1], type[i] = 0;
  for (int i = n1; i < n; i++) z[i] = with_sign(half, coupling) * zt[i * ld + n1], type[i] = 2;
  const f64 rho = 2 * magnitude(coupling);
  const f64 tolerance = 8 * EPS * larger(largest_magnitude(d, n), largest_magnitude(z, n));
  rising_order(d, n, order);
  // Deflation: a value whose z is negligible stays; of two equal ones a rotation frees the first.
  int k = 0, before = -1;
  for (int t = 0; t < n; t++) {
    int j = order[t];
    if (rho * magnitude(z[j]) <= tolerance) continue;
    if (before >= 0) {
      f64 length = __builtin_sqrt(z[j] * z[j] + z[before] * z[before]), c = z[j] / length, s = -z[before] / length;
      if (magnitude((d[j] - d[before]) * c * s) <= tolerance) {
        z[j] = length, z[before] = 0;
        f64 *x = zt + before * ld, *y = zt + j * ld;
        for (int i = 0; i < n; i++) {
          f64 xi = x[i], yi = y[i];
          x[i] = c * xi + s * yi, y[i] = c * yi - s * xi;
        }
        f64 db = d[before], dj = d[j];
        d[before] = db * c * c + dj * s * s, d[j] = db * s * s + dj * c * c;
        if (type[before] != type[j]) type[j] = type[before] = 1;
      } else {
        kept[k++] = before;
      }
    }
    before = j;
  }
  if (before >= 0) kept[k++] = before;
  if (k > 0) {
    // Rows in the order: first half only, both, second half only, so that products skip what is zero.
    int counts[3] = {0, 0, 0}, starts[3];
    for (int t = 0; t < k; t++) counts[type[kept[t]]]++;
    starts[0] = 0, starts[1] = counts[0], starts[2] = counts[0] + counts[1];
    for (int t = 0; t < k; t++) place[t] = starts[type[kept[t]]]++;
    f64 *delta = take(k * k), *s = take(k * k), *old = take(k * n), *fresh = take(k * n);
    for (int t = 0; t < k; t++) {
      dl[t] = d[kept[t]], zl[t] = z[kept[t]], hat[t] = 1;
      const f64 *from = zt + kept[t] * ld;
      for (int i = 0; i < n; i++) old[place[t] * n + i] = from[i];
    }
    for (int t = 0; t < k; t++) values[t] = secular_root(k, t, dl, zl, rho, delta + t * k);
    for (int t = 0; t < k; t++) {
      const f64 *row = delta + t * k;
      for (int i = 0; i < t; i++) hat[i] *= row[i] / (dl[i] - dl[t]);
      hat[t] *= row[t];
      for (int i = t + 1; i < k; i++) hat[i] *= row[i] / (dl[i] - dl[t]);
    }
    for (int i = 0; i < k; i++) hat[i] = with_sign(__builtin_sqrt(magnitude(hat[i])), zl[i]);
    for (int t = 0; t < k; t++) {
      f64 *row = delta + t * k, length = 0;
      for (int i = 0; i < k; i++) row[i] = hat[i] / row[i];
      length = norm(row, k);
      for (int i = 0; i < k; i++) s[t * k + place[i]] = row[i] / length;
    }
    zero(fresh, k * n);
    int both = counts[0] + counts[1];
    product(k, n1, both, 1, s, k, 1, old, n, 1, fresh, n, 0);
    product(k, n2, k - counts[0], 1, s + counts[0], k, 1, old + counts[0] * n + n1, n, 1, fresh + n1, n, 0);
    for (int t = 0; t < k; t++) {
      d[kept[t]] = values[t];
      f64 *to = zt + kept[t] * ld;
      for (int i = 0; i < n; i++) to[i] = fresh[t * n + i];
    }
  }
  // Rising order again.
  rising_order(d, n, order);
  f64 *sorted = take(n * n);
  for (int t = 0; t < n; t++) {
    values[t] = d[order[t]];
    for (int i = 0; i < n; i++) sorted[t * n + i] = zt[order[t] * ld + i];
  }
  for (int t = 0; t < n; t++) {
    d[t] = values[t];
    for (int i = 0; i < n; i++) zt[t * ld + i] = sorted[t * n + i];
  }
  top = mark;
}

/** Eigenvalues, rising, into d and eigenvectors of the tridiagonal (d, e) into the rows of zt, which must be zero. */
static int divide(int n, f64 *d, f64 *e, f64 *zt, int ld) {
  if (n > 48) {
    int n1 = n / 2;
    f64 coupling = e[n1 - 1];
    d[n1 - 1] -= magnitude(coupling), d[n1] -= magnitude(coupling);
    int failed = divide(n1, d, e, zt, ld) + divide(n - n1, d + n1, e + n1, zt + n1 * ld + n1, ld);
    if (!failed) join(n1, n - n1, coupling, d, zt, ld);
    return failed;
  }
  usize mark = top;
  f64 *eye = take(n * n), *values = take(n);
  int *order = take_bytes(n * sizeof(int));
  Rotor rotor;
  zero(eye, n * n);
  for (int i = 0; i < n; i++) eye[i * n + i] = 1;
  rotor_open(&rotor, eye, n, n);
  int failed = diagonalise(n, d, e, &rotor);
  rising_order(d, n, order);
  for (int j = 0; j < n; j++) {
    values[j] = d[order[j]];
    for (int i = 0; i < n; i++) zt[j * ld + i] = rotor_entry(&rotor, i, order[j]);
  }
  for (int j = 0; j < n; j++) d[j] = values[j];
  top = mark;
  return failed;
}

/** Power of two near 1 / x: scaling by it is exact. */
static f64 exact_inverse(f64 x) {
  if (x == 0) return 1;
  union {
    f64 value;
    unsigned long long bits;
  } u = {x};
  int exponent = (int)(u.bits >> 52 & 0x7ff);
  if (exponent < 2) exponent = 2;
  if (exponent > 2044) exponent = 2044;
  u.bits = (unsigned long long)(2046 - exponent) << 52;
  return u.value;
}

/** Rising eigenvalues of the lower triangle of a (destroyed); eigenvectors into the columns of z unless it is null. */
EXPORT(eigh) int eigh(int n, f64 *a, f64 *values, f64 *z) {
  usize mark = top;
  f64 *d = take(n), *e = take(n), *vt = take(n * n), *tau = take(n);
  int *order = take_bytes(n * sizeof(int));
  f64 most = 0;
  for (int i = 0; i < n; i++) most = larger(most, largest_magnitude(a + i * n, i + 1));
  f64 factor = exact_inverse(most);
  for (int i = 0; i < n; i++) scale(a + i * n, factor, i + 1);
  tridiagonalise(n, a, d, e, vt, tau);
  int failed;
  if (z) {
    f64 *zt = take(n * n), t[BLOCK * BLOCK];
    zero(zt, n * n);
    failed = divide(n, d, e, zt, n);
    for (int i = 0; i < n; i++)
      for (int j = 0; j < n; j++) z[i * n + j] = zt[j * n + i];
    for (int j = (n - 2) / BLOCK * BLOCK; j >= 0; j -= BLOCK) {
      int here = least(BLOCK, n - 1 - j);
      if (here <= 0) continue;
      block_factor(vt + j * n + j + 1, n, here, n - j - 1, tau + j, t);
      apply_block(vt + j * n + j + 1, n, here, n - j - 1, t, 0, z + (j + 1) * n, n, n);
    }
    for (int j = 0; j < n; j++) values[j] = d[j] / factor;
  } else {
    failed = diagonalise(n, d, e, 0);
    rising_order(d, n, order);
    for (int j = 0; j < n; j++) values[j] = d[order[j]] / factor;
  }
  top = mark;
  return failed;
}

// ---------------------------------------------------------------------------------------------------- SVD
/** Householder reduction of a (m >= n) to upper bidiagonal (d, e): a = (I - ..) B (I - ..)', panels as in the eigenproblem. */
static void bidiagonalise(int m, int n, f64 *a, f64 *d, f64 *e, f64 *vt, f64 *vtau, f64 *ut, f64 *utau) {
  usize mark = top;
  f64 *yt = take(BLOCK * n), *xt = take(BLOCK * m), p1[BLOCK], p2[BLOCK];
  for (int jb = 0; jb < n; jb += BLOCK) {
    int end = least(jb + BLOCK, n);
    for (int j = jb; j < end; j++) {
      f64 *v = vt + j * m, *u = ut + j * n, *y = yt + (j - jb) * n, *x = xt + (j - jb) * m;
      zero(v, j), zero(u, n), zero(y, n), zero(x, m);
      for (int i = j; i < m; i++) v[i] = a[i * n + j];
      for (int p = jb; p < j; p++) {
        add_scaled(v + j, -yt[(p - jb) * n + j], vt + p * m + j, m - j);
        add_scaled(v + j, -ut[p * n + j], xt + (p - jb) * m + j, m - j);
      }
      vtau[j] = reflector(v + j, m - j, d + j);
      utau[j] = 0;
      int from = j + 1, rest = n - from;
      if (rest == 0) break;
      if (vtau[j] != 0) {
        transposed_vector(a + j * n + from, n, m - j, rest, v + j, y + from);
        for (int p = jb; p < j; p++) {
          p1[p - jb] = dot(vt + p * m + j, v + j, m - j);
          p2[p - jb] = dot(xt + (p - jb) * m + j, v + j, m - j);
        }
        for (int p = jb; p < j; p++) {
          add_scaled(y + from, -p1[p - jb], yt + (p - jb) * n + from, rest);
          add_scaled(y + from, -p2[p - jb], ut + p * n + from, rest);
        }
        scale(y + from, vtau[j], rest);
      }
      for (int i = from; i < n; i++) u[i] = a[j * n + i];
      for (int p = jb; p <= j; p++) add_scaled(u + from, -vt[p * m + j], yt + (p - jb) * n + from, rest);
      for (int p = jb; p < j; p++) add_scaled(u + from, -xt[(p - jb) * m + j], ut + p * n + from, rest);
      utau[j] = reflector(u + from, rest, e + j);
      int below = m - from;
      if (utau[j] == 0 || below == 0) continue;
      matrix_vector(a + from * n + from, n, below, rest, u + from, x + from);
      for (int p = jb; p <= j; p++) p1[p - jb] = dot(yt + (p - jb) * n + from, u + from, rest);
      for (int p = jb; p < j; p++) p2[p - jb] = dot(ut + p * n + from, u + from, rest);
      for (int p = jb; p <= j; p++) add_scaled(x + from, -p1[p - jb], vt + p * m + from, below);
      for (int p = jb; p < j; p++) add_scaled(x + from, -p2[p - jb], xt + (p - jb) * m + from, below);
      scale(x + from, utau[j], below);
    }
    if (end == n) break;
    product(m - end, n - end, end - jb, -1, vt + jb * m + end, 1, m, yt + end, n, 1, a + end * n + end, n, 0);
    product(m - end, n - end, end - jb, -1, xt + end, 1, m, ut + jb * n + end, n, 1, a + end * n + end, n, 0);
  }
  top = mark;
}

/** Smaller singular value of [[f, g], [0, h]]. */
static f64 smaller_singular(f64 f, f64 g, f64 h) {
  f = magnitude(f), g = magnitude(g), h = magnitude(h);
  f64 low = smaller(f, h), high = larger(f, h);
  if (low == 0) return 0;
  if (g < high) {
    f64 s = 1 + low / high, t = (high - low) / high, u = (g / high) * (g / high);
    return low * (2 / (__builtin_sqrt(s * s + u) + __builtin_sqrt(t * t + u)));
  }
  f64 u = high / g;
  if (u == 0) return low * high / g;
  f64 s = 1 + low / high, t = (high - low) / high;
  return 2 * (low * (1 / (__builtin_sqrt(1 + (s * u) * (s * u)) + __builtin_sqrt(1 + (t * u) * (t * u)))) * u);
}

/**
 * Implicit QR on an upper bidiagonal matrix with zero shifts where a shift would cost relative accuracy (Demmel & Kahan
 * 1990). A chase upwards is a chase downwards on the transpose read backwards, where left and right change places.
 */
static int diagonalise_bidiagonal(int n, f64 *d, f64 *e, Rotor *left, Rotor *right) {
  const f64 tolerance = 90 * EPS;
  f64 mu = magnitude(d[0]), least_value = mu;
  for (int i = 1; i < n && least_value > 0; i++) {
    mu = magnitude(d[i]) * (mu / (mu + magnitude(e[i - 1])));
    least_value = smaller(least_value, mu);
  }
  const f64 negligible = larger(tolerance * least_value / __builtin_sqrt((f64)n), 6.0 * n * n * TINY);
  int high = n - 1, block_low = -1, block_high = -1, up = 0;
  for (int budget = 40 * n; high > 0;) {
    int low = high;
    f64 most = magnitude(d[high]);
    for (; low > 0; low--) {
      if (magnitude(e[low - 1]) <= negligible) {
        e[low - 1] = 0;
        break;
      }
      most = larger(most, larger(magnitude(d[low - 1]), magnitude(e[low - 1])));
    }
    if (low == high) {
      high--;
      continue;
    }
    if (budget-- == 0) return high;
    if (low != block_low || high != block_high)
      block_low = low, block_high = high, up = magnitude(d[low]) < magnitude(d[high]);
    int count = high - low, step = up ? -1 : 1, first = up ? high : low;
    f64 *dd = d + first, *ee = e + (up ? first - 1 : first);
    Rotor *after = up ? left : right, *before = up ? right : left;  // rotations of columns, of rows
#define D(i) dd[step * (i)]
#define E(i) ee[step * (i)]
    // Relative convergence tests, in the direction of the chase.
    if (magnitude(E(count - 1)) <= tolerance * magnitude(D(count))) {
      E(count - 1) = 0;
      continue;
    }
    int split = 0;
    f64 bound = magnitude(D(0)), smallest = bound;
    for (int i = 0; i < count && !split; i++) {
      if (magnitude(E(i)) <= tolerance * bound) {
        E(i) = 0;
        split = 1;
      } else {
        bound = magnitude(D(i + 1)) * (bound / (bound + magnitude(E(i))));
        smallest = smaller(smallest, bound);
      }
    }
    if (split) continue;
    f64 shift = 0;
    if (n * tolerance * (smallest / most) > larger(2 * EPS, 0.01 * tolerance)) {
      f64 start = magnitude(D(0));
      shift = smaller_singular(D(count - 1), E(count - 1), D(count));
      if (start > 0 && (shift / start) * (shift / start) < 2 * EPS) shift = 0;
    }
    f64 *column_pairs = after ? rotor_run(after, first, count, step) : 0;
    f64 *row_pairs = before ? rotor_run(before, first, count, step) : 0;
    f64 c, s;
    if (shift == 0) {
      f64 cosine = 1, old_cosine = 1, old_sine = 0;
      for (int i = 0; i < count; i++) {
        f64 r = rotation(D(i) * cosine, E(i), &c, &s);
        cosine = c;
        if (i > 0) E(i - 1) = old_sine * r;
        if (column_pairs) *column_pairs++ = c, *column_pairs++ = s;
        D(i) = rotation(old_cosine * r, D(i + 1) * s, &old_cosine, &old_sine);
        if (row_pairs) *row_pairs++ = old_cosine, *row_pairs++ = old_sine;
      }
      f64 h = D(count) * cosine;
      D(count) = h * old_cosine;
      E(count - 1) = h * old_sine;
    } else {
      f64 f = (magnitude(D(0)) - shift) * (with_sign(1, D(0)) + shift / D(0)), g = E(0);
      for (int i = 0; i < count; i++) {
        f64 r = rotation(f, g, &c, &s);
        if (i > 0) E(i - 1) = r;
        f = c * D(i) + s * E(i);
        E(i) = c * E(i) - s * D(i);
        g = s * D(i + 1);
        D(i + 1) = c * D(i + 1);
        if (column_pairs) *column_pairs++ = c, *column_pairs++ = s;
        D(i) = rotation(f, g, &c, &s);
        f = c * E(i) + s * D(i + 1);
        D(i + 1) = c * D(i + 1) - s * E(i);
        if (i + 1 < count) g = s * E(i + 1), E(i + 1) = c * E(i + 1);
        if (row_pairs) *row_pairs++ = c, *row_pairs++ = s;
      }
      E(count - 1) = f;
    }
    if (magnitude(E(count - 1)) <= negligible) E(count - 1) = 0;
#undef D
#undef E
  }
  if (left) rotor_flush(left);
  if (right) rotor_flush(right);
  return 0;
}

/** Golub-Kahan SVD of a (m >= n, destroyed): a = u diag(s) v', s falling. u m x n and v n x n, or both null. */
EXPORT(svd) int svd(int m, int n, f64 *a, f64 *u, f64 *values, f64 *v) {
  usize mark = top;
  f64 factor = exact_inverse(largest_magnitude(a, m * n));
  scale(a, factor, m * n);
  f64 *r = a, *q = 0;
  int rows = m;
  if (2 * m > 3 * n) {  // tall: reduce to the triangle first (Chan 1982)
    q = take(m * n);
    qr(m, n, a, q);
    rows = n;
  }
  f64 *d = take(n), *e = take(n), *vt = take(n * rows), *ut = take(n * n), *vtau = take(n), *utau = take(n);
  int *order = take_bytes(n * sizeof(int));
  bidiagonalise(rows, n, r, d, e, vt, vtau, ut, utau);
  Rotor left, right;
  if (u) {
    f64 *space = take(rows * n);
    accumulate(vt, rows, n, rows, 0, vtau, space, n);
    rotor_open(&left, space, rows, n);
    accumulate(ut, n, n - 1, n, 1, utau, space, n);
    rotor_open(&right, space, n, n);
  }
  int failed = diagonalise_bidiagonal(n, d, e, u ? &left : 0, u ? &right : 0);
  if (!failed) {
    f64 *negative = take(n);
    for (int j = 0; j < n; j++) negative[j] = -magnitude(d[j]);
    rising_order(negative, n, order);
    for (int j = 0; j < n; j++) values[j] = magnitude(d[order[j]]) / factor;
    if (u) {
      for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++) v[i * n + j] = rotor_entry(&right, i, order[j]) * with_sign(1, d[order[j]]);
      f64 *inner = q ? take(n * n) : u;
      for (int i = 0; i < rows; i++)
        for (int j = 0; j < n; j++) inner[i * n + j] = rotor_entry(&left, i, order[j]);
      if (q) multiply(m, n, n, q, n, 1, inner, n, 1, u);
    }
  }
  top = mark;
  return failed;
}

/**
 * SVD through the eigenproblem of a'a (m >= n): twice as fast, singular values below about 1e-8 of the largest are noise.
 * Where they get small the left vectors come from a QR of a v, so that they stay orthonormal.
 */
EXPORT(svd_gram) int svd_gram(int m, int n, f64 *a, f64 *u, f64 *values, f64 *v) {
  usize mark = top;
  f64 factor = exact_inverse(largest_magnitude(a, m * n));
  scale(a, factor, m * n);
  f64 *gram = take(n * n), *squares = take(n), *z = take(n * n), *image = take(m * n);
  int *order = take_bytes(n * sizeof(int));
  zero(gram, n * n);
  product(n, n, m, 1, a, 1, n, a, n, 1, gram, n, 1);
  int failed = eigh(n, gram, squares, z);
  if (!failed) {
    for (int i = 0; i < n; i++)
      for (int j = 0; j < n; j++) v[i * n + j] = z[i * n + n - 1 - j];
    multiply(m, n, n, a, n, 1, v, n, 1, image);
    zero(values, n);
    for (int i = 0; i < m; i++)
      for (int j = 0; j < n; j++) values[j] += image[i * n + j] * image[i * n + j];
    f64 most = 0, fewest = -1;
    for (int j = 0; j < n; j++) {
      values[j] = __builtin_sqrt(values[j]);
      most = larger(most, values[j]);
      fewest = fewest < 0 ? values[j] : smaller(fewest, values[j]);
    }
    if (fewest > 1e-4 * most) {
      for (int i = 0; i < m; i++)
        for (int j = 0; j < n; j++) image[i * n + j] /= values[j];
    } else {
      f64 *q = take(m * n);
      qr(m, n, image, q);
      for (int j = 0; j < n; j++) values[j] = image[j * n + j];
      image = q;
    }
    f64 *negative = take(n);
    for (int j = 0; j < n; j++) negative[j] = -values[j];
    rising_order(negative, n, order);
    for (int i = 0; i < m; i++)
      for (int j = 0; j < n; j++) u[i * n + j] = image[i * n + order[j]];
    for (int i = 0; i < n; i++)
      for (int j = 0; j < n; j++) z[i * n + j] = v[i * n + order[j]];
    for (int i = 0; i < n * n; i++) v[i] = z[i];
    for (int j = 0; j < n; j++) values[j] = -negative[order[j]] / factor;
  }
  top = mark;
  return failed;
}
