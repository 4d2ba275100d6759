// SPDX-License-Identifier: Apache-2.0
#include "hearth/client/request_log.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "hearth/client/judge.h"

namespace hearth {
namespace {

using Json = nlohmann::ordered_json;
using Outcome = RequestRecord::Outcome;

const char* status_name(Outcome outcome) {
  switch (outcome) {
    case Outcome::kNotSent: return "not_sent";
    case Outcome::kDone: return "done";
    case Outcome::kFailed: return "failed";
    case Outcome::kCancelled: return "cancelled";
  }
  return "";
}

// Microseconds are what the clock is good for.
double rounded(double seconds) { return std::round(seconds * 1e6) / 1e6; }

}  // namespace

std::string request_line(const RequestLogTerms& terms, size_t index, const PlannedRequest& planned,
                         const RequestRecord& r) {
  const auto m = static_cast<size_t>(r.model);
  Json line = {{"index", index}, {"model", terms.models[m]}, {"status", status_name(r.outcome)}};
  if (!terms.load.empty()) line["load"] = terms.load;
  line["seed"] = terms.seed;
  line["arrival_s"] = rounded(r.due_s);
  if (r.outcome != Outcome::kNotSent) {
    line["sent_s"] = rounded(r.sent_s);
    if (r.events > 0) {
      line["first_s"] = rounded(r.first_s);
      line["last_s"] = rounded(r.last_s);
    }
    line["end_s"] = rounded(r.end_s);
  }
  line["input_tokens"] = planned.input_tokens;
  line["output_tokens"] = planned.output_tokens;
  if (r.outcome == Outcome::kDone) line["prompt_tokens"] = r.prompt_tokens;
  if (r.outcome != Outcome::kNotSent) {
    line["completion_tokens"] = r.output_tokens;
    line["events"] = r.events;
  }
  if (!terms.slos.empty() && r.due_s >= terms.warmup_s) {
    const SloCounts judged = judge(r, terms.slos[m]);
    if (judged.answers > 0) {
      line["attained"] = judged.attained > 0;
      line["first_late"] = judged.first_late > 0;
      line["pace_missed"] = judged.pace_missed > 0;
    }
  }
  if (!r.error.empty()) line["error"] = r.error;
  return line.dump(-1, ' ', false, Json::error_handler_t::replace);
}

Result<std::unique_ptr<RequestLog>> RequestLog::create(const std::string& path) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0666);
  if (fd < 0) return unavailable("cannot open {} for writing: {}", path, std::strerror(errno));
  return std::unique_ptr<RequestLog>(new RequestLog(path, fd));
}

RequestLog::~RequestLog() { ::close(fd_); }

void RequestLog::write(const std::string& line) {
  if (!status_) return;
  const std::string bytes = line + "\n";
  size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t wrote = ::write(fd_, bytes.data() + done, bytes.size() - done);
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote <= 0) {
      status_ = unavailable("cannot write to {}: {}", path_, std::strerror(errno));
      return;
    }
    done += static_cast<size_t>(wrote);
  }
}

}  // namespace hearth
