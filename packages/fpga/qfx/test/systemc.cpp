// Reads "signed W I q o v vFraction" lines and prints the raw integer that SystemC's sc_fix / sc_ufix stores for
// v * 2^-vFraction. q and o count the modes in the order of QUANTIZATION_MODES and OVERFLOW_MODES.
#define SC_INCLUDE_FX
#include <systemc.h>

#include <cstdio>
#include <string>

static const sc_q_mode Q[] = {SC_TRN, SC_TRN_ZERO, SC_RND, SC_RND_ZERO, SC_RND_INF, SC_RND_MIN_INF, SC_RND_CONV};
static const sc_o_mode O[] = {SC_SAT, SC_SAT_ZERO, SC_SAT_SYM, SC_WRAP, SC_WRAP_SM};

static std::string raw(const sc_fxnum &stored, int fraction) {
  sc_fxval value = stored;
  if (fraction >= 0) value <<= fraction;
  else value >>= -fraction;
  return value.to_string(SC_DEC, SC_F);
}

int sc_main(int, char **) {
  int is_signed, W, I, q, o, fraction;
  long long v;
  while (std::scanf("%d %d %d %d %d %lld %d", &is_signed, &W, &I, &q, &o, &v, &fraction) == 7) {
    sc_fxval value((sc_dt::int64)v);
    if (fraction >= 0) value >>= fraction;
    else value <<= -fraction;
    if (is_signed) {
      sc_fix stored(W, I, Q[q], O[o], 0);
      stored = value;
      std::puts(raw(stored, W - I).c_str());
    } else {
      sc_ufix stored(W, I, Q[q], O[o], 0);
      stored = value;
      std::puts(raw(stored, W - I).c_str());
    }
  }
  return 0;
}
