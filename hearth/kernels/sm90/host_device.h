// SPDX-License-Identifier: Apache-2.0
// HEARTH_HOST_DEVICE marks what both the host's plans and the kernels compute; nothing to compilers without CUDA.
#pragma once

#ifdef __CUDACC__
#define HEARTH_HOST_DEVICE __host__ __device__
#else
#define HEARTH_HOST_DEVICE
#endif
