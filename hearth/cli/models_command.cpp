// SPDX-License-Identifier: Apache-2.0
// hearth models: the admin API of a running server from the command line. The main thread.
#include <boost/asio/io_context.hpp>
#include <nlohmann/json.hpp>

#include "hearth/checkpoint/quote.h"
#include "hearth/cli/commands.h"
#include "hearth/cli/options.h"
#include "hearth/cli/terminal.h"
#include "hearth/client/http_client.h"
#include "hearth/client/openai.h"

namespace hearth {
namespace {

constexpr const char* kExamples =
    "Examples:\n"
    "  hearth models status\n"
    "  hearth models load Qwen/Qwen2.5-0.5B-Instruct --name chat --wait\n"
    "  hearth models unload chat\n"
    "\n"
    "Speaks to the admin API of a server (docs/guides/admin.md), which was started with --admin-key or\n"
    "--admin-key-file; HEARTH_ADMIN_KEY is that key here, too.\n";

struct ModelsSettings {
  std::string action = "status", model;
  std::string url = "http://127.0.0.1:8000", key;
  std::string name, kv_cache_dtype;
  std::vector<std::string> aliases;
  std::optional<int64_t> max_model_len;
  std::optional<int64_t> deadline_ms;
  bool force = false, sleep_idle = false, wake_on_request = false, wait = false, json = false;
};

constexpr Setting<int64_t> kMaxModelLen{"--max-model-len", "N",      1,
                                        int64_t{1} << 31,  "tokens", "load: longest sequence (default: the server's)."};

constexpr Setting<int64_t> kDeadline{"--deadline-ms",
                                     "MS",
                                     0,
                                     int64_t{7} * 24 * 3600 * 1000,
                                     "milliseconds",
                                     "load, sleep, wake: how long it may wait for requests and memory."};

Result<nlohmann::json> body_of(const ModelsSettings& s) {
  nlohmann::json body = {{"model", s.model}, {"wait", s.wait}};
  if (s.deadline_ms && s.action == "unload")
    return invalid_argument("models unload: --deadline-ms is of load, sleep, wake");
  if (s.sleep_idle && s.action != "load" && s.action != "wake")
    return invalid_argument("models {}: --sleep-idle is of load and wake", s.action);
  if (s.wake_on_request && s.action != "sleep")
    return invalid_argument("models {}: --wake-on-request is of sleep", s.action);
  if (s.deadline_ms) body["deadline_ms"] = *s.deadline_ms;
  if (s.sleep_idle) body["sleep_idle"] = true;
  if (s.wake_on_request) body["wake_on_request"] = true;
  if (s.action != "load") {
    if (!s.name.empty() || !s.aliases.empty() || s.max_model_len || !s.kv_cache_dtype.empty())
      return invalid_argument("models {}: --name, --alias, --max-model-len and --kv-cache-dtype are of load", s.action);
    if (s.force && s.action != "unload") return invalid_argument("models {}: --force is of unload", s.action);
    if (s.force) body["force"] = true;
    return body;
  }
  if (s.force) return invalid_argument("models load: --force is of unload");
  if (!s.name.empty()) body["name"] = s.name;
  if (!s.aliases.empty()) body["aliases"] = s.aliases;
  if (s.max_model_len) body["max_model_len"] = *s.max_model_len;
  if (!s.kv_cache_dtype.empty()) body["kv_cache_dtype"] = s.kv_cache_dtype;
  return body;
}

double mib(const nlohmann::json& bytes) {
  return bytes.is_number() ? bytes.get<double>() / static_cast<double>(int64_t{1} << 20) : 0.0;
}

// A line for each model.
std::string status_table(const nlohmann::json& status) {
  std::string text = fmt::format("{:<32} {:<9} {:>12} {:>10} {:>8} {:>8}\n", "MODEL", "STATE", "WEIGHTS MiB", "KV MiB",
                                 "RUNNING", "WAITING");
  for (const nlohmann::json& m : status.value("models", nlohmann::json::array())) {
    const nlohmann::json kv = m.value("kv", nlohmann::json::object());
    text += fmt::format("{:<32} {:<9} {:>12.1f} {:>10.1f} {:>8} {:>8}\n", m.value("model", ""), m.value("state", ""),
                        mib(m.value("weight_bytes", nlohmann::json())), mib(kv.value("held_bytes", nlohmann::json())),
                        m.value("running", int64_t{0}), m.value("waiting", int64_t{0}));
    if (m.contains("error")) text += fmt::format("  {}\n", m["error"].value("message", ""));
  }
  return text;
}

Result<std::string> said(const ModelsSettings& s, const std::string& body) {
  if (s.json) return body + "\n";
  const nlohmann::json json = nlohmann::json::parse(body, nullptr, false);
  if (!json.is_object()) return corrupt("the server's answer is no JSON object");
  if (s.action == "status" && s.model.empty()) return status_table(json);
  if (s.action == "status") return json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
  std::string text = fmt::format("{}: {}\n", json.value("model", ""), json.value("state", ""));
  for (const nlohmann::json& slept : json.value("put_to_sleep", nlohmann::json::array()))
    if (slept.is_string()) text += fmt::format("  {} sleeps for it\n", slept.get<std::string>());
  return text;
}

Result<int> run_models(const ModelsSettings& s) {
  HEARTH_TRY_ASSIGN(const HttpUrl url, parse_http_url(s.url).with_context("--base-url"));
  HttpCall call{.method = "GET", .target = url.path + "/admin/status"};
  if (s.action == "status") {
    if (!s.model.empty()) call.target += "/" + s.model;
  } else {
    if (s.model.empty()) return invalid_argument("models {}: which model? wanted its name", s.action);
    HEARTH_TRY_ASSIGN(const nlohmann::json body, body_of(s));
    call = {.method = "POST", .target = url.path + "/admin/" + s.action, .body = body.dump()};
  }
  const InterruptGuard interrupt;
  boost::asio::io_context context(1);
  // A large model takes a while to load.
  HttpClientOptions options{.headers = authorization(s.key), .idle_timeout_ms = 3'600'000};
  HEARTH_TRY_ASSIGN(const std::unique_ptr<HttpClient> client, HttpClient::create(context, url, std::move(options)));
  HEARTH_TRY_ASSIGN(const Fetched answer, fetch(context, *client, std::move(call), interrupt.flag()));
  if (answer.head.status >= 300) return status_error(answer.head.status, answer.body);
  HEARTH_TRY_ASSIGN(const std::string text, said(s, answer.body));
  HEARTH_TRY(write_stdout(s.json ? text : escape_controls(text)));
  return 0;
}

}  // namespace

Command add_models_command(CLI::App& app) {
  const auto s = std::make_shared<ModelsSettings>();
  CLI::App* command = app.add_subcommand(
      "models", "Shows the models of a running server, loads and unloads them, sends them to sleep.");
  command->footer(kExamples)->fallthrough();
  command->add_option("ACTION", s->action, "status, load, unload, sleep or wake (default: status).")
      ->type_name("")
      ->check(CLI::IsMember({"status", "load", "unload", "sleep", "wake"}));
  command->add_option("MODEL", s->model, "A model's name; for load a folder or org/name, as the server sees it.")
      ->type_name("");
  add_text(*command, "--base-url", "URL", "The server (default: http://127.0.0.1:8000).", s->url);
  add_text(*command, "--admin-key", "KEY",
           "Sent as Authorization: Bearer KEY (default: the variable HEARTH_ADMIN_KEY).", s->key)
      ->envname("HEARTH_ADMIN_KEY");
  add_text(*command, "--name", "NAME", "load: what requests call the model (default: its own name).", s->name);
  add_texts(*command, "--alias", "NAME", "load: another name. May be repeated.", s->aliases);
  add_setting(*command, kMaxModelLen, s->max_model_len, "the server's");
  add_text(*command, "--kv-cache-dtype", "NAME", "load: format of keys and values (default: the server's).",
           s->kv_cache_dtype);
  command->add_flag("--force", s->force, "unload: ends the requests that run.");
  add_setting(*command, kDeadline, s->deadline_ms, "30 s for memory, none for requests");
  command->add_flag("--sleep-idle", s->sleep_idle, "load, wake: idle models sleep for it where there is no room.");
  command->add_flag("--wake-on-request", s->wake_on_request, "sleep: the next request for it wakes it.");
  command->add_flag("--wait", s->wait, "Returns when the model is ready, asleep or gone.");
  command->add_flag("--json", s->json, "The server's answer as it is.");
  return {command, [s] { return run_models(*s); }};
}

}  // namespace hearth
