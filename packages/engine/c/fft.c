// Discrete Fourier transforms of any length: Stockham's autosort algorithm (Cochran et al. 1967) with radices 4, 5, 3 and 2,
// Bluestein's (1970) for lengths with other factors. Complex tensors are interleaved pairs; transforms run on real and
// imaginary parts apart. Also: arithmetic of pairs.
#include "common.h"

// ------------------------------------------------------------------------------------------------------------ pairs

#define REAL(a, b) wasm_i32x4_shuffle(a, b, 0, 2, 4, 6)
#define IMAG(a, b) wasm_i32x4_shuffle(a, b, 1, 3, 5, 7)

static void unzip(int n, const float *pairs, float *re, float *im) {
  int i = 0;
  for (; i + 4 <= n; i += 4) {
    f4 a = load(pairs + 2 * i), b = load(pairs + 2 * i + 4);
    store(re + i, REAL(a, b));
    store(im + i, IMAG(a, b));
  }
  for (; i < n; i++) {
    re[i] = pairs[2 * i];
    im[i] = pairs[2 * i + 1];
  }
}
static void zip(int n, const float *re, const float *im, float scale, float *pairs) {
  f4 s = splat(scale);
  int i = 0;
  for (; i + 4 <= n; i += 4) {
    f4 a = mul(load(re + i), s), b = mul(load(im + i), s);
    store(pairs + 2 * i, wasm_i32x4_shuffle(a, b, 0, 4, 1, 5));
    store(pairs + 2 * i + 4, wasm_i32x4_shuffle(a, b, 2, 6, 3, 7));
  }
  for (; i < n; i++) {
    pairs[2 * i] = scale * re[i];
    pairs[2 * i + 1] = scale * im[i];
  }
}

// `im` may be none: zeros.
EXPORT void mf_complex(int n, const float *re, const float *im, float *pairs) {
  if (im) {
    zip(n, re, im, 1, pairs);
    return;
  }
  for (int i = 0; i < n; i++) {
    pairs[2 * i] = re[i];
    pairs[2 * i + 1] = 0;
  }
}

// Every second number from `offset` on.
EXPORT void mf_complex_part(int n, int offset, const float *pairs, float *y) {
  int i = 0;
  for (; i + 4 <= n; i += 4) {
    f4 a = load(pairs + 2 * i), b = load(pairs + 2 * i + 4);
    store(y + i, offset ? IMAG(a, b) : REAL(a, b));
  }
  for (; i < n; i++) y[i] = pairs[2 * i + offset];
}

// The modulus. Squares in double precision neither overflow nor vanish.
EXPORT void mf_complex_abs(int n, const float *pairs, float *y) {
  for (int i = 0; i < n; i++) {
    double a = pairs[2 * i], b = pairs[2 * i + 1];
    float infinite = __builtin_inff();
    y[i] = __builtin_fabs(a) == infinite || __builtin_fabs(b) == infinite ? infinite : (float)__builtin_sqrt(a * a + b * b);
  }
}

// y[rows, n] = a[rows, n] · b[n], pairs.
EXPORT void mf_complex_mul(int rows, int n, const float *a, const float *b, float *y) {
  for (int r = 0; r < rows; r++, a += 2 * (size_t)n, y += 2 * (size_t)n) {
    int i = 0;
    for (; i + 4 <= n; i += 4) {
      f4 a0 = load(a + 2 * i), a1 = load(a + 2 * i + 4), b0 = load(b + 2 * i), b1 = load(b + 2 * i + 4);
      f4 ar = REAL(a0, a1), ai = IMAG(a0, a1), br = REAL(b0, b1), bi = IMAG(b0, b1);
      f4 re = sub(mul(ar, br), mul(ai, bi)), im = add(mul(ar, bi), mul(ai, br));
      store(y + 2 * i, wasm_i32x4_shuffle(re, im, 0, 4, 1, 5));
      store(y + 2 * i + 4, wasm_i32x4_shuffle(re, im, 2, 6, 3, 7));
    }
    for (; i < n; i++) {
      float ar = a[2 * i], ai = a[2 * i + 1], br = b[2 * i], bi = b[2 * i + 1];
      y[2 * i] = ar * br - ai * bi;
      y[2 * i + 1] = ar * bi + ai * br;
    }
  }
}

// ----------------------------------------------------------------------------------------------------------- stages

// One stage takes x[j·m + p][q] to y[p·r + k][q], j, k < r, q < s: a transform of length r over j, times ω^(pk) with
// ω = exp(-2πi/(r·m)). `w` holds those powers for k = 1..r-1: m real parts, then m imaginary ones, for each k.
//
// The bodies are written once for vectors of four q (or, in the first stage, p) and once for single numbers: V is the type,
// and X(j), Y(k), W(k) say where an operand lies.

typedef struct {
  const float *xr, *xi;
  float *yr, *yi;
} Places;

INLINE float load1(const float *p) { return *p; }
INLINE void store1(float *p, float v) { *p = v; }
INLINE float add1(float a, float b) { return a + b; }
INLINE float sub1(float a, float b) { return a - b; }
INLINE float mul1(float a, float b) { return a * b; }
INLINE float splat1(float a) { return a; }

// y[k] = v · ω^(pk)
#define TURN(V, MUL, ADD, SUB, k, vr, vi) \
  V out_r##k = SUB(MUL(vr, wr##k), MUL(vi, wi##k)), out_i##k = ADD(MUL(vr, wi##k), MUL(vi, wr##k));

#define RADIX2(V, LOAD, SPLAT, ADD, SUB, MUL, AT)                            \
  V ar = LOAD(xr + AT(0)), ai = LOAD(xi + AT(0)), br = LOAD(xr + AT(1)), bi = LOAD(xi + AT(1)); \
  V out_r0 = ADD(ar, br), out_i0 = ADD(ai, bi), dr = SUB(ar, br), di = SUB(ai, bi); \
  TURN(V, MUL, ADD, SUB, 1, dr, di)

#define RADIX3(V, LOAD, SPLAT, ADD, SUB, MUL, AT)                            \
  V ar = LOAD(xr + AT(0)), ai = LOAD(xi + AT(0)), br = LOAD(xr + AT(1)), bi = LOAD(xi + AT(1)); \
  V cr = LOAD(xr + AT(2)), ci = LOAD(xi + AT(2));                            \
  V sr = ADD(br, cr), si = ADD(bi, ci), half = SPLAT(0.5f), root = SPLAT(0.866025404f); \
  V tr = SUB(ar, MUL(half, sr)), ti = SUB(ai, MUL(half, si));                \
  V ur = MUL(root, SUB(bi, ci)), ui = MUL(root, SUB(cr, br));                \
  V out_r0 = ADD(ar, sr), out_i0 = ADD(ai, si);                              \
  V er = ADD(tr, ur), ei = ADD(ti, ui), fr = SUB(tr, ur), fi = SUB(ti, ui);  \
  TURN(V, MUL, ADD, SUB, 1, er, ei)                                          \
  TURN(V, MUL, ADD, SUB, 2, fr, fi)

#define RADIX4(V, LOAD, SPLAT, ADD, SUB, MUL, AT)                            \
  V ar = LOAD(xr + AT(0)), ai = LOAD(xi + AT(0)), br = LOAD(xr + AT(1)), bi = LOAD(xi + AT(1)); \
  V cr = LOAD(xr + AT(2)), ci = LOAD(xi + AT(2)), dr = LOAD(xr + AT(3)), di = LOAD(xi + AT(3)); \
  V sr = ADD(ar, cr), si = ADD(ai, ci), tr = SUB(ar, cr), ti = SUB(ai, ci);  \
  V ur = ADD(br, dr), ui = ADD(bi, di), vr = SUB(br, dr), vi = SUB(bi, di);  \
  V out_r0 = ADD(sr, ur), out_i0 = ADD(si, ui);                              \
  V er = ADD(tr, vi), ei = SUB(ti, vr), fr = SUB(sr, ur), fi = SUB(si, ui), gr = SUB(tr, vi), gi = ADD(ti, vr); \
  TURN(V, MUL, ADD, SUB, 1, er, ei)                                          \
  TURN(V, MUL, ADD, SUB, 2, fr, fi)                                          \
  TURN(V, MUL, ADD, SUB, 3, gr, gi)

// cos and sin of 2π/5 and 4π/5.
#define RADIX5(V, LOAD, SPLAT, ADD, SUB, MUL, AT)                            \
  V ar = LOAD(xr + AT(0)), ai = LOAD(xi + AT(0)), br = LOAD(xr + AT(1)), bi = LOAD(xi + AT(1)); \
  V cr = LOAD(xr + AT(2)), ci = LOAD(xi + AT(2)), dr = LOAD(xr + AT(3)), di = LOAD(xi + AT(3)); \
  V gr = LOAD(xr + AT(4)), gi = LOAD(xi + AT(4));                            \
  V c1 = SPLAT(0.309016994f), c2 = SPLAT(-0.809016994f), s1 = SPLAT(0.951056516f), s2 = SPLAT(0.587785252f); \
  V pr = ADD(br, gr), pi = ADD(bi, gi), qr = ADD(cr, dr), qi = ADD(ci, di);  \
  V mr = SUB(br, gr), mi = SUB(bi, gi), nr = SUB(cr, dr), ni = SUB(ci, di);  \
  V out_r0 = ADD(ar, ADD(pr, qr)), out_i0 = ADD(ai, ADD(pi, qi));            \
  V er = ADD(ar, ADD(MUL(c1, pr), MUL(c2, qr))), ei = ADD(ai, ADD(MUL(c1, pi), MUL(c2, qi))); \
  V fr = ADD(ar, ADD(MUL(c2, pr), MUL(c1, qr))), fi = ADD(ai, ADD(MUL(c2, pi), MUL(c1, qi))); \
  V hr = ADD(MUL(s1, mi), MUL(s2, ni)), hi = ADD(MUL(s1, mr), MUL(s2, nr));  \
  V kr = SUB(MUL(s2, mi), MUL(s1, ni)), ki = SUB(MUL(s2, mr), MUL(s1, nr));  \
  V y1r = ADD(er, hr), y1i = SUB(ei, hi), y4r = SUB(er, hr), y4i = ADD(ei, hi); \
  V y2r = ADD(fr, kr), y2i = SUB(fi, ki), y3r = SUB(fr, kr), y3i = ADD(fi, ki); \
  TURN(V, MUL, ADD, SUB, 1, y1r, y1i)                                        \
  TURN(V, MUL, ADD, SUB, 2, y2r, y2i)                                        \
  TURN(V, MUL, ADD, SUB, 3, y3r, y3i)                                        \
  TURN(V, MUL, ADD, SUB, 4, y4r, y4i)

#define FROM(j) (((size_t)(j) * m + p) * s + q)
#define TO(k) (((size_t)p * R + (k)) * s + q)
#define POWERS(V, LOAD, k) V wr##k = LOAD(w + 2 * (size_t)(k - 1) * m + p), wi##k = LOAD(w + (2 * (size_t)(k - 1) + 1) * m + p);
#define PUT(STORE, k) STORE(yr + TO(k), out_r##k); STORE(yi + TO(k), out_i##k);

#define STAGE(NAME, BODY, EACH, EACH_OUT)                                                                        \
  static void NAME(int m, int s, const float *xr, const float *xi, float *yr, float *yi, const float *w) {      \
    for (int p = 0; p < m; p++) {                                                                                \
      int q = 0;                                                                                                 \
      if (s >= 4) {                                                                                              \
        EACH(f4, load_splat)                                                                                     \
        for (; q + 4 <= s; q += 4) {                                                                             \
          BODY(f4, load, splat, add, sub, mul, FROM)                                                             \
          EACH_OUT(store)                                                                                        \
        }                                                                                                        \
        if (q == s) continue;                                                                                    \
      }                                                                                                          \
      EACH(float, load1)                                                                                         \
      for (; q < s; q++) {                                                                                       \
        BODY(float, load1, splat1, add1, sub1, mul1, FROM)                                                       \
        EACH_OUT(store1)                                                                                         \
      }                                                                                                          \
    }                                                                                                            \
  }

#define W1(V, L) POWERS(V, L, 1)
#define W2(V, L) W1(V, L) POWERS(V, L, 2)
#define W3(V, L) W2(V, L) POWERS(V, L, 3)
#define W4(V, L) W3(V, L) POWERS(V, L, 4)
#define P1(S) PUT(S, 0) PUT(S, 1)
#define P2(S) P1(S) PUT(S, 2)
#define P3(S) P2(S) PUT(S, 3)
#define P4(S) P3(S) PUT(S, 4)
#define R 2
STAGE(stage2, RADIX2, W1, P1)
#undef R
#define R 3
STAGE(stage3, RADIX3, W2, P2)
#undef R
#define R 4
STAGE(stage4, RADIX4, W3, P3)
#undef R
#define R 5
STAGE(stage5, RADIX5, W4, P4)
#undef R

// The first stage of radix 4, where s is 1: vectors of four p, whose results are transposed into place.
static void first4(int m, const float *xr, const float *xi, float *yr, float *yi, const float *w) {
  int p = 0;
  for (; p + 4 <= m; p += 4) {
    W3(f4, load)
#define AHEAD(j) ((size_t)(j) * m + p)
    RADIX4(f4, load, splat, add, sub, mul, AHEAD)
#define TRANSPOSED(y, o0, o1, o2, o3)                                                                \
  {                                                                                                  \
    f4 t0 = wasm_i32x4_shuffle(o0, o1, 0, 4, 1, 5), t1 = wasm_i32x4_shuffle(o0, o1, 2, 6, 3, 7);     \
    f4 t2 = wasm_i32x4_shuffle(o2, o3, 0, 4, 1, 5), t3 = wasm_i32x4_shuffle(o2, o3, 2, 6, 3, 7);     \
    store(y + 4 * p, wasm_i64x2_shuffle(t0, t2, 0, 2));                                              \
    store(y + 4 * p + 4, wasm_i64x2_shuffle(t0, t2, 1, 3));                                          \
    store(y + 4 * p + 8, wasm_i64x2_shuffle(t1, t3, 0, 2));                                          \
    store(y + 4 * p + 12, wasm_i64x2_shuffle(t1, t3, 1, 3));                                         \
  }
    TRANSPOSED(yr, out_r0, out_r1, out_r2, out_r3)
    TRANSPOSED(yi, out_i0, out_i1, out_i2, out_i3)
  }
  for (; p < m; p++) {
    W3(float, load1)
    RADIX4(float, load1, splat1, add1, sub1, mul1, AHEAD)
    float *r = yr + 4 * p, *i = yi + 4 * p;
    r[0] = out_r0, r[1] = out_r1, r[2] = out_r2, r[3] = out_r3;
    i[0] = out_i0, i[1] = out_i1, i[2] = out_i2, i[3] = out_i3;
  }
}

// Transforms re, im of n numbers, with the others as room; afterwards *re and *im say where the result lies. `radices`
// end with 0; `w` holds the powers of all stages in turn.
static void stockham(int n, const int *radices, const float *w, float **re, float **im, float *room_re, float *room_im) {
  float *xr = *re, *xi = *im, *yr = room_re, *yi = room_im;
  for (int s = 1; *radices; radices++) {
    int r = *radices, m = n / r;
    switch (r) {
      case 2: stage2(m, s, xr, xi, yr, yi, w); break;
      case 3: stage3(m, s, xr, xi, yr, yi, w); break;
      case 4:
        if (s == 1) first4(m, xr, xi, yr, yi, w);
        else stage4(m, s, xr, xi, yr, yi, w);
        break;
      default: stage5(m, s, xr, xi, yr, yi, w);
    }
    float *t = xr;
    xr = yr, yr = t;
    t = xi, xi = yi, yi = t;
    w += 2 * (size_t)(r - 1) * m;
    n = m;
    s *= r;
  }
  *re = xr;
  *im = xi;
}

// (xr, xi) = (xr, xi)·(wr, wi) or, conjugated, the conjugate of that product.
static void times(int n, float *xr, float *xi, const float *wr, const float *wi, int conjugate) {
  f4 sign = splat(conjugate ? -1.0f : 1.0f);
  int i = 0;
  for (; i + 4 <= n; i += 4) {
    f4 ar = load(xr + i), ai = load(xi + i), br = load(wr + i), bi = load(wi + i);
    store(xr + i, sub(mul(ar, br), mul(ai, bi)));
    store(xi + i, mul(sign, add(mul(ar, bi), mul(ai, br))));
  }
  for (; i < n; i++) {
    float a = xr[i], b = xi[i];
    xr[i] = a * wr[i] - b * wi[i];
    xi[i] = (conjugate ? -1.0f : 1.0f) * (a * wi[i] + b * wr[i]);
  }
}

// `rows` transforms of length n. The inverse is the transform with real and imaginary parts exchanged, over n. Where the
// radices make up a longer length m, `w` goes on with Bluestein's chirp c (n real parts, n imaginary ones) and the
// transform of its conjugate (m and m, over m): X_k = c_k · (x·c ∗ 1/c)_k. `work`: 4·m floats.
EXPORT void mf_fft(int rows, int n, int m, int inverse, const int *radices, const float *w, int powers, const float *x,
                   float *y, float *work) {
  float *one = work, *two = work + m, *three = two + m, *four = three + m;
  const float *chirp = w + powers, *kernel = chirp + 2 * (size_t)n;
  for (int r = 0; r < rows; r++, x += 2 * (size_t)n, y += 2 * (size_t)n) {
    float *re = one, *im = two;
    unzip(n, x, inverse ? im : re, inverse ? re : im);
    if (m == n) stockham(n, radices, w, &re, &im, three, four);
    else {
      times(n, re, im, chirp, chirp + n, 0);
      zero(re + n, m - n);
      zero(im + n, m - n);
      stockham(m, radices, w, &re, &im, three, four);
      // The way back is the way there of the conjugate.
      times(m, re, im, kernel, kernel + m, 1);
      stockham(m, radices, w, &re, &im, re == one ? three : one, re == one ? four : two);
      for (int i = 0; i < n; i++) im[i] = -im[i];
      times(n, re, im, chirp, chirp + n, 0);
    }
    zip(n, inverse ? im : re, inverse ? re : im, inverse ? 1.0f / n : 1.0f, y);
  }
}
