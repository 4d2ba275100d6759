// SPDX-License-Identifier: Apache-2.0
// SharedLibrary: a library that is opened when it is first needed (cuBLASLt, NCCL, oneDNN), so that the
// program starts on machines that lack it. Stays open for the life of the process: pointers to its
// functions never dangle. Any thread.
#pragma once

#include <initializer_list>
#include <string>

#include "hearth/base/result.h"

namespace hearth {

class SharedLibrary {
 public:
  // Opens the first of `names` that the loader finds. Unavailable where there is none, with the names
  // tried and what each of them said; `purpose` says what it is wanted for.
  static Result<SharedLibrary> open(std::initializer_list<const char*> names, std::string_view purpose);

  const std::string& name() const { return name_; }

  // The address of function `symbol`, for the caller to cast to its type. Unavailable where the library
  // does not have it.
  Result<void*> function(const char* symbol) const;

 private:
  SharedLibrary(std::string name, void* handle) : name_(std::move(name)), handle_(handle) {}

  std::string name_;
  void* handle_;
};

}  // namespace hearth
