// SPDX-License-Identifier: Apache-2.0
// Comm: what the ranks of one model say to each other in a step. A single rank says nothing.
#pragma once

#include "hearth/base/result.h"
#include "hearth/tensor/shape.h"

namespace hearth {

class Comm {
 public:
  virtual ~Comm() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  // data [any] f32 or bf16 becomes the sum over all ranks, added in rank order, the same bits on each.
  virtual Status all_reduce_sum(TensorView data) = 0;
  // out [size, in...] becomes every rank's `in`, in rank order.
  virtual Status all_gather(ConstTensorView in, TensorView out) = 0;
  // data of rank `root` to all.
  virtual Status broadcast(TensorView data, int root) = 0;
};

// The only rank of a model that sits on one device.
class SingleRank final : public Comm {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  Status all_reduce_sum(TensorView) override { return {}; }
  Status all_gather(ConstTensorView in, TensorView out) override;
  Status broadcast(TensorView data, int root) override;
};

}  // namespace hearth
