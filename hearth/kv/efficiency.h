// SPDX-License-Identifier: Apache-2.0
// Marginal memory efficiency of a model (FineServe, arXiv 2509.06261: delta tokens / delta KV bytes), measured: the
// slope of tokens served in a window over the KV bytes held in it, by least squares with forgetting. A model that is
// short of compute, or idle, gains nothing by more memory and has a slope of 0. One owning thread.
#pragma once

#include <cstdint>

namespace hearth {

class MemoryEfficiency {
 public:
  // What is assumed until something is known: the tokens that a byte holds.
  explicit MemoryEfficiency(double tokens_per_byte) : prior_(tokens_per_byte) {}

  // `tokens` served while `live_bytes` were held. Bytes of a window are the mean over its calls.
  void served(int64_t tokens, int64_t live_bytes);
  void end_window();

  // Tokens of a window that a byte more would bring. Never negative.
  double tokens_per_byte() const;

 private:
  double prior_;
  double tokens_ = 0, bytes_ = 0, samples_ = 0;  // of this window
  // Of the windows before, weighted: each counts kForget times the one after it.
  double weight_ = 0, mean_tokens_ = 0, mean_bytes_ = 0, bytes_variance_ = 0, covariance_ = 0;
};

}  // namespace hearth
