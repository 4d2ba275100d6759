// SPDX-License-Identifier: Apache-2.0
#include "hearth/checkpoint/safetensors_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <set>
#include <string_view>

#include "hearth/base/log.h"
#include "hearth/checkpoint/file.h"
#include "hearth/checkpoint/quote.h"
#include "hearth/checkpoint/safetensors.h"

namespace hearth {
namespace {

namespace fs = std::filesystem;

struct Placed {
  int64_t offset_bytes = 0;  // from the beginning of the data
  int64_t size_bytes = 0;
};

struct Layout {
  std::string header;  // length, JSON and padding: all before the data
  std::vector<Placed> tensors;
  int64_t data_bytes = 0;
};

Result<std::string> json_string(std::string_view text) {
  try {
    return nlohmann::json(text).dump();
  } catch (const nlohmann::json::exception&) {
    return invalid_argument("{} is not UTF-8", quote_name(text));
  }
}

Result<int64_t> size_of(const TensorSpec& spec) {
  if (!safetensors_dtype_name(spec.dtype)) {
    return invalid_argument("tensor {}: safetensors has no dtype {}", quote_name(spec.name), dtype_name(spec.dtype));
  }
  int64_t count = 1, bits = 0;
  bool fits = true;
  for (int i = 0; i < spec.shape.rank(); ++i) {
    if (spec.shape[i] < 0) {
      return invalid_argument("tensor {}: shape {} has a negative dimension", quote_name(spec.name),
                              to_string(spec.shape));
    }
    fits = fits && !__builtin_mul_overflow(count, spec.shape[i], &count);
  }
  if (!fits || __builtin_mul_overflow(count, dtype_bits(spec.dtype), &bits)) {
    return invalid_argument("tensor {}: shape {} has more bytes than 2^63", quote_name(spec.name),
                            to_string(spec.shape));
  }
  return dtype_bytes(spec.dtype, count);
}

Result<Layout> lay_out(std::span<const TensorSpec> specs, const std::map<std::string, std::string>& metadata) {
  Layout layout;
  layout.tensors.resize(specs.size());
  std::set<std::string_view> names = {"__metadata__"};
  for (const TensorSpec& spec : specs) {
    if (!names.insert(spec.name).second) {
      return invalid_argument("tensor {} is {}", quote_name(spec.name),
                              spec.name == "__metadata__" ? "a reserved name" : "given twice");
    }
  }
  std::vector<size_t> order(specs.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::ranges::stable_sort(order,
                           [&](size_t a, size_t b) { return dtype_bits(specs[a].dtype) > dtype_bits(specs[b].dtype); });

  std::string json = "{";
  const auto separate = [&] { json += json.size() == 1 ? "" : ","; };
  if (!metadata.empty()) {
    json += "\"__metadata__\":{";
    for (auto it = metadata.begin(); it != metadata.end(); ++it) {
      HEARTH_TRY_ASSIGN(const std::string key, json_string(it->first));
      HEARTH_TRY_ASSIGN(const std::string value, json_string(it->second));
      json += fmt::format("{}{}:{}", it == metadata.begin() ? "" : ",", key, value);
    }
    json += "}";
  }
  for (const size_t i : order) {
    const TensorSpec& spec = specs[i];
    Placed& placed = layout.tensors[i];
    HEARTH_TRY_ASSIGN(placed.size_bytes, size_of(spec));
    placed.offset_bytes = layout.data_bytes;
    if (__builtin_add_overflow(layout.data_bytes, placed.size_bytes, &layout.data_bytes)) {
      return invalid_argument("tensor {}: the file has more bytes than 2^63", quote_name(spec.name));
    }
    std::string dims;
    for (int d = 0; d < spec.shape.rank(); ++d) dims += fmt::format("{}{}", d == 0 ? "" : ",", spec.shape[d]);
    HEARTH_TRY_ASSIGN(const std::string name, json_string(spec.name));
    separate();
    json += fmt::format(R"({}:{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})", name,
                        *safetensors_dtype_name(spec.dtype), dims, placed.offset_bytes, layout.data_bytes);
  }
  json += "}";
  // Data begins at a multiple of 8, the largest element.
  json.resize((json.size() + 7) / 8 * 8, ' ');
  if (static_cast<int64_t>(json.size()) > kMaxSafetensorsHeaderBytes) {
    return invalid_argument("header of {} bytes; at most {} are allowed", json.size(), kMaxSafetensorsHeaderBytes);
  }
  for (size_t i = 0; i < 8; ++i) layout.header += static_cast<char>(json.size() >> (8 * i) & 0xFF);
  layout.header += json;
  return layout;
}

// Writes all of `bytes` at `offset`; 0 or errno.
int write_fully(int fd, std::span<const std::byte> bytes, int64_t offset) {
  while (!bytes.empty()) {
    const ssize_t written = ::pwrite(fd, bytes.data(), bytes.size(), offset);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return errno;
    bytes = bytes.subspan(static_cast<size_t>(written));
    offset += written;
  }
  return 0;
}

// Brings a rename in `dir` to the disk. Some file systems cannot sync folders: the file is there all the same.
void sync_folder(const fs::path& dir) {
  const int fd = ::open(dir.empty() ? "." : dir.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return;
  (void)::fsync(fd);
  ::close(fd);
}

}  // namespace

struct SafetensorsWriter::State {
  fs::path path;
  fs::path temporary;  // empty once renamed
  int fd = -1;
  std::vector<Placed> tensors;
  std::vector<std::string> names;
  std::vector<bool> written;
  int64_t data_begin = 0;

  ~State() {
    if (fd >= 0) ::close(fd);
    if (!temporary.empty() && ::unlink(temporary.c_str()) != 0) {
      spdlog::warn("cannot remove {}: {}", temporary.string(), std::generic_category().message(errno));
    }
  }
};

SafetensorsWriter::SafetensorsWriter(std::unique_ptr<State> state) : state_(std::move(state)) {}
SafetensorsWriter::~SafetensorsWriter() = default;
SafetensorsWriter::SafetensorsWriter(SafetensorsWriter&&) noexcept = default;
SafetensorsWriter& SafetensorsWriter::operator=(SafetensorsWriter&&) noexcept = default;

Result<SafetensorsWriter> SafetensorsWriter::create(const fs::path& path, std::span<const TensorSpec> tensors,
                                                    const std::map<std::string, std::string>& metadata) {
  HEARTH_TRY_ASSIGN(Layout layout, lay_out(tensors, metadata).with_context(path.string()));
  std::error_code ignored;
  if (fs::is_directory(path, ignored)) return invalid_argument("{} is a folder; wanted a file", path.string());

  auto state = std::make_unique<State>();
  state->path = path;
  static std::atomic<int> counter{0};
  for (int attempt = 0; state->fd < 0; ++attempt) {
    fs::path temporary = path;
    temporary += fmt::format(".{}-{}.tmp", ::getpid(), counter.fetch_add(1, std::memory_order_relaxed));
    state->fd = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (state->fd >= 0) state->temporary = std::move(temporary);
    // EEXIST: left behind by a process of the same id.
    if (state->fd < 0 && (errno != EEXIST || attempt == 1000)) return io_error(errno, "create", temporary);
  }
  state->tensors = std::move(layout.tensors);
  for (const TensorSpec& spec : tensors) state->names.push_back(spec.name);
  state->written.resize(tensors.size());
  state->data_begin = static_cast<int64_t>(layout.header.size());
  // A full disk shows here, not hours later. Where reserving is not supported the writes will tell.
  int64_t file_bytes = 0;
  if (__builtin_add_overflow(state->data_begin, layout.data_bytes, &file_bytes)) {
    return invalid_argument("{}: the file has more bytes than 2^63", path.string());
  }
  if (::fallocate(state->fd, 0, 0, file_bytes) != 0 && errno != EOPNOTSUPP && errno != ENOSYS && errno != EINTR) {
    return io_error(errno, fmt::format("reserve {} bytes for", file_bytes), path);
  }
  if (const int error = write_fully(state->fd, std::as_bytes(std::span(layout.header)), 0)) {
    return io_error(error, "write", path);
  }
  return SafetensorsWriter(std::move(state));
}

Status SafetensorsWriter::write(int64_t index, std::span<const std::byte> bytes) {
  HEARTH_CHECK(state_ && state_->fd >= 0, "write() after finish()");
  HEARTH_CHECK(index >= 0 && index < std::ssize(state_->tensors), "tensor {} of {}", index, state_->tensors.size());
  const auto i = static_cast<size_t>(index);
  const Placed& placed = state_->tensors[i];
  if (static_cast<int64_t>(bytes.size()) != placed.size_bytes) {
    return invalid_argument("{}: tensor {} is given {} bytes; its shape needs {}", state_->path.string(),
                            quote_name(state_->names[i]), bytes.size(), placed.size_bytes);
  }
  if (const int error = write_fully(state_->fd, bytes, state_->data_begin + placed.offset_bytes)) {
    return io_error(error, fmt::format("write tensor {} to", quote_name(state_->names[i])), state_->path);
  }
  state_->written[i] = true;
  return {};
}

Status SafetensorsWriter::finish() {
  HEARTH_CHECK(state_ && state_->fd >= 0, "finish() called twice");
  for (size_t i = 0; i < state_->written.size(); ++i) {
    HEARTH_CHECK(state_->written[i], "finish() before tensor {} was written", state_->names[i]);
  }
  State& state = *state_;
  if (::fsync(state.fd) != 0) return io_error(errno, "write", state.path);
  const int fd = std::exchange(state.fd, -1);
  if (::close(fd) != 0 && errno != EINTR) return io_error(errno, "write", state.path);
  if (::rename(state.temporary.c_str(), state.path.c_str()) != 0) return io_error(errno, "create", state.path);
  state.temporary.clear();
  sync_folder(state.path.parent_path());
  return {};
}

Status write_safetensors(const fs::path& path, std::span<const TensorData> tensors,
                         const std::map<std::string, std::string>& metadata) {
  std::vector<TensorSpec> specs;
  specs.reserve(tensors.size());
  for (const TensorData& tensor : tensors) specs.push_back(tensor.spec);
  HEARTH_TRY_ASSIGN(SafetensorsWriter writer, SafetensorsWriter::create(path, specs, metadata));
  for (size_t i = 0; i < tensors.size(); ++i) HEARTH_TRY(writer.write(static_cast<int64_t>(i), tensors[i].bytes));
  return writer.finish();
}

}  // namespace hearth
