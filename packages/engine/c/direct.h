#pragma once
#include "geometry.h"
#include "sgemm.h"

// Each has a test for the geometries that it serves, and a work area of so many floats.
int direct_fits(const Geometry *g);
size_t direct_floats(const Geometry *g);
void direct_conv(const Geometry *g, const float *x, const float *w, float *y, float *work);
int direct_back_input_fits(const Geometry *g);
size_t direct_back_input_floats(const Geometry *g);
void direct_back_input(const Geometry *g, const float *dy, const float *w, float *dx, float *work);
int direct_back_filter_fits(const Geometry *g);
size_t direct_back_filter_floats(const Geometry *g);
void direct_back_filter(const Geometry *g, const float *x, const float *dy, float *dw, float *work);
