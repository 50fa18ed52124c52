#pragma once
#include "common.h"

// A 2-D convolution or pooling. Images are [batch, height, width, channels], filters [height, width, in, out].
typedef struct {
  int batch, in_h, in_w, channels, out_h, out_w, filters, kernel_h, kernel_w, stride_h, stride_w, top, left, dilation_h, dilation_w;
} Geometry;
