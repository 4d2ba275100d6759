// SPDX-License-Identifier: Apache-2.0
// File: a regular file open for reading, by pread into the caller's memory and never by mmap, so that no
// change of the file can signal the process. Move-only; any number of threads may read.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <utility>

#include "hearth/base/function_ref.h"
#include "hearth/base/result.h"

namespace hearth {

// The Error of a failed system call: `action` ("open", "read") of `path` failed with `error_number`.
Error io_error(int error_number, std::string_view action, const std::filesystem::path& path,
               SourceLoc where = SourceLoc::current());

class File {
 public:
  // NotFound where there is none; InvalidArgument for a folder, a pipe or a device.
  static Result<File> open(const std::filesystem::path& path);
  ~File();
  File(File&& other) noexcept
      : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)), size_bytes_(other.size_bytes_) {}
  File& operator=(File&& other) noexcept {
    std::swap(path_, other.path_);
    std::swap(fd_, other.fd_);
    std::swap(size_bytes_, other.size_bytes_);
    return *this;
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  const std::filesystem::path& path() const { return path_; }
  // The size when the file was opened.
  int64_t size_bytes() const { return size_bytes_; }

  // Fills dst from byte `offset_bytes` on. Corrupt where the file ends before.
  Status read_at(int64_t offset_bytes, std::span<std::byte> dst) const;

 private:
  File(std::filesystem::path path, int fd, int64_t size_bytes)
      : path_(std::move(path)), fd_(fd), size_bytes_(size_bytes) {}

  std::filesystem::path path_;
  int fd_ = -1;
  int64_t size_bytes_ = 0;
};

// The whole file as text. ResourceExhausted above `max_bytes`.
Result<std::string> read_text_file(const std::filesystem::path& path, int64_t max_bytes);

namespace detail {
// Calls read_some(dst, offset) as pread would be called until dst is full: goes on after EINTR and short
// reads. Returns the bytes read, less than dst.size() at the end of the file; the error is errno's.
struct ReadOutcome {
  int64_t bytes = 0;
  int error_number = 0;
};
ReadOutcome read_fully(std::span<std::byte> dst, int64_t offset_bytes,
                       FunctionRef<ssize_t(std::span<std::byte> dst, int64_t offset_bytes)> read_some);
}  // namespace detail

}  // namespace hearth
