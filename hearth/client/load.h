// SPDX-License-Identifier: Apache-2.0
// An open-loop load test: requests leave at the times of a plan, whatever the server does, and each streamed answer
// is timed token by token. Times are seconds since the start of the test, taken when a read returns.
//   I1. A request's latency counts from when it was due, not from when it could be sent: a server (or a limit of
//       requests in flight) that makes requests wait cannot hide it (coordinated omission).
//   I2. Every request of the plan has a record, and a request that failed says why.
// The thread that runs the io_context.
#pragma once

#include <atomic>
#include <boost/asio/io_context.hpp>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "hearth/client/http_client.h"
#include "hearth/client/workload.h"

namespace hearth {

struct RequestRecord {
  enum class Outcome { kNotSent, kDone, kFailed, kCancelled };
  Outcome outcome = Outcome::kNotSent;
  int64_t model = 0;  // of the plan's
  double due_s = 0;
  double sent_s = 0;   // when the call began, its connection included
  double first_s = 0;  // first and last event with a token; REQUIRES: events > 0
  double last_s = 0;
  double end_s = 0;             // when the answer was complete
  int64_t events = 0;           // with tokens
  std::vector<float> gaps_s;    // between events with tokens, one less than those
  int64_t prompt_tokens = 0;    // as the server counts, else as planned
  int64_t output_tokens = 0;    // as the server counts, else one for each event
  bool server_counted = false;  // the answer had a usage event
  std::string error;            // "HTTP 429: ..."
  std::string error_kind;       // "HTTP 429": what errors are counted by
};

struct LoadSettings {
  std::string target = "/v1/completions";
  int64_t max_concurrency = 0;  // requests in flight; the others wait in the order of the plan; 0: no limit
  // What has not ended so long after the last request was due fails: it is as good as lost. None: it is waited for.
  std::optional<double> drain_s;
  // The body of request `index` of the plan; called when it is sent.
  std::function<std::string(size_t index)> make_body;
  // After each request that ended, with how many have.
  std::function<void(int64_t ended)> on_progress;
  // After each request that ended, whatever became of it.
  std::function<void(size_t index, const RequestRecord& record)> on_ended;
};

struct LoadResult {
  std::vector<RequestRecord> records;
  double seconds = 0;  // until the last answer was complete
  int64_t peak_in_flight = 0;
  int64_t connections = 0;  // opened
  bool interrupted = false;
};

// Runs the plan. Once `stop` is true nothing more is sent and what is under way is cancelled.
LoadResult run_load(boost::asio::io_context& context, HttpClient& client, std::span<const PlannedRequest> plan,
                    const LoadSettings& settings, const std::atomic<bool>& stop);

}  // namespace hearth
