// SPDX-License-Identifier: Apache-2.0
#include "hearth/checkpoint/checkpoint.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "hearth/base/log.h"
#include "hearth/checkpoint/json.h"
#include "hearth/checkpoint/quote.h"
#include "hearth/checkpoint/simd_json.h"

namespace hearth {
namespace {

namespace fs = std::filesystem;

constexpr const char* kConfig = "config.json";
constexpr const char* kGenerationConfig = "generation_config.json";
constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";

// Sorted names of what lies in `dir`.
Result<std::vector<std::string>> list_folder(const fs::path& dir) {
  std::error_code error;
  const fs::file_status status = fs::status(dir, error);
  if (status.type() == fs::file_type::not_found) return not_found("no folder {}", dir.string());
  if (error) return io_error(error.value(), "open", dir);
  if (status.type() != fs::file_type::directory) {
    return invalid_argument("{} is not a folder; wanted the folder that holds {} and *.safetensors", dir.string(),
                            kConfig);
  }
  std::vector<std::string> names;
  for (fs::directory_iterator it(dir, error), end; !error && it != end; it.increment(error)) {
    names.push_back(it->path().filename().string());
  }
  if (error) return io_error(error.value(), "list", dir);
  std::ranges::sort(names);
  return names;
}

std::string join_some(std::span<const std::string> names) {
  constexpr size_t kShown = 8;
  if (names.empty()) return "nothing";
  std::string text;
  for (size_t i = 0; i < names.size() && i < kShown; ++i) {
    text += fmt::format("{}{}", i == 0 ? "" : ", ", quote_name(names[i]));
  }
  if (names.size() > kShown) text += fmt::format(" and {} more", names.size() - kShown);
  return text;
}

bool contains(std::span<const std::string> names, std::string_view name) {
  return std::ranges::binary_search(names, name, std::less<>());
}

// The error of a folder that has no weights which we read, or whose configuration is missing.
Status check_contents(const fs::path& dir, std::span<const std::string> names) {
  const bool has_weights = contains(names, kSingleFile) || contains(names, kIndexFile);
  if (!has_weights) {
    for (const std::string& name : names) {
      const std::string_view view = name;
      if (view.ends_with(".gguf") || view.ends_with(".bin") || view.ends_with(".pth") || view.ends_with(".pt")) {
        return unsupported("{}: weights in {}; wanted {}: convert the model to safetensors first", dir.string(),
                           quote_name(name), kSingleFile);
      }
    }
  }
  if (contains(names, kConfig) && has_weights) return {};
  return not_found("{}: no {}; wanted {} and {} or {}; found {}", dir.string(),
                   contains(names, kConfig) ? kSingleFile : kConfig, kConfig, kSingleFile, kIndexFile,
                   join_some(names));
}

// Tensor name -> name of the shard that holds it.
using WeightMap = std::map<std::string, std::string, std::less<>>;

Result<WeightMap> parse_index(const std::string& text) {
  namespace dom = simdjson::dom;
  dom::parser parser;
  const simdjson::padded_string padded(text);
  if (padded.data() == nullptr) return resource_exhausted("no memory for an index of {} bytes", text.size());
  HEARTH_TRY_ASSIGN(const dom::element root, parse_large_json(parser, padded));
  dom::object object, map;
  if (root.get(object) != simdjson::SUCCESS) return corrupt("holds {}; wanted an object", describe(root));
  dom::element member;
  if (object["weight_map"].get(member) != simdjson::SUCCESS) return corrupt("has no weight_map");
  if (member.get(map) != simdjson::SUCCESS) return corrupt("weight_map is {}; wanted an object", describe(member));
  WeightMap weights;
  for (const auto field : map) {
    std::string_view shard;
    if (field.value.get(shard) != simdjson::SUCCESS) {
      return corrupt("weight_map: tensor {} is in {}; wanted a file name", quote_name(field.key),
                     describe(field.value));
    }
    // A plain name: the index may not lead out of the folder.
    if (shard.empty() || shard == "." || shard == ".." || shard.find('/') != shard.npos ||
        shard.find('\0') != shard.npos) {
      return corrupt("weight_map: tensor {} is in {}; wanted the name of a file in the same folder",
                     quote_name(field.key), quote_name(shard));
    }
    if (!weights.emplace(field.key, shard).second) {
      return corrupt("weight_map: tensor {} is given twice", quote_name(field.key));
    }
  }
  if (weights.empty()) return corrupt("weight_map is empty");
  return weights;
}

struct Weights {
  std::vector<SafetensorsFile> files;
  std::vector<TensorEntry> tensors;
};

Result<Weights> open_single(const fs::path& path) {
  Weights weights;
  HEARTH_TRY_ASSIGN(SafetensorsFile file, SafetensorsFile::open(path));
  weights.tensors.assign(file.tensors().begin(), file.tensors().end());
  weights.files.push_back(std::move(file));
  return weights;
}

Result<Weights> open_shards(const fs::path& dir) {
  const fs::path index_path = dir / kIndexFile;
  HEARTH_TRY_ASSIGN(const std::string text, read_text_file(index_path, kMaxJsonFileBytes));
  HEARTH_TRY_ASSIGN(const WeightMap map, parse_index(text).with_context(index_path.string()));
  std::map<std::string_view, int64_t> wanted;  // shard -> how many tensors the index puts there
  for (const auto& [name, shard] : map) ++wanted[shard];

  Weights weights;
  int64_t ignored = 0;
  for (const auto& [shard, count] : wanted) {
    auto file = SafetensorsFile::open(dir / shard, static_cast<int>(weights.files.size()));
    if (!file) {
      if (file.error().code != ErrorCode::kNotFound) return std::move(file).error();
      return not_found("{}: no shard {}, which {} names: the download is incomplete", dir.string(), quote_name(shard),
                       kIndexFile);
    }
    int64_t found = 0;
    for (const TensorEntry& entry : file->tensors()) {
      const auto it = map.find(entry.name);
      if (it != map.end() && it->second == shard) {
        weights.tensors.push_back(entry);
        ++found;
      } else if (ignored++ == 0) {
        spdlog::warn("{}: tensor {} is not placed here by {}, ignored", (dir / shard).string(), quote_name(entry.name),
                     kIndexFile);
      }
    }
    if (found != count) {
      std::set<std::string_view> present;
      for (const TensorEntry& entry : file->tensors()) present.insert(entry.name);
      for (const auto& [name, place] : map) {
        if (place != shard || present.contains(name)) continue;
        return corrupt("{}: tensor {} should be in {}, which has no such tensor", index_path.string(), quote_name(name),
                       quote_name(shard));
      }
    }
    weights.files.push_back(std::move(*file));
  }
  if (ignored > 1) spdlog::warn("{}: {} tensors are not placed by {}, ignored", dir.string(), ignored, kIndexFile);
  return weights;
}

}  // namespace

struct Checkpoint::State {
  fs::path dir;
  nlohmann::json config;
  std::optional<nlohmann::json> generation_config;
  Weights weights;
  std::unordered_map<std::string_view, const TensorEntry*> by_name;  // into weights.tensors
  int64_t total_bytes = 0;
};

Checkpoint::Checkpoint(std::unique_ptr<const State> state) : state_(std::move(state)) {}
Checkpoint::~Checkpoint() = default;
Checkpoint::Checkpoint(Checkpoint&&) noexcept = default;
Checkpoint& Checkpoint::operator=(Checkpoint&&) noexcept = default;

Result<Checkpoint> Checkpoint::open(const fs::path& dir) {
  HEARTH_TRY_ASSIGN(const std::vector<std::string> names, list_folder(dir));
  HEARTH_TRY(check_contents(dir, names));
  auto state = std::make_unique<State>();
  state->dir = dir;
  HEARTH_TRY_ASSIGN(state->config, read_json_object(dir / kConfig));
  if (contains(names, kGenerationConfig)) {
    HEARTH_TRY_ASSIGN(state->generation_config, read_json_object(dir / kGenerationConfig));
  }
  HEARTH_TRY_ASSIGN(state->weights, contains(names, kSingleFile) ? open_single(dir / kSingleFile) : open_shards(dir));
  for (const TensorEntry& entry : state->weights.tensors) {
    state->by_name.emplace(entry.name, &entry);
    state->total_bytes += entry.size_bytes;
  }
  return Checkpoint(std::move(state));
}

Result<Checkpoint> Checkpoint::open_files(const fs::path& dir, nlohmann::json config, std::span<const fs::path> files) {
  auto state = std::make_unique<State>();
  state->dir = dir;
  state->config = std::move(config);
  for (const fs::path& path : files) {
    HEARTH_TRY_ASSIGN(SafetensorsFile file, SafetensorsFile::open(path, static_cast<int>(state->weights.files.size())));
    state->weights.tensors.insert(state->weights.tensors.end(), file.tensors().begin(), file.tensors().end());
    state->weights.files.push_back(std::move(file));
  }
  for (const TensorEntry& entry : state->weights.tensors) {
    if (!state->by_name.emplace(entry.name, &entry).second)
      return corrupt("{}: tensor {} is in two files", dir.string(), quote_name(entry.name));
    state->total_bytes += entry.size_bytes;
  }
  return Checkpoint(std::move(state));
}

const fs::path& Checkpoint::dir() const { return state_->dir; }
const nlohmann::json& Checkpoint::config() const { return state_->config; }
const nlohmann::json* Checkpoint::generation_config() const {
  return state_->generation_config ? &*state_->generation_config : nullptr;
}
std::span<const TensorEntry> Checkpoint::tensors() const { return state_->weights.tensors; }
std::span<const SafetensorsFile> Checkpoint::files() const { return state_->weights.files; }
int64_t Checkpoint::total_bytes() const { return state_->total_bytes; }

const TensorEntry* Checkpoint::find(std::string_view name) const {
  const auto it = state_->by_name.find(name);
  return it == state_->by_name.end() ? nullptr : it->second;
}

Status Checkpoint::read(const TensorEntry& entry, std::span<std::byte> dst) const {
  HEARTH_CHECK(entry.file >= 0 && entry.file < std::ssize(files()), "file {} of {}", entry.file, files().size());
  return files()[static_cast<size_t>(entry.file)].read(entry, dst);
}

Status Checkpoint::read_part(const TensorEntry& entry, int64_t begin, std::span<std::byte> dst) const {
  HEARTH_CHECK(entry.file >= 0 && entry.file < std::ssize(files()), "file {} of {}", entry.file, files().size());
  return files()[static_cast<size_t>(entry.file)].read_part(entry, begin, dst);
}

}  // namespace hearth
