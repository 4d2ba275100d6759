// SPDX-License-Identifier: Apache-2.0
#include "hearth/checkpoint/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

namespace hearth {
namespace {

ErrorCode code_of(int error_number) {
  switch (error_number) {
    case ENOENT:
    case ENOTDIR: return ErrorCode::kNotFound;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
    case EMFILE:
    case ENFILE:
    case ENOMEM: return ErrorCode::kResourceExhausted;
    case EACCES:
    case EPERM:
    case EROFS:
    case EISDIR:
    case ELOOP:
    case ENAMETOOLONG:
    case EINVAL: return ErrorCode::kInvalidArgument;
    default: return ErrorCode::kUnavailable;
  }
}

}  // namespace

Error io_error(int error_number, std::string_view action, const std::filesystem::path& path, SourceLoc where) {
  return {code_of(error_number),
          fmt::format("cannot {} {}: {}", action, path.string(), std::generic_category().message(error_number)), where};
}

Result<File> File::open(const std::filesystem::path& path) {
  // O_NONBLOCK: opening a pipe without a writer would wait for ever.
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return io_error(errno, "open", path);
  File file(path, fd, 0);
  struct stat info;
  if (::fstat(fd, &info) != 0) return io_error(errno, "stat", path);
  if (!S_ISREG(info.st_mode)) {
    return invalid_argument("{} is {}; wanted a regular file", path.string(),
                            S_ISDIR(info.st_mode) ? "a folder" : "a pipe or a device");
  }
  file.size_bytes_ = info.st_size;
  return file;
}

File::~File() {
  if (fd_ >= 0) ::close(fd_);
}

Status File::read_at(int64_t offset_bytes, std::span<std::byte> dst) const {
  const auto outcome = detail::read_fully(dst, offset_bytes, [&](std::span<std::byte> part, int64_t offset) {
    return ::pread(fd_, part.data(), part.size(), offset);
  });
  if (outcome.error_number != 0) return io_error(outcome.error_number, "read", path_);
  const auto wanted = static_cast<int64_t>(dst.size());
  if (outcome.bytes < wanted) {
    return corrupt("{}: ends at byte {}, wanted bytes up to {}; it had {} when it was opened", path_.string(),
                   offset_bytes + outcome.bytes, offset_bytes + wanted, size_bytes_);
  }
  return {};
}

Result<std::string> read_text_file(const std::filesystem::path& path, int64_t max_bytes) {
  HEARTH_TRY_ASSIGN(const File file, File::open(path));
  if (file.size_bytes() > max_bytes) {
    return resource_exhausted("{} has {} bytes; at most {} are read", path.string(), file.size_bytes(), max_bytes);
  }
  std::string text(static_cast<size_t>(file.size_bytes()), '\0');
  HEARTH_TRY(file.read_at(0, std::as_writable_bytes(std::span(text))));
  return text;
}

namespace detail {

ReadOutcome read_fully(std::span<std::byte> dst, int64_t offset_bytes,
                       FunctionRef<ssize_t(std::span<std::byte> dst, int64_t offset_bytes)> read_some) {
  ReadOutcome outcome;
  while (!dst.empty()) {
    const ssize_t got = read_some(dst, offset_bytes + outcome.bytes);
    if (got < 0) {
      if (errno == EINTR) continue;
      outcome.error_number = errno;
      return outcome;
    }
    if (got == 0) return outcome;
    outcome.bytes += got;
    dst = dst.subspan(static_cast<size_t>(got));
  }
  return outcome;
}

}  // namespace detail

}  // namespace hearth
