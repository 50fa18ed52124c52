// Element-wise functions, their gradients, and the optimizer steps.
#include "vmath.h"

enum { EXP, TANH, ERF, SIGMOID, LOG, SOFTPLUS, RELU, RELU6, ELU, GELU_ERF, GELU_TANH, SILU, SELU, SQUARE, SQRT, RSQRT, NEG, STEP, SIGN, RECIPROCAL, EXPM1, LOG1P };

// The normal distribution: Φ(-|x|) = exp(-x²/2)·t·P(t) with t = 1/(1 + 0.3|x|), P a minimax fit (relative error 1.3e-7). The
// exponential is the density's as well, so that the slope of GELU costs one, not two.
INLINE f4 normal_tail(f4 a, f4 exponential) {
  f4 t = div4(splat(1.0f), madd(splat(0.3f), a, splat(1.0f)));
  f4 p = splat(3.593210514e-2f);
  p = madd(p, t, splat(-1.582774405e-1f));
  p = madd(p, t, splat(2.082089088e-1f));
  p = madd(p, t, splat(-5.539580828e-2f));
  p = madd(p, t, splat(1.294701473e-1f));
  p = madd(p, t, splat(9.963723178e-2f));
  p = madd(p, t, splat(1.207983964e-1f));
  p = madd(p, t, splat(1.196263875e-1f));
  return mul(mul(p, t), exponential);
}
INLINE f4 half_square_exp(f4 x) { return exp4(mul(mul(x, splat(-0.5f)), x)); }
INLINE f4 normal_cdf(f4 x, f4 exponential) {
  f4 tail = normal_tail(absolute(x), exponential);
  return select(tail, sub(splat(1.0f), tail), wasm_f32x4_lt(x, splat(0.0f)));
}
INLINE f4 gelu_erf(f4 x) { return mul(x, normal_cdf(x, half_square_exp(x))); }
INLINE f4 gelu_erf_slope(f4 x) {
  f4 e = half_square_exp(x);
  return madd(x, mul(splat(0.39894228f), e), normal_cdf(x, e));
}
INLINE f4 gelu_inner(f4 x) {
  return mul(mul(x, splat(0.79788456f)), madd(mul(x, x), splat(0.044715f), splat(1.0f)));
}
INLINE f4 gelu_tanh(f4 x) { return mul(mul(x, splat(0.5f)), add(splat(1.0f), tanh4(gelu_inner(x)))); }
INLINE f4 gelu_tanh_slope(f4 x) {
  f4 t = tanh4(gelu_inner(x)), one = splat(1.0f);
  f4 inner = mul(splat(0.79788456f), madd(mul(x, x), splat(3 * 0.044715f), one));
  return mul(splat(0.5f), madd(mul(x, sub(one, mul(t, t))), inner, add(one, t)));
}
INLINE f4 silu(f4 x) { return mul(x, sigmoid4(x)); }
INLINE f4 silu_slope(f4 x) {
  f4 s = sigmoid4(x);
  return mul(s, madd(x, sub(splat(1.0f), s), splat(1.0f)));
}
INLINE f4 relu(f4 x) { return max4(x, splat(0.0f)); }
INLINE f4 relu6(f4 x) { return min4(max4(x, splat(0.0f)), splat(6.0f)); }
// exp(x) - 1: where that would lose digits, the series.
INLINE f4 exp_minus_one(f4 x) {
  f4 p = splat(1.0f / 40320);
  p = madd(p, x, splat(1.0f / 5040));
  p = madd(p, x, splat(1.0f / 720));
  p = madd(p, x, splat(1.0f / 120));
  p = madd(p, x, splat(1.0f / 24));
  p = madd(p, x, splat(1.0f / 6));
  p = madd(p, x, splat(0.5f));
  f4 near = madd(mul(x, x), p, x);
  return select(near, sub(exp4(x), splat(1.0f)), wasm_f32x4_lt(absolute(x), splat(0.5f)));
}
INLINE f4 elu(f4 x) { return select(x, exp_minus_one(x), wasm_f32x4_ge(x, splat(0.0f))); }
INLINE f4 selu(f4 x) {
  f4 low = mul(splat(1.7580993408473766f), exp_minus_one(x));
  return select(mul(x, splat(1.0507009873554805f)), low, wasm_f32x4_ge(x, splat(0.0f)));
}

INLINE f4 square(f4 x) { return mul(x, x); }
INLINE f4 root(f4 x) { return wasm_f32x4_sqrt(x); }
INLINE f4 inverse_root(f4 x) { return div4(splat(1.0f), root(x)); }
INLINE f4 negative(f4 x) { return wasm_f32x4_neg(x); }
// 1 above zero, 0 elsewhere, and NaN for itself.
INLINE f4 step(f4 x) {
  return select(x, wasm_v128_and(splat(1.0f), wasm_f32x4_gt(x, splat(0.0f))), wasm_f32x4_ne(x, x));
}

INLINE f4 sign(f4 x) {
  f4 one = splat(1.0f), zero = splat(0.0f);
  return sub(wasm_v128_and(one, wasm_f32x4_gt(x, zero)), wasm_v128_and(one, wasm_f32x4_lt(x, zero)));
}
INLINE f4 reciprocal(f4 x) { return div4(splat(1.0f), x); }
// log(1 + x): what rounding took from u = 1 + x comes back with the factor x/(u - 1).
INLINE f4 log_one_plus(f4 x) {
  f4 u = add(splat(1.0f), x), taken = sub(u, splat(1.0f));
  f4 y = mul(log4(u), div4(x, taken));
  y = select(x, y, wasm_f32x4_eq(taken, splat(0.0f)));
  return select(x, y, wasm_f32x4_eq(x, splat(__builtin_inff())));
}

SHARE("-NRR")
EXPORT void mf_unary(int op, int n, const float *x, float *y) {
  switch (op) {
    case EXP: MAP1(n, x, y, exp4); break;
    case TANH: MAP1(n, x, y, tanh4); break;
    case ERF: MAP1(n, x, y, erf4); break;
    case SIGMOID: MAP1(n, x, y, sigmoid4); break;
    case LOG: MAP1(n, x, y, log4); break;
    case SOFTPLUS: MAP1(n, x, y, softplus4); break;
    case RELU: MAP1(n, x, y, relu); break;
    case RELU6: MAP1(n, x, y, relu6); break;
    case ELU: MAP1(n, x, y, elu); break;
    case GELU_ERF: MAP1(n, x, y, gelu_erf); break;
    case GELU_TANH: MAP1(n, x, y, gelu_tanh); break;
    case SILU: MAP1(n, x, y, silu); break;
    case SELU: MAP1(n, x, y, selu); break;
    case SQUARE: MAP1(n, x, y, square); break;
    case SQRT: MAP1(n, x, y, root); break;
    case RSQRT: MAP1(n, x, y, inverse_root); break;
    case NEG: MAP1(n, x, y, negative); break;
    case STEP: MAP1(n, x, y, step); break;
    case SIGN: MAP1(n, x, y, sign); break;
    case RECIPROCAL: MAP1(n, x, y, reciprocal); break;
    case EXPM1: MAP1(n, x, y, exp_minus_one); break;
    case LOG1P: MAP1(n, x, y, log_one_plus); break;
  }
}

// The nearest number from low to high; NaN for itself.
SHARE("N--RR")
EXPORT void mf_clip(int n, float low, float high, const float *x, float *y) {
  f4 from = splat(low), to = splat(high);
#define CLIP(x) min4(max4(x, from), to)
  MAP1(n, x, y, CLIP);
}

// dx = dy · slope(x)
#define BACK(SLOPE)                                                                             \
  {                                                                                             \
    int i = 0;                                                                                  \
    for (; i + 4 <= n; i += 4) store(dx + i, mul(load(dy + i), SLOPE(load(x + i))));            \
    if (i < n) store_part(dx + i, mul(load_part(dy + i, n - i), SLOPE(load_part(x + i, n - i))), n - i); \
    break;                                                                                      \
  }
SHARE("-NRRR")
EXPORT void mf_unary_back(int op, int n, const float *x, const float *dy, float *dx) {
  switch (op) {
    case GELU_ERF: BACK(gelu_erf_slope)
    case GELU_TANH: BACK(gelu_tanh_slope)
    case SILU: BACK(silu_slope)
    case RELU: BACK(step)
  }
}

enum { ADD, SUB, MUL, DIV };

#define MAP2(f, second, part)                                                                    \
  {                                                                                              \
    int i = 0;                                                                                   \
    for (; i + 8 <= n; i += 8) {                                                                 \
      f4 low = f(load(a + i), second(i)), high = f(load(a + i + 4), second(i + 4));              \
      store(y + i, low);                                                                         \
      store(y + i + 4, high);                                                                    \
    }                                                                                            \
    for (; i + 4 <= n; i += 4) store(y + i, f(load(a + i), second(i)));                          \
    if (i < n) store_part(y + i, f(load_part(a + i, n - i), part(i)), n - i);                    \
    break;                                                                                       \
  }
#define SWITCH2(second, part)             \
  switch (op) {                           \
    case ADD: MAP2(add, second, part)     \
    case SUB: MAP2(sub, second, part)     \
    case MUL: MAP2(mul, second, part)     \
    case DIV: MAP2(div4, second, part)    \
  }
#define OTHER(i) load(b + (i))
#define OTHER_PART(i) load_part(b + (i), n - (i))
#define NUMBER(i) number

// y = a op b, element by element.
SHARE("-NRRR")
EXPORT void mf_binary(int op, int n, const float *a, const float *b, float *y) { SWITCH2(OTHER, OTHER_PART) }

// y[rows, n] = a[rows, n] op b[n].
SHARE("-NuR-R")
EXPORT void mf_binary_row(int op, int rows, int n, const float *a, const float *b, float *y) {
  if (n == 1) {
    f4 number = load_splat(b);
    n = rows;
    SWITCH2(NUMBER, NUMBER)
    return;
  }
  for (int r = 0; r < rows; r++, a += n, y += n) mf_binary(op, n, a, b, y);
}

// c[rows, n] += bias[n] (where there is one), then the activation; slopes[n] are PReLU's.
SHARE("NuR----")
EXPORT void mf_bias_act(int rows, int n, float *c, const float *bias, int act, const float *slopes, float alpha) {
  if (bias)
    for (int i = 0; i < rows; i++) {
      float *row = c + (size_t)i * n;
      int j = 0;
      if (act == RELU) {
        for (; j + 4 <= n; j += 4) store(row + j, relu(add(load(row + j), load(bias + j))));
        if (j < n) store_part(row + j, relu(add(load_part(row + j, n - j), load_part(bias + j, n - j))), n - j);
      } else {
        for (; j + 4 <= n; j += 4) store(row + j, add(load(row + j), load(bias + j)));
        for (; j < n; j++) row[j] += bias[j];
      }
    }
  int all = rows * n;
  if (slopes) {
    for (int i = 0; i < rows; i++)
      for (int j = 0; j < n; j++)
        if (c[(size_t)i * n + j] < 0) c[(size_t)i * n + j] *= slopes[j];
  } else if (alpha != 0) {
    for (int i = 0; i < all; i++)
      if (c[i] < 0) c[i] *= alpha;
  } else if (act >= 0 && !(bias && act == RELU)) {
    mf_unary(act, all, c, c);
  }
}

// ------------------------------------------------------------------------------------------------------ optimizers

// Adam (Kingma and Ba 2015, algorithm 1). Differences from 1 come ready made, since they lose digits in single precision:
// rest = 1-β, correct = 1-β^t. decay is AdamW's, times the rate.
SHARE("NRRRRRRR---------")
EXPORT void mf_adam(int n, const float *w, const float *g, const float *m, const float *v, float *w_out, float *m_out,
                    float *v_out, float rate, float beta1, float beta2, float rest1, float rest2, float eps, float correct1,
                    float correct2, float decay) {
  f4 b1 = splat(beta1), c1 = splat(rest1), b2 = splat(beta2), c2 = splat(rest2), e = splat(eps);
  f4 i1 = splat(1 / correct1), i2 = splat(1 / correct2), r = splat(rate), keep = splat(1 - decay);
#define ADAM(LOAD, STORE)                                                                              \
  f4 gi = LOAD(g, i), mi = add(mul(b1, LOAD(m, i)), mul(c1, gi)), vi = add(mul(b2, LOAD(v, i)), mul(c2, mul(gi, gi))); \
  f4 step = div4(mul(r, mul(mi, i1)), add(wasm_f32x4_sqrt(mul(vi, i2)), e));                           \
  f4 wi = sub(mul(keep, LOAD(w, i)), step);                                                            \
  STORE(m_out, i, mi) STORE(v_out, i, vi) STORE(w_out, i, wi)
#define WHOLE_LOAD(p, i) load(p + i)
#define WHOLE_STORE(p, i, x) store(p + i, x);
#define PART_LOAD(p, i) load_part(p + i, n - i)
#define PART_STORE(p, i, x) store_part(p + i, x, n - i);
  int i = 0;
  for (; i + 4 <= n; i += 4) { ADAM(WHOLE_LOAD, WHOLE_STORE) }
  if (i < n) { ADAM(PART_LOAD, PART_STORE) }
}

// SGD with momentum μ (0: none, `u` unused): u = μu + g; w -= rate·(nesterov ? g + μu : u).
SHARE("NRRRRR----")
EXPORT void mf_sgd(int n, const float *w, const float *g, const float *u, float *w_out, float *u_out, float rate,
                   float momentum, int nesterov, float decay) {
  float keep = 1 - decay;
  if (!u) {
    for (int i = 0; i < n; i++) w_out[i] = keep * w[i] - rate * g[i];
    return;
  }
  for (int i = 0; i < n; i++) {
    float gi = g[i], ui = momentum * u[i] + gi;
    u_out[i] = ui;
    w_out[i] = keep * w[i] - rate * (nesterov ? gi + momentum * ui : ui);
  }
}
