#pragma once
#include "common.h"

// C[m,n] = (accumulate ? C : 0) + op(A)·op(B); op(A) is [m,k], stored [k,m] where ta; op(B) is [k,n], stored [n,k] where tb.
// lda, ldb, ldc: floats from one stored row to the next. `work`: SGEMM_WORK floats.
void sgemm(int ta, int tb, int m, int n, int k, const float *a, int lda, const float *b, int ldb, float *c, int ldc,
           int accumulate, float *work);

// The same for few rows; C[i,j] stands at c[i·row_c + j·column_c], so that few columns are few rows of the transposed product.
#define SGEMM_FEW_ROWS 3
#define SGEMM_FEW_COLUMNS 4
void sgemm_few(int ta, int tb, int m, int n, int k, const float *a, int lda, const float *b, int ldb, float *c, size_t row_c,
               size_t column_c, int accumulate, float *work);

#define SGEMM_MC 96
#define SGEMM_KC 256
#define SGEMM_NC 1024
#define SGEMM_WORK ((SGEMM_MC + 8) * SGEMM_KC + (SGEMM_NC + 8) * SGEMM_KC)

// Panels of 8 columns of op(B), the last one filled up with zeros, each stored k by k.
void sgemm_pack_b(int tb, int k, int n, const float *b, int ldb, float *out);
