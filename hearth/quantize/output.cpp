// SPDX-License-Identifier: Apache-2.0
#include "hearth/quantize/output.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <nlohmann/json.hpp>
#include <optional>

#include "hearth/checkpoint/file.h"
#include "hearth/checkpoint/json.h"
#include "hearth/checkpoint/safetensors.h"

namespace hearth {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

constexpr int kStateVersion = 1;
constexpr std::string_view kTemporary = ".tmp";

// What a model folder has beside weights and configuration and what stays true of the quantized model.
constexpr std::string_view kCopied[] = {"tokenizer.json",
                                        "tokenizer_config.json",
                                        "special_tokens_map.json",
                                        "added_tokens.json",
                                        "vocab.json",
                                        "merges.txt",
                                        "tokenizer.model",
                                        "chat_template.jinja",
                                        "chat_template.json",
                                        "generation_config.json"};
constexpr std::string_view kCopiedFolder = "additional_chat_templates";

bool is_copied(const std::string& name) {
  return std::ranges::find(kCopied, name) != std::end(kCopied) || name.starts_with("LICENSE") ||
         name.starts_with("NOTICE");
}

int write_fully(int fd, std::string_view text) {
  while (!text.empty()) {
    const ssize_t written = ::write(fd, text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return errno;
    text.remove_prefix(static_cast<size_t>(written));
  }
  return 0;
}

Result<std::vector<fs::path>> list(const fs::path& dir) {
  std::vector<fs::path> paths;
  std::error_code error;
  for (fs::directory_iterator it(dir, error), end; !error && it != end; it.increment(error))
    paths.push_back(it->path());
  if (error) return io_error(error.value(), "list", dir);
  std::ranges::sort(paths);
  return paths;
}

Status copy_extras(const fs::path& source, const fs::path& dir) {
  HEARTH_TRY_ASSIGN(const std::vector<fs::path> files, list(source));
  for (const fs::path& path : files) {
    std::error_code error;
    const std::string name = path.filename().string();
    if (name == kCopiedFolder && fs::is_directory(path, error)) {
      fs::create_directories(dir / name, error);
      if (error) return io_error(error.value(), "make", dir / name);
      HEARTH_TRY_ASSIGN(const std::vector<fs::path> templates, list(path));
      for (const fs::path& file : templates) {
        HEARTH_TRY_ASSIGN(const std::string text, read_text_file(file, kMaxJsonFileBytes));
        HEARTH_TRY(write_text_file(dir / name / file.filename(), text));
      }
    }
    if (!is_copied(name) || !fs::is_regular_file(path, error)) continue;
    HEARTH_TRY_ASSIGN(const std::string text, read_text_file(path, kMaxJsonFileBytes));
    HEARTH_TRY(write_text_file(dir / name, text));
  }
  return {};
}

std::string difference(const ordered_json& found, const ordered_json& wanted) {
  for (const auto& [key, value] : wanted.items()) {
    const auto it = found.find(key);
    if (it == found.end() || *it != value)
      return fmt::format("its {} is {}, this one's {}", key, it == found.end() ? "unknown" : it->dump(), value.dump());
  }
  return "its fingerprint has more members";
}

}  // namespace

Status write_text_file(const fs::path& path, std::string_view text) {
  fs::path temporary = path;
  temporary += kTemporary;
  const int fd = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd < 0) return io_error(errno, "create", temporary);
  int error = write_fully(fd, text);
  if (error == 0 && ::fsync(fd) != 0) error = errno;
  if (::close(fd) != 0 && error == 0) error = errno;
  if (error == 0 && ::rename(temporary.c_str(), path.c_str()) != 0) error = errno;
  if (error == 0) return {};
  ::unlink(temporary.c_str());
  return io_error(error, "write", path);
}

struct OutputFolder::State {
  ~State() {
    if (lock >= 0) ::close(lock);
  }

  fs::path dir;
  int lock = -1;  // the folder, open and locked
  ordered_json fingerprint;
  int64_t shards = 0;
  int64_t done = 0;
  ordered_json lines = ordered_json::array();
  ordered_json settled;
};

OutputFolder::OutputFolder(std::unique_ptr<State> state) : state_(std::move(state)) {}
OutputFolder::~OutputFolder() = default;
OutputFolder::OutputFolder(OutputFolder&&) noexcept = default;
OutputFolder& OutputFolder::operator=(OutputFolder&&) noexcept = default;

int64_t OutputFolder::shards_done() const { return state_->done; }
const ordered_json& OutputFolder::lines() const { return state_->lines; }
const ordered_json& OutputFolder::settled() const { return state_->settled; }

Status OutputFolder::settle(ordered_json value) {
  state_->settled = std::move(value);
  return save_state();
}

fs::path OutputFolder::shard_path(int64_t index) const {
  return state_->dir / fmt::format("model-{:05}-of-{:05}.safetensors", index + 1, state_->shards);
}

// The kernel gives the lock back when the process ends, however it ends. File systems without locks do without.
Status OutputFolder::lock() {
  State& s = *state_;
  s.lock = ::open(s.dir.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (s.lock < 0) return io_error(errno, "open", s.dir);
  if (::flock(s.lock, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK) return {};
  return unavailable("{}: another run writes to it; wait for that one, or name another folder", s.dir.string());
}

namespace {

// What a file's name says: model-NNNNN-of-NNNNN.safetensors, or that and what SafetensorsWriter adds while it writes.
struct NamedShard {
  int64_t number = 0;  // from 1
  bool temporary = false;
};

std::optional<NamedShard> shard_named(std::string_view name) {
  constexpr std::string_view kForm = "model-#####-of-#####.safetensors";
  if (name.size() < kForm.size()) return std::nullopt;
  const auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
  NamedShard shard;
  for (size_t i = 0; i < kForm.size(); ++i) {
    if (kForm[i] == '#' ? !is_digit(name[i]) : name[i] != kForm[i]) return std::nullopt;
    if (kForm[i] == '#' && i < kForm.find("-of-")) shard.number = shard.number * 10 + (name[i] - '0');
  }
  name.remove_prefix(kForm.size());
  if (name.empty()) return shard;
  if (!name.starts_with('.') || !name.ends_with(kTemporary)) return std::nullopt;
  name = name.substr(1, name.size() - std::min(name.size(), kTemporary.size() + 1));
  if (!std::all_of(name.begin(), name.end(), [&](char c) { return is_digit(c) || c == '-'; })) return std::nullopt;
  shard.temporary = true;
  return shard;
}

}  // namespace

Result<OutputFolder> OutputFolder::open(const fs::path& dir, const ordered_json& fingerprint, int64_t shards) {
  auto state = std::make_unique<State>();
  state->dir = dir;
  state->fingerprint = fingerprint;
  state->shards = shards;
  std::error_code error;
  fs::create_directories(dir, error);
  if (error) return io_error(error.value(), "make", dir);
  OutputFolder folder(std::move(state));
  HEARTH_TRY(folder.lock());
  HEARTH_TRY_ASSIGN(const std::vector<fs::path> files, list(dir));
  const fs::path state_path = dir / kQuantizeStateFile;
  State& s = *folder.state_;
  if (!fs::exists(state_path, error)) {
    for (const fs::path& file : files) {
      // A run that ended before its state had a name left nothing else.
      if (file == state_path.string() + std::string(kTemporary)) continue;
      return invalid_argument("{} is not empty: it has {}; wanted an empty or a new folder", dir.string(),
                              file.filename().string());
    }
    HEARTH_TRY(folder.save_state());
    return folder;
  }
  HEARTH_TRY_ASSIGN(const std::string text, read_text_file(state_path, kMaxJsonFileBytes));
  const ordered_json stored = ordered_json::parse(text, nullptr, false);
  const auto member = [&](const char* name) {
    return stored.is_object() ? stored.value(name, ordered_json()) : ordered_json();
  };
  const ordered_json found = member("fingerprint"), done = member("shards_done"), lines = member("lines");
  if (member("version") != kStateVersion || !found.is_object() || !done.is_number_integer() || !lines.is_array())
    return corrupt("{}: no state of a run that this version wrote; remove the folder to begin anew",
                   state_path.string());
  s.done = done.get<int64_t>();
  s.lines = lines;
  s.settled = member("settled");
  if (s.done < 0) return corrupt("{}: {} shards are done", state_path.string(), s.done);
  if (found != fingerprint && s.lines.empty() && s.settled.is_null()) {
    HEARTH_TRY(folder.begin_anew(files));
    return folder;
  }
  if (found != fingerprint)
    return invalid_argument("{} holds an unfinished run of other arguments: {}; repeat those, or name another folder",
                            dir.string(), difference(found, fingerprint));
  if (s.done > shards) return corrupt("{}: {} shards of {} are done", state_path.string(), s.done, shards);
  // Half-written shards of a run that was killed.
  for (const fs::path& file : files)
    if (const auto shard = shard_named(file.filename().string()); shard && shard->temporary) fs::remove(file, error);
  for (int64_t i = 0; i < s.done; ++i)
    if (!fs::exists(folder.shard_path(i), error))
      return not_found("{} is missing, which {} says is done; remove the folder to begin anew",
                       folder.shard_path(i).string(), kQuantizeStateFile);
  return folder;
}

// Nothing was encoded yet: what lies there is a copy of the embedding at most.
Status OutputFolder::begin_anew(std::span<const fs::path> files) {
  for (const fs::path& file : files) {
    const auto shard = shard_named(file.filename().string());
    if (!shard || (!shard->temporary && shard->number > state_->done)) continue;
    std::error_code error;
    fs::remove(file, error);
    if (error) return io_error(error.value(), "remove", file);
  }
  state_->done = 0;
  return save_state();
}

Status OutputFolder::save_state() {
  const ordered_json state = {{"version", kStateVersion},
                              {"fingerprint", state_->fingerprint},
                              {"shards_done", state_->done},
                              {"settled", state_->settled},
                              {"lines", state_->lines}};
  return write_text_file(state_->dir / kQuantizeStateFile, state.dump(1) + "\n");
}

Status OutputFolder::write_shard(std::span<const StoredTensor> tensors, const ordered_json& lines) {
  HEARTH_CHECK(state_->done < state_->shards, "shard {} of {}", state_->done, state_->shards);
  std::vector<TensorData> data;
  for (const StoredTensor& tensor : tensors) data.push_back({tensor.spec, tensor.bytes});
  HEARTH_TRY(write_safetensors(shard_path(state_->done), data, {{"format", "pt"}}));
  ++state_->done;
  for (const ordered_json& line : lines) state_->lines.push_back(line);
  return save_state();
}

Status OutputFolder::finish(const fs::path& source, const ordered_json& config) {
  HEARTH_CHECK(state_->done == state_->shards, "{} shards of {}", state_->done, state_->shards);
  const fs::path& dir = state_->dir;
  ordered_json weight_map = ordered_json::object();
  int64_t total = 0;
  for (int64_t i = 0; i < state_->shards; ++i) {
    HEARTH_TRY_ASSIGN(const SafetensorsFile file, SafetensorsFile::open(shard_path(i)));
    for (const TensorEntry& entry : file.tensors()) {
      weight_map[entry.name] = shard_path(i).filename().string();
      total += entry.size_bytes;
    }
  }
  const ordered_json index = {{"metadata", {{"total_size", total}}}, {"weight_map", std::move(weight_map)}};
  HEARTH_TRY(write_text_file(dir / "model.safetensors.index.json", index.dump(2) + "\n"));
  HEARTH_TRY(copy_extras(source, dir));
  std::string report;
  for (const ordered_json& line : state_->lines) report += line.dump() + "\n";
  HEARTH_TRY(write_text_file(dir / kQuantizeReportFile, report));
  HEARTH_TRY(write_text_file(dir / "config.json", config.dump(2) + "\n"));
  std::error_code error;
  fs::remove(dir / kQuantizeStateFile, error);
  if (error) return io_error(error.value(), "remove", dir / kQuantizeStateFile);
  return {};
}

}  // namespace hearth
