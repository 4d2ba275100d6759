// SPDX-License-Identifier: Apache-2.0
// A report: what was measured of a reference and several models, and from that the table in markdown and the lines
// of results (docs/formats/results.md). Plain data, no computation with models. Stateless.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "hearth/eval/estimate.h"
#include "hearth/eval/report_scores.h"

namespace hearth {

struct ReportText {
  std::string name;   // "heldout_books"
  std::string list;   // "all", or that of the chosen windows or items
  int64_t ctx = 0;    // tokens of a window; 0 for items
  int64_t count = 0;  // windows or items
};

struct ReportRow {
  std::string name;                     // as the user calls it, unique
  std::string model, variant;           // its folder's name; plain or outliers
  std::string format, method;           // how linears are stored, and which method found them
  std::string activation, kv, backend;  // how it was run
  double bits_per_weight = 0;
  int64_t checkpoint_bytes = 0;
  std::vector<std::vector<WindowSums>> windows;  // of each text, of each window
  std::vector<LambadaScore> items;
  std::vector<SpeedSample> speed;  // of each repetition
};

struct Report {
  std::vector<ReportText> texts;
  std::optional<ReportText> lambada;
  SpeedTask speed;
  std::vector<ReportRow> rows;     // the reference first
  std::optional<size_t> baseline;  // row
  std::string device, command;
};

// The table for people: one for the models, one for each text.
std::string report_markdown(const Report& report);

// `eval.quality` lines, one for each model and text and one for its LAMBADA; model.prefill and model.decode where
// speed was measured.
std::vector<nlohmann::json> report_lines(const Report& report);

}  // namespace hearth
