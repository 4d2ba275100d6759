// SPDX-License-Identifier: Apache-2.0
// caught(): what a call returns, where what it throws is an Error. For the roots of threads, and for whatever of the
// standard library's has to be one request's or one model's error and not the process's end. Any thread.
#pragma once

#include <exception>
#include <new>
#include <type_traits>

#include "hearth/base/result.h"

namespace hearth {

// `call` returns a Status or a Result. ResourceExhausted: it threw bad_alloc; Internal: anything else.
template <class Call>
std::invoke_result_t<Call&> caught(Call&& call) noexcept {
  try {
    try {
      return call();
    } catch (const std::bad_alloc&) {
      throw;
    } catch (const std::exception& error) {
      return internal_error("something threw: {}", error.what());
    }
  } catch (const std::bad_alloc&) {
    return resource_exhausted("out of memory");  // short enough to need none
  } catch (...) {
    return internal_error("not an exception");
  }
}

}  // namespace hearth
