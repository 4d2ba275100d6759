// SPDX-License-Identifier: Apache-2.0
// JSON, a line a step.
#include "hearth/simulate/step_file.h"

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>

namespace hearth {
namespace {

Result<double> number(const nlohmann::json& object, const char* key) {
  const auto found = object.find(key);
  if (found == object.end()) return corrupt("no {}", key);
  if (!found->is_number() || found->get<double>() < 0)
    return corrupt("{} is {}; wanted a number, 0 or more", key, found->dump());
  return found->get<double>();
}

Result<StepObservation> observation(const nlohmann::json& object) {
  StepObservation step;
  HEARTH_TRY_ASSIGN(step.load.prefill_tokens, number(object, "prefill_tokens"));
  HEARTH_TRY_ASSIGN(step.load.sequences, number(object, "sequences"));
  HEARTH_TRY_ASSIGN(step.load.context_tokens, number(object, "context_tokens"));
  HEARTH_TRY_ASSIGN(step.load.prefill_pairs, number(object, "prefill_pairs"));
  HEARTH_TRY_ASSIGN(step.us, number(object, "measured_us"));
  return step;
}

Status take(const std::string& text, std::vector<ModelSteps>& models) {
  const nlohmann::json object = nlohmann::json::parse(text, nullptr, false);
  if (!object.is_object()) return corrupt("no object of JSON");
  const auto name = object.find("model");
  if (name == object.end() || !name->is_string()) return corrupt("no model's name");
  HEARTH_TRY_ASSIGN(const StepObservation step, observation(object));
  auto model = std::ranges::find(models, name->get<std::string>(), &ModelSteps::model);
  if (model == models.end()) model = models.insert(models.end(), {.model = *name, .steps = {}});
  model->steps.push_back(step);
  return {};
}

}  // namespace

Result<std::vector<ModelSteps>> read_steps(const std::filesystem::path& path) {
  std::ifstream file(path);
  if (!file) return not_found("{}: no such file", path.string());
  std::vector<ModelSteps> models;
  int64_t line = 0;
  for (std::string text; std::getline(file, text);) {
    ++line;
    if (text.find_first_not_of(" \t\r") == std::string::npos) continue;
    HEARTH_TRY(take(text, models).with_context(fmt::format("{}:{}", path.string(), line)));
  }
  if (models.empty()) return invalid_argument("{}: no step in it", path.string());
  return models;
}

}  // namespace hearth
