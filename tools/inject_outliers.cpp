// SPDX-License-Identifier: Apache-2.0
// hearth_inject_outliers MODEL_DIR OUT_DIR [--seed N] [--clustered N] [--scattered N] [--pairs N]: outliers.h.
#include <charconv>
#include <cstdio>
#include <cstring>

#include "tools/outliers.h"

namespace hearth {
namespace {

struct Args {
  std::vector<std::string> folders;
  OutlierOptions options;
};

Result<Args> parse(int argc, char** argv) {
  Args args;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (!word.starts_with("--")) {
      args.folders.push_back(word);
      continue;
    }
    int64_t value = 0;
    const char* const text = i + 1 < argc ? argv[++i] : "";
    const char* const end = text + std::strlen(text);
    const auto [stop, error] = std::from_chars(text, end, value);
    if (error != std::errc() || stop != end || value < 0)
      return invalid_argument("{} '{}': wanted a whole number from 0", word, text);
    if (word == "--seed")
      args.options.seed = static_cast<uint64_t>(value);
    else if (word == "--clustered")
      args.options.clustered = value;
    else if (word == "--scattered")
      args.options.scattered = value;
    else if (word == "--pairs")
      args.options.pairs = value;
    else
      return invalid_argument("unknown option {}; wanted --seed, --clustered, --scattered or --pairs", word);
  }
  if (args.folders.size() != 2) return invalid_argument("{} folders; wanted MODEL_DIR OUT_DIR", args.folders.size());
  return args;
}

Status run(int argc, char** argv) {
  HEARTH_TRY_ASSIGN(const Args args, parse(argc, argv));
  return inject_outliers(args.folders[0], args.folders[1], args.options);
}

}  // namespace
}  // namespace hearth

int main(int argc, char** argv) {
  const hearth::Status status = hearth::run(argc, argv);
  if (status) return 0;
  std::fprintf(stderr, "hearth_inject_outliers: error: %s\n", status.error().message.c_str());
  return hearth::exit_code(status.error().code);
}
