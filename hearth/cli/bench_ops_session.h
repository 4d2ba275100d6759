// SPDX-License-Identifier: Apache-2.0
// `hearth bench ops --interactive`: cases that are made, replayed and dropped as lines of text ask for it, each
// answered by a line of JSON, so that another program's work and ours can take turns on one device. One thread.
//   make linear N=4096 K=4096 M=1 format=fp8 [x=e4m3] [residual=yes] [logits=yes] [config=NAME] [layer=NAME]
//   make attention kv=bf16 batch=8 context=1024|length=1024 heads=32 kv_heads=8 head_dim=128 [config=NAME]
//   make rmsnorm rows=64 hidden=4096 [residual=yes] [config=NAME]
//                   {"case": 3, "sets": 2, "line": what of a result line is known before the times}
//   replay 3 2      {"us": [of a call in each of two replays, one behind the other]}
//   drop 3          {}
// What cannot be done: {"error": "..."}.
//   I1. A request that fails leaves the cases as they were.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "hearth/cli/bench_ops.h"

namespace hearth {

// The words key=value of a request. Whoever reads one has taken it; done() refuses what nobody took.
class RequestFields {
 public:
  // InvalidArgument for a word that is no key=value, and for a key that comes twice.
  static Result<RequestFields> parse(std::string_view words);
  bool has(std::string_view key) const { return fields_.contains(key); }
  // InvalidArgument where it is missing or not in [1, most].
  Result<int64_t> number(const std::string& key, int64_t most);
  Result<std::string> text(const std::string& key);
  std::string text_or(std::string_view key, std::string otherwise);
  // yes or no; no where it is missing.
  Result<bool> flag(const std::string& key);
  // InvalidArgument names a field that is left.
  Status done() const;

 private:
  std::map<std::string, std::string, std::less<>> fields_;
};

class OpSession {
 public:
  // `bytes_per_s` as OpRig::bytes_per_s(). Goes before the rig.
  OpSession(const OpRig& rig, std::string device, std::string command, double bytes_per_s);

  // What is said before the first request: device, backend, dtype, cache_bytes, bytes_per_s.
  nlohmann::json greeting() const;
  // The answer to a request without its newline. Errors as the cases'.
  Result<nlohmann::json> answer(std::string_view request);

 private:
  struct Made {
    std::shared_ptr<LinearBench> weights;
    std::unique_ptr<OpCase> op;
    OpReplay replay;
  };

  Result<nlohmann::json> make(std::string_view request);
  Result<nlohmann::json> replay(std::string_view request);
  Result<nlohmann::json> drop(std::string_view request);
  MaybeCase make_linear(RequestFields& fields, std::shared_ptr<LinearBench>& weights);
  MaybeCase make_attention(RequestFields& fields) const;
  MaybeCase make_rmsnorm(RequestFields& fields) const;
  // NotFound where there is none.
  Result<int64_t> find_case(std::string_view id) const;

  const OpRig& rig_;
  const std::string device_, command_;
  const double bytes_per_s_;
  std::map<int64_t, Made> cases_;
  // Of the cases that live: those of a linear differ in M alone.
  std::map<std::string, std::weak_ptr<LinearBench>> weights_;
  int64_t next_id_ = 1;
};

}  // namespace hearth
