// SPDX-License-Identifier: Apache-2.0
// hearth chat against a server with OpenAI's API. The main thread.
#pragma once

#include <memory>
#include <string>

#include "hearth/base/result.h"
#include "hearth/cli/dialogue.h"
#include "hearth/cli/options.h"

namespace hearth {

struct RemoteChatSettings {
  std::string base_url, model, api_key;
};

// Asks the server for its models and takes `settings.model`, or its only one.
Result<std::unique_ptr<ChatPartner>> connect_chat(const RemoteChatSettings& settings, const SamplingSettings& sampling,
                                                  bool quiet);

}  // namespace hearth
