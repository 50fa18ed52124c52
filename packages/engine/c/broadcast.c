// Functions of two tensors of which either may be repeated along some axes, copies with any strides, choices, reductions
// other than sums, running sums. The loops are plain: the compiler makes vectors of them.
#include "common.h"

// The result has n[0]·n[1]·n[2]·n[3] elements in order; a and b are read at these strides.
typedef struct {
  int n[4], a[4], b[4];
} Strides;

enum {
  ADD, SUB, MUL, DIV, MAXIMUM, MINIMUM, DIFFERENCE_SQUARED, PRELU,
  INT_ADD, INT_SUB, INT_MUL, INT_MAXIMUM, INT_MINIMUM,
  EQUAL, NOT_EQUAL, GREATER, GREATER_EQUAL, LESS, LESS_EQUAL,
  INT_EQUAL, INT_NOT_EQUAL, INT_GREATER, INT_GREATER_EQUAL, INT_LESS, INT_LESS_EQUAL,
  AND, OR, XOR, BOOL_EQUAL,
  COPY, COPY_BYTES
};

// A function along the last axis, where strides are 1 or 0.
typedef void Row(int n, const void *a, int step_a, const void *b, int step_b, void *y);

#define EACH(IN, OUT, F)                                                                             \
  static void F##_row(int n, const void *a, int step_a, const void *b, int step_b, void *y) {        \
    const IN *restrict p = a, *restrict q = b;                                                       \
    OUT *restrict to = y;                                                                            \
    if (step_a && step_b) {                                                                          \
      for (int l = 0; l < n; l++) to[l] = F(p[l], q[l]);                                             \
      return;                                                                                        \
    }                                                                                                \
    IN one = *p, other = *q;                                                                         \
    if (step_a)                                                                                      \
      for (int l = 0; l < n; l++) to[l] = F(p[l], other);                                            \
    else                                                                                             \
      for (int l = 0; l < n; l++) to[l] = F(one, step_b ? q[l] : other);                             \
  }
#define FUNCTION(IN, OUT, F, EXPRESSION)                  \
  INLINE OUT F(IN p, IN q) { return EXPRESSION; }         \
  EACH(IN, OUT, F)

FUNCTION(float, float, f_add, p + q)
FUNCTION(float, float, f_sub, p - q)
FUNCTION(float, float, f_mul, p * q)
FUNCTION(float, float, f_div, p / q)
FUNCTION(float, float, f_max, __builtin_wasm_max_f32(p, q))
FUNCTION(float, float, f_min, __builtin_wasm_min_f32(p, q))
FUNCTION(float, float, f_squared, (p - q) * (p - q))
FUNCTION(float, float, f_prelu, p < 0 ? p * q : p)
FUNCTION(uint32_t, uint32_t, i_add, p + q)
FUNCTION(uint32_t, uint32_t, i_sub, p - q)
FUNCTION(uint32_t, uint32_t, i_mul, p * q)
FUNCTION(int32_t, int32_t, i_max, p > q ? p : q)
FUNCTION(int32_t, int32_t, i_min, p < q ? p : q)
FUNCTION(float, uint8_t, f_eq, p == q)
FUNCTION(float, uint8_t, f_ne, p != q)
FUNCTION(float, uint8_t, f_gt, p > q)
FUNCTION(float, uint8_t, f_ge, p >= q)
FUNCTION(float, uint8_t, f_lt, p < q)
FUNCTION(float, uint8_t, f_le, p <= q)
FUNCTION(int32_t, uint8_t, i_eq, p == q)
FUNCTION(int32_t, uint8_t, i_ne, p != q)
FUNCTION(int32_t, uint8_t, i_gt, p > q)
FUNCTION(int32_t, uint8_t, i_ge, p >= q)
FUNCTION(int32_t, uint8_t, i_lt, p < q)
FUNCTION(int32_t, uint8_t, i_le, p <= q)
FUNCTION(uint8_t, uint8_t, b_and, (p != 0) & (q != 0))
FUNCTION(uint8_t, uint8_t, b_or, (p != 0) | (q != 0))
FUNCTION(uint8_t, uint8_t, b_xor, (p != 0) ^ (q != 0))
FUNCTION(uint8_t, uint8_t, b_eq, (p != 0) == (q != 0))

static void copy_words(int n, const void *a, int step, const void *b, int step_b, void *y) {
  const uint32_t *from = a;
  uint32_t *to = y;
  (void)b, (void)step_b;
  if (step == 1 && n >= 16) __builtin_memcpy(to, from, 4 * (size_t)n);
  else if (step == 0) {
    uint32_t word = *from;
    for (int l = 0; l < n; l++) to[l] = word;
  } else
    for (int l = 0; l < n; l++, from += step) to[l] = *from;
}
static void copy_bytes(int n, const void *a, int step, const void *b, int step_b, void *y) {
  const uint8_t *from = a;
  uint8_t *to = y;
  (void)b, (void)step_b;
  for (int l = 0; l < n; l++, from += step) to[l] = *from;
}

// Left as it is written: the optimizer would make a table of it, and that a data section.
static __attribute__((optnone, noinline)) Row *row_of(int op) {
  switch (op) {
    case ADD: return f_add_row;
    case SUB: return f_sub_row;
    case MUL: return f_mul_row;
    case DIV: return f_div_row;
    case MAXIMUM: return f_max_row;
    case MINIMUM: return f_min_row;
    case DIFFERENCE_SQUARED: return f_squared_row;
    case PRELU: return f_prelu_row;
    case INT_ADD: return i_add_row;
    case INT_SUB: return i_sub_row;
    case INT_MUL: return i_mul_row;
    case INT_MAXIMUM: return i_max_row;
    case INT_MINIMUM: return i_min_row;
    case EQUAL: return f_eq_row;
    case NOT_EQUAL: return f_ne_row;
    case GREATER: return f_gt_row;
    case GREATER_EQUAL: return f_ge_row;
    case LESS: return f_lt_row;
    case LESS_EQUAL: return f_le_row;
    case INT_EQUAL: return i_eq_row;
    case INT_NOT_EQUAL: return i_ne_row;
    case INT_GREATER: return i_gt_row;
    case INT_GREATER_EQUAL: return i_ge_row;
    case INT_LESS: return i_lt_row;
    case INT_LESS_EQUAL: return i_le_row;
    case AND: return b_and_row;
    case OR: return b_or_row;
    case XOR: return b_xor_row;
    case BOOL_EQUAL: return b_eq_row;
    case COPY: return copy_words;
    default: return copy_bytes;
  }
}

// `in` and `out`: bytes of an element of the operands and of the result.
EXPORT void mf_broadcast(int op, const Strides *s, int in, int out, const uint8_t *a, const uint8_t *b, uint8_t *y) {
  Row *row = row_of(op);
  int n = s->n[3];
  for (int i = 0; i < s->n[0]; i++)
    for (int j = 0; j < s->n[1]; j++) {
      const uint8_t *p = a + in * ((ptrdiff_t)i * s->a[0] + (ptrdiff_t)j * s->a[1]);
      const uint8_t *q = b + in * ((ptrdiff_t)i * s->b[0] + (ptrdiff_t)j * s->b[1]);
      for (int k = 0; k < s->n[2]; k++, y += (size_t)out * n) {
        row(n, p, s->a[3], q, s->b[3], y);
        p += (ptrdiff_t)in * s->a[2];
        q += (ptrdiff_t)in * s->b[2];
      }
    }
}

// y[rows, n] = choice[rows] ? a : b, words of four bytes.
EXPORT void mf_select(int rows, int n, const uint8_t *restrict choice, const uint32_t *restrict a,
                      const uint32_t *restrict b, uint32_t *restrict y) {
  if (n == 1) {
    for (int i = 0; i < rows; i++) {
      uint32_t mask = -(uint32_t)(choice[i] != 0);
      y[i] = (a[i] & mask) | (b[i] & ~mask);
    }
    return;
  }
  for (int r = 0; r < rows; r++, a += n, b += n, y += n) __builtin_memcpy(y, choice[r] ? a : b, 4 * (size_t)n);
}

// x to the power of an integer or a half of one, whole numbers by multiplication.
EXPORT void mf_power(int n, double exponent, const float *restrict x, float *restrict y) {
  int inverse = exponent < 0, whole = (int)(inverse ? -exponent : exponent), half = exponent != (int)exponent;
  for (int i = 0; i < n; i++) {
    double power = 1, square = x[i];
    for (int k = whole; k; k >>= 1, square *= square)
      if (k & 1) power *= square;
    if (half) {
      // Like pow, and unlike the square root, of -0 and -infinity, whose powers are positive.
      double base = (double)x[i] + 0.0;
      power = __builtin_fabs(power) * (base == -__builtin_inf() ? __builtin_inf() : __builtin_sqrt(base));
    }
    y[i] = (float)(inverse ? 1 / power : power);
  }
}

// ---------------------------------------------------------------------------------------------------------- reduce

enum { MAX, MIN, INT_MAX_OF, INT_MIN_OF, ALL, ANY };

INLINE float larger(float p, float q) { return __builtin_wasm_max_f32(p, q); }
INLINE float smaller(float p, float q) { return __builtin_wasm_min_f32(p, q); }
INLINE int32_t i_larger(int32_t p, int32_t q) { return p > q ? p : q; }
INLINE int32_t i_smaller(int32_t p, int32_t q) { return p < q ? p : q; }
INLINE uint8_t both(uint8_t p, uint8_t q) { return (p != 0) & (q != 0); }
INLINE uint8_t either(uint8_t p, uint8_t q) { return (p != 0) | (q != 0); }

#define REDUCTION(NAME, T, F)                                                                              \
  static void NAME(int outer, int n, int inner, const T *restrict x, T *restrict y) {                      \
    for (int o = 0; o < outer; o++, y += inner) {                                                          \
      if (inner == 1) {                                                                                    \
        T best[16];                                                                                        \
        for (int l = 0; l < 16; l++) best[l] = F(x[0], x[0]);                                              \
        int i = 0;                                                                                         \
        for (; i + 16 <= n; i += 16)                                                                       \
          for (int l = 0; l < 16; l++) best[l] = F(best[l], x[i + l]);                                     \
        for (; i < n; i++) best[0] = F(best[0], x[i]);                                                     \
        for (int l = 1; l < 16; l++) best[0] = F(best[0], best[l]);                                        \
        *y = best[0];                                                                                      \
        x += n;                                                                                            \
        continue;                                                                                          \
      }                                                                                                    \
      for (int j = 0; j < inner; j++) y[j] = F(x[j], x[j]);                                                \
      x += inner;                                                                                          \
      for (int i = 1; i < n; i++, x += inner)                                                              \
        for (int j = 0; j < inner; j++) y[j] = F(y[j], x[j]);                                              \
    }                                                                                                      \
  }
REDUCTION(f_max_of, float, larger)
REDUCTION(f_min_of, float, smaller)
REDUCTION(i_max_of, int32_t, i_larger)
REDUCTION(i_min_of, int32_t, i_smaller)
REDUCTION(all_of, uint8_t, both)
REDUCTION(any_of, uint8_t, either)

// x[outer, n, inner] over n, which is not 0; what is not a number wins.
EXPORT void mf_extremum(int op, int outer, int n, int inner, const void *x, void *y) {
  switch (op) {
    case MAX: f_max_of(outer, n, inner, x, y); break;
    case MIN: f_min_of(outer, n, inner, x, y); break;
    case INT_MAX_OF: i_max_of(outer, n, inner, x, y); break;
    case INT_MIN_OF: i_min_of(outer, n, inner, x, y); break;
    case ALL: all_of(outer, n, inner, x, y); break;
    case ANY: any_of(outer, n, inner, x, y); break;
  }
}

// Running sums along n of x[outer, n, inner]; exclusive ones begin with 0, reverse ones at the end.
EXPORT void mf_running_sum(int outer, int n, int inner, int exclusive, int reverse, const float *restrict x,
                           float *restrict y) {
  ptrdiff_t step = reverse ? -inner : inner;
  for (int o = 0; o < outer; o++) {
    size_t begin = ((size_t)o * n + (reverse ? n - 1 : 0)) * inner;
    const float *from = x + begin;
    float *to = y + begin;
    if (inner == 1) {
      double sum = 0;
      for (int i = 0; i < n; i++, from += step, to += step) {
        if (exclusive) *to = (float)sum;
        sum += *from;
        if (!exclusive) *to = (float)sum;
      }
      continue;
    }
    for (int i = 0; i < n; i++, from += step, to += step) {
      const float *last = exclusive ? from - step : from;
      for (int j = 0; j < inner; j++) to[j] = i == 0 ? (exclusive ? 0 : from[j]) : to[j - step] + last[j];
    }
  }
}
