// SPDX-License-Identifier: Apache-2.0
#include "hearth/base/shared_library.h"

#include <dlfcn.h>

namespace hearth {

Result<SharedLibrary> SharedLibrary::open(std::initializer_list<const char*> names, std::string_view purpose) {
  std::string tried;
  for (const char* name : names) {
    if (void* handle = dlopen(name, RTLD_NOW | RTLD_LOCAL)) return SharedLibrary(name, handle);
    const char* why = dlerror();
    tried += fmt::format("{}{}", tried.empty() ? "" : "; ", why ? why : name);
  }
  return unavailable("{} needs a library that cannot be opened: {}", purpose, tried);
}

Result<void*> SharedLibrary::function(const char* symbol) const {
  dlerror();
  void* address = dlsym(handle_, symbol);
  if (!address) {
    const char* why = dlerror();
    return unavailable("{} has no function {}: {}", name_, symbol, why ? why : "its address is null");
  }
  return address;
}

}  // namespace hearth
