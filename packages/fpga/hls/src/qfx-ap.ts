/** Text of `firmware/qfx_ap.h`: stand-in types for compilers without the vendor's headers. */
export const QFX_AP_HEADER = String.raw`/*
 * qfx_ap.h: ap_fixed, ap_ufixed, ap_int and ap_uint for any C++14 compiler.
 *
 * A stand-in for the vendor's ap_fixed.h and ap_int.h, so that csim runs where Vitis HLS is not installed
 * (compile with -DQFX_SIM_TYPES). It has the operators that the generated code uses: exact +, - and *, comparison,
 * assignment with the target's quantization and overflow mode, <<= on integers and the bit range operator (hi, lo).
 * Words have at most 64 bits; intermediate results of + - * may have up to 126.
 */
#ifndef QFX_AP_H
#define QFX_AP_H

#include <cstdint>

enum ap_q_mode { AP_RND, AP_RND_ZERO, AP_RND_MIN_INF, AP_RND_INF, AP_RND_CONV, AP_TRN, AP_TRN_ZERO };
enum ap_o_mode { AP_SAT, AP_SAT_ZERO, AP_SAT_SYM, AP_WRAP, AP_WRAP_SM };

namespace qfx {

__extension__ typedef __int128 int128;
__extension__ typedef unsigned __int128 uint128;

template <bool Wide> struct integer { typedef int64_t type; typedef uint64_t bits; };
template <> struct integer<true> { typedef int128 type; typedef uint128 bits; };

constexpr int larger(int a, int b) { return a > b ? a : b; }
constexpr double power_of_two(int n) { return n == 0 ? 1.0 : n > 0 ? 2 * power_of_two(n - 1) : power_of_two(n + 1) / 2; }

/* Division by 2^shift in quantization mode Q. */
template <ap_q_mode Q, typename T> constexpr T quantize(T v, int shift) {
  const T half = T(1) << (shift - 1);
  const T negative = v < 0 ? 1 : 0;
  const T add = Q == AP_TRN           ? T(0)
                : Q == AP_TRN_ZERO    ? negative * (2 * half - 1)
                : Q == AP_RND         ? half
                : Q == AP_RND_ZERO    ? half - 1 + negative
                : Q == AP_RND_INF     ? half - negative
                : Q == AP_RND_MIN_INF ? half - 1
                                      : half - 1 + ((v >> shift) & 1);
  return (v + add) >> shift;
}

/* The low W bits of q, read as a signed or unsigned number. */
template <int W, bool S, typename T> constexpr T wrap(T q) {
  typedef typename integer<(sizeof(T) > 8)>::bits bits;
  if (W >= int(8 * sizeof(T))) return q;
  const bits low = bits(q) & ((bits(1) << (W % int(8 * sizeof(T)))) - 1);
  const bits sign = S ? bits(1) << (W - 1) : bits(0);
  return T(low ^ sign) - T(sign);
}

/* What overflow mode O makes of the integer q in a word of W bits. T has room for W + 2 bits. */
template <int W, bool S, ap_o_mode O, typename T> constexpr T overflow(T q) {
  const T one = 1;
  const T hi = S ? (one << (W - 1)) - 1 : (one << W) - 1;
  const T lo = S ? (O == AP_SAT_SYM ? -hi : -hi - 1) : T(0);
  if (O == AP_WRAP) return wrap<W, S>(q);
  if (O == AP_WRAP_SM) {
    const T kept = wrap<W, S>(q);
    return ((q >> W) & 1) != ((q >> (W - 1)) & 1) ? wrap<W, S>(T(~kept)) : kept;
  }
  if (q >= lo && q <= hi) return q;
  return O == AP_SAT_ZERO ? T(0) : q < lo ? lo : hi;
}

template <typename Word> struct slice;

template <int W, int I, bool S, ap_q_mode Q, ap_o_mode O> struct fixed {
  static_assert(W >= 1 && W <= 126, "a word has 1 to 64 bits, an intermediate result at most 126");
  static_assert(S || O != AP_WRAP_SM, "AP_WRAP_SM needs a signed type");

  static constexpr int width = W;
  static constexpr int fraction = W - I;
  static constexpr double scale = power_of_two(W - I);
  typedef typename integer<(W > 63)>::type raw_t;
  raw_t v;

  constexpr fixed() : v(0) {}
  constexpr fixed(int x) : v(cast<32, 0>(x)) {}
  constexpr fixed(long x) : v(cast<64, 0>(x)) {}
  constexpr fixed(long long x) : v(cast<64, 0>(x)) {}
  constexpr fixed(unsigned x) : v(cast<33, 0>(x)) {}
  constexpr fixed(unsigned long x) : v(cast<65, 0>(x)) {}
  constexpr fixed(unsigned long long x) : v(cast<65, 0>(x)) {}
  constexpr fixed(double x) : v(from_double(x)) {}
  constexpr fixed(const fixed &) = default;
  template <int W2, int I2, bool S2, ap_q_mode Q2, ap_o_mode O2>
  constexpr fixed(const fixed<W2, I2, S2, Q2, O2> &x) : v(cast<W2 + !S2, W2 - I2>(x.v)) {}
  template <typename Word> constexpr fixed(const slice<Word> &bits) : v(cast<65, 0>(int128(bits.get()))) {}
  fixed &operator=(const fixed &) = default;

  template <typename T> fixed &operator+=(const T &x) { return *this = fixed(*this + x); }
  template <typename T> fixed &operator-=(const T &x) { return *this = fixed(*this - x); }
  fixed &operator<<=(int n) {
    typedef typename integer<(sizeof(raw_t) > 8)>::bits bits;
    v = n >= W ? raw_t(0) : wrap<W, S>(raw_t(bits(v) << n));
    return *this;
  }
  fixed operator>>(int n) const {
    fixed result;
    result.v = n >= W ? (v < 0 ? raw_t(-1) : raw_t(0)) : v >> n;
    return result;
  }

  slice<fixed> operator()(int hi, int lo) { return slice<fixed>{*this, hi, lo}; }
  slice<const fixed> operator()(int hi, int lo) const { return slice<const fixed>{*this, hi, lo}; }

  int to_int() const { return int(whole()); }
  int64_t to_int64() const { return int64_t(whole()); }
  uint64_t to_uint64() const { return uint64_t(whole()); }
  double to_double() const { return double(v) / scale; }

private:
  constexpr int128 whole() const {
    return fraction > 0 ? int128(v) >> (fraction > 0 ? fraction : 0) : int128(v) * (int128(1) << (fraction < 0 ? -fraction : 0));
  }

  /* The raw word of the number x * 2^-FX, which has WX bits (sign included). */
  template <int WX, int FX, typename T> static constexpr raw_t cast(T x) {
    constexpr int down = FX > fraction ? FX - fraction : 0;
    constexpr int up = FX < fraction ? fraction - FX : 0;
    static_assert(WX + up <= 127, "this cast would need more than 126 bits");
    typedef typename integer<(larger(WX + up + 1, larger(W + 2, down + 1)) > 63)>::type T2;
    return down > WX ? raw_t(overflow<W, S, O>(T2(Q == AP_TRN && x < 0 ? -1 : 0)))
                     : raw_t(overflow<W, S, O>(down > 0 ? quantize<Q, T2>(T2(x), down > WX ? 1 : larger(down, 1))
                                                        : T2(x) * (T2(1) << (down > 0 ? 0 : up))));
  }

  /* Exact while |x| < 2^60 and x has at most 60 fraction bits, which every literal in the generated code obeys. */
  static constexpr raw_t from_double(double x) {
    const double scaled = x * scale;
    if (scaled > -9e15 && scaled < 9e15 && scaled == double(int64_t(scaled)))
      return raw_t(overflow<W, S, O>(typename integer<(W > 61)>::type(int64_t(scaled))));
    double whole_part = x;
    int down = 0;
    for (; down < 60 && whole_part != double(int128(whole_part)); down++) whole_part *= 2;
    fixed<126, 126 - 60, true, AP_TRN, AP_WRAP> exact;
    exact.v = int128(whole_part) * (int128(1) << (60 - down));
    return fixed(exact).v;
  }
};

/* Bits hi..lo of a word, as x(hi, lo): readable, and assignable from another slice. */
template <typename Word> struct slice {
  Word &word;
  int hi, lo;

  constexpr uint64_t mask() const { return hi - lo >= 63 ? ~uint64_t(0) : (uint64_t(1) << (hi - lo + 1)) - 1; }
  constexpr uint64_t get() const { return uint64_t(word.v >> lo) & mask(); }
  slice &operator=(const slice &other) { return set(other.get()); }
  template <typename Other> slice &operator=(const slice<Other> &other) { return set(other.get()); }

private:
  slice &set(uint64_t bits) {
    const uint128 cleared = uint128(word.v) & ~(uint128(mask()) << lo);
    assign(word, int128(cleared | (uint128(bits & mask()) << lo)));
    return *this;
  }
  template <int W, int I, bool S, ap_q_mode Q, ap_o_mode O>
  static void assign(fixed<W, I, S, Q, O> &target, int128 bits) {
    target.v = typename fixed<W, I, S, Q, O>::raw_t(wrap<W, S>(bits));
  }
};

template <int W, int I, bool S> using exact = fixed<W, I, S, AP_TRN, AP_WRAP>;

template <int W1, int I1, bool S1, ap_q_mode Q1, ap_o_mode O1, int W2, int I2, bool S2, ap_q_mode Q2, ap_o_mode O2>
struct growth {
  static constexpr int F1 = W1 - I1, F2 = W2 - I2;
  static constexpr int I = larger(I1 + (S2 && !S1), I2 + (S1 && !S2)) + 1;
  static constexpr int F = larger(F1, F2);
  static constexpr int up1 = F - F1, up2 = F - F2;
  typedef exact<W1 + W2, I1 + I2, S1 || S2> product;
  typedef exact<I + F, I, S1 || S2> sum;
  typedef exact<I + F, I, true> difference;
};

#define QFX_TWO_WORDS                                                                                         \
  template <int W1, int I1, bool S1, ap_q_mode Q1, ap_o_mode O1, int W2, int I2, bool S2, ap_q_mode Q2, ap_o_mode O2>
#define QFX_GROWTH growth<W1, I1, S1, Q1, O1, W2, I2, S2, Q2, O2>
#define QFX_ARGUMENTS (const fixed<W1, I1, S1, Q1, O1> &a, const fixed<W2, I2, S2, Q2, O2> &b)

QFX_TWO_WORDS typename QFX_GROWTH::product operator*QFX_ARGUMENTS {
  typedef typename QFX_GROWTH::product result_t;
  typedef typename result_t::raw_t raw_t;
  result_t result;
  result.v = raw_t(a.v) * raw_t(b.v);
  return result;
}

QFX_TWO_WORDS typename QFX_GROWTH::sum operator+QFX_ARGUMENTS {
  typedef typename QFX_GROWTH::sum result_t;
  typedef typename result_t::raw_t raw_t;
  result_t result;
  result.v = raw_t(a.v) * (raw_t(1) << QFX_GROWTH::up1) + raw_t(b.v) * (raw_t(1) << QFX_GROWTH::up2);
  return result;
}

QFX_TWO_WORDS typename QFX_GROWTH::difference operator-QFX_ARGUMENTS {
  typedef typename QFX_GROWTH::difference result_t;
  typedef typename result_t::raw_t raw_t;
  result_t result;
  result.v = raw_t(a.v) * (raw_t(1) << QFX_GROWTH::up1) - raw_t(b.v) * (raw_t(1) << QFX_GROWTH::up2);
  return result;
}

QFX_TWO_WORDS bool operator<QFX_ARGUMENTS { return (a - b).v < 0; }
QFX_TWO_WORDS bool operator>QFX_ARGUMENTS { return (a - b).v > 0; }
QFX_TWO_WORDS bool operator<=QFX_ARGUMENTS { return (a - b).v <= 0; }
QFX_TWO_WORDS bool operator>=QFX_ARGUMENTS { return (a - b).v >= 0; }
QFX_TWO_WORDS bool operator==QFX_ARGUMENTS { return (a - b).v == 0; }
QFX_TWO_WORDS bool operator!=QFX_ARGUMENTS { return (a - b).v != 0; }

#undef QFX_TWO_WORDS
#undef QFX_GROWTH
#undef QFX_ARGUMENTS

template <bool Legal, typename T> struct only_if { typedef T type; };
template <typename T> struct only_if<false, T> {}; /* saturated bits (N) of the wrap modes are not supported */

} // namespace qfx

template <int W, int I, ap_q_mode Q = AP_TRN, ap_o_mode O = AP_WRAP, int N = 0>
using ap_fixed = typename qfx::only_if<(W <= 64 && N == 0), qfx::fixed<W, I, true, Q, O>>::type;
template <int W, int I, ap_q_mode Q = AP_TRN, ap_o_mode O = AP_WRAP, int N = 0>
using ap_ufixed = typename qfx::only_if<(W <= 64 && N == 0), qfx::fixed<W, I, false, Q, O>>::type;
template <int W> using ap_int = typename qfx::only_if<(W <= 64), qfx::fixed<W, W, true, AP_TRN, AP_WRAP>>::type;
template <int W> using ap_uint = typename qfx::only_if<(W <= 64), qfx::fixed<W, W, false, AP_TRN, AP_WRAP>>::type;

#endif
`;
