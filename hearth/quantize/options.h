// SPDX-License-Identifier: Apache-2.0
// What a user asks of the quantizer, and what that means for each linear: formats by name, methods by name, rules
// that give modules another format. Stateless.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "hearth/base/result.h"
#include "hearth/quantize/calibrate.h"
#include "hearth/quantize/encode.h"
#include "hearth/tensor/kv_layout.h"

namespace hearth {

// Modules that `pattern` matches have `format` whatever the others have. A pattern is some whole components of a
// module's name, "layers.0", "down_proj", "lm_head", "layers.*.self_attn"; * stands for any characters of a component.
struct FormatRule {
  std::string pattern;
  std::string format;
};

struct QuantizeOptions {
  std::string to;  // "fp8", "int4", "fireq", "fireq-c4", "sbvr"
  // With to = "auto": stored bits per weight of the blocks' linears, and the formats to choose from for each.
  double bits = 0;
  std::vector<std::string> candidates = {"int4", "fp8", "bf16"};
  std::string method = "auto";     // "rtn", "clip", "gptq", sbvr: "authors"; auto: gptq, fp8: clip
  int64_t group_size = 128;        // int4, fireq, fireq-c4: columns per scale; int4: 0 is a whole row
  bool asymmetric = false;         // int4: with zero points
  int64_t bitvectors = 4;          // sbvr: 4, 3 or 2
  int64_t lines = 0;               // sbvr: coefficient lines of a matrix; 0: as many as max_bits allows
  std::optional<double> max_bits;  // sbvr: stored bits per weight; unset: bitvectors + 0.2
  std::optional<bool> awq;         // unset: inputs with outliers, for 4-bit weights by gptq
  bool act_order = true;
  bool sequential = true;  // a linear's input moments come from the block whose earlier linears are quantized
  std::optional<KvFormatId> kv;
  bool kv_scale_per_head = false;  // kv fp8: k_scale and v_scale of every kv head, not one of each for all
  std::optional<bool> rotate_v;    // unset: where a search for the KV format says so
  std::vector<FormatRule> rules;   // the last that matches counts
  std::optional<CalibrationOptions> calibration;
  uint64_t seed = 0;
  // Which the calibration's activations run on; weights are encoded on the CPU.
  const OpTable* ops = &cpu_ops();
};

// How one linear is stored.
struct ModuleRecipe {
  std::string format;  // its name; "bf16": plain, in the type that the checkpoint has
  EncodeOptions encode;
  std::string note;  // why it is not what was asked for

  bool plain() const { return format == "bf16"; }
  bool needs_moments() const { return !plain() && encode.method == EncodeMethod::kGptq; }
};

inline constexpr std::string_view kAutoFormat = "auto";

// "fp8", "int4", ... in the order of the documentation, and what a rule can name beside them.
std::vector<std::string> quantize_format_names();
std::string_view encode_method_name(EncodeMethod method);

// "lm_head=bf16,layers.0=fp8". InvalidArgument names the part that is no rule.
Result<std::vector<FormatRule>> parse_format_rules(std::string_view text);
// The same, one rule a line; # starts a comment.
Result<std::vector<FormatRule>> parse_rule_file(std::string_view text);
bool matches_module(std::string_view pattern, std::string_view module);

// InvalidArgument names the option, what was found and wanted: unknown formats and methods, groups, bit vectors.
Status check_options(const QuantizeOptions& options);

// `source` is the type that the checkpoint's weights have, f32, f16 or bf16. A row length that int4's groups do not
// divide makes the module plain, and the note says so. REQUIRES: check_options() agreed.
ModuleRecipe recipe_for(const QuantizeOptions& options, std::string_view module, int64_t n, int64_t k, DType source);

// Every option that changes a byte of the result, for the fingerprint of a run.
nlohmann::ordered_json options_json(const QuantizeOptions& options);

}  // namespace hearth
