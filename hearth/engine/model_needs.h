// SPDX-License-Identifier: Apache-2.0
// What a model will take of its device's memory, told by its folder's headers and configuration alone.
#pragma once

#include <filesystem>
#include <string>

#include "hearth/engine/engine.h"

namespace hearth {

// Of a model that load_served_model() would load with these options and an engine with those would serve. An estimate:
// weights as they are stored, dummy ones in bf16; activations, logits and the KV of one sequence of kLeastContext
// tokens. Errors: those of the folder's files.
Result<ModelNeeds> needs_of(const std::filesystem::path& dir, std::string name, const LoadOptions& load,
                            const EngineOptions& engine);

}  // namespace hearth
