// SPDX-License-Identifier: Apache-2.0
// Whether an answer kept its targets, as its client saw it: by the code that the server counts with. It counts from when
// the request was due, so that a client that sends late cannot flatter the server.
#pragma once

#include "hearth/base/function_ref.h"
#include "hearth/client/load.h"
#include "hearth/schedule/attainment.h"

namespace hearth {

// All 0 for an answer that does not count: without targets, not sent, or cancelled before its first token was late.
SloCounts judge(const RequestRecord& record, const Slo& slo);

// The tokens of an answer over time: the server's count spread evenly over the events that brought them.
void for_each_event(const RequestRecord& record, FunctionRef<void(double at_s, double tokens)> take);

}  // namespace hearth
