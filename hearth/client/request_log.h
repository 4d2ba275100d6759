// SPDX-License-Identifier: Apache-2.0
// A line of JSON for each request of a load test, written when the request has ended and in one write, so that the file
// holds whole lines whenever the run is cut off. docs/formats/requests.md has the fields. One thread.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "hearth/base/result.h"
#include "hearth/client/load.h"
#include "hearth/schedule/slo.h"

namespace hearth {

// What a line says beside its record.
struct RequestLogTerms {
  std::string load;  // the load file's name; empty: none
  uint64_t seed = 0;
  std::vector<std::string> models;
  std::vector<Slo> slos;  // by model; empty: none
  double warmup_s = 0;    // requests due before it are not judged
};

// `planned`: what was asked for. Without a newline.
std::string request_line(const RequestLogTerms& terms, size_t index, const PlannedRequest& planned,
                         const RequestRecord& record);

class RequestLog {
 public:
  // A file that is there is replaced. Unavailable.
  static Result<std::unique_ptr<RequestLog>> create(const std::string& path);
  ~RequestLog();
  RequestLog(const RequestLog&) = delete;
  RequestLog& operator=(const RequestLog&) = delete;

  // What fails is told by status(), once and for all: nothing is written after it.
  void write(const std::string& line);
  // Unavailable: something could not be written.
  const Status& status() const { return status_; }

 private:
  RequestLog(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}
  const std::string path_;
  const int fd_;
  Status status_;
};

}  // namespace hearth
