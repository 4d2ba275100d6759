// SPDX-License-Identifier: Apache-2.0
// hearth serve: the server as a process: settings, signals, pid file, the line that says where it is.
//   I1. The first SIGTERM or SIGINT lets answers in progress end, for drain-timeout; the second ends the
//       process at once, as does the first while the models still load.
//   I2. A lost device ends it too, with the exit code of DeviceLost, after the requests have had that as their answer.
// Signals are blocked in every thread and taken by one of its own.
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <mutex>
#include <thread>

#include "hearth/base/log.h"
#include "hearth/base/progress.h"
#include "hearth/cli/commands.h"
#include "hearth/cli/serve_settings.h"
#include "hearth/cli/terminal.h"

namespace hearth {
namespace {

constexpr const char* kExamples =
    "Examples:\n"
    "  hearth serve models/fable-13m\n"
    "  hearth serve --model chat=Qwen/Qwen2.5-0.5B-Instruct --model stories=models/fable-13m --port 9000\n"
    "  hearth serve --config hearth.toml --show-config\n"
    "\n"
    "Serves the OpenAI API (docs/guides/api.md) and prints one line with its address when it is ready. Ctrl-C or\n"
    "SIGTERM lets answers in progress end, a second one ends it at once. Every setting is also a variable of the\n"
    "environment and a key of the file that --config or HEARTH_CONFIG names (docs/guides/settings.md); none is read\n"
    "unasked. A flag counts before a variable, a variable before the file.\n";

// How often the server's device is looked at, and what answers may take once it is lost: they are errors, all ready.
constexpr std::chrono::milliseconds kDeviceTick{200};
constexpr int64_t kLostDrainMs = 2000;

struct ServeCommand {
  ServeFlags flags;
  bool show_config = false;
  bool print_settings_doc = false;
  const CLI::Option* log_level = nullptr;  // of `hearth` itself, for all commands
};

// The file with our process number; gone when this is. Any thread.
class PidFile {
 public:
  PidFile() = default;
  ~PidFile() { remove(); }
  PidFile(const PidFile&) = delete;
  PidFile& operator=(const PidFile&) = delete;

  Status write(const std::string& path) {
    if (path.empty()) return {};
    // Held while the file is made: a signal that ends the process waits for it, and none is made after that.
    const std::lock_guard lock(mutex_);
    if (removed_) return cancelled("pid-file: the process ends");
    // A file that a killed server left behind is taken over; its number may belong to another program by now.
    pid_t owner = 0;
    std::string program;
    if (std::ifstream(path) >> owner && owner != getpid() &&
        std::getline(std::ifstream(fmt::format("/proc/{}/comm", owner)), program) && program == "hearth")
      return unavailable("pid-file: {} belongs to a server that runs (pid {}); wanted a file of our own", path, owner);
    const std::string temporary = fmt::format("{}.{}", path, getpid());
    {
      std::ofstream file(temporary, std::ios::trunc);
      file << getpid() << '\n';
      file.close();
      if (!file) return unavailable("pid-file: cannot write {}: {}", temporary, std::strerror(errno));
    }
    if (std::rename(temporary.c_str(), path.c_str()) != 0) {
      const int error = errno;
      ::unlink(temporary.c_str());
      return unavailable("pid-file: cannot write {}: {}", path, std::strerror(error));
    }
    path_ = path;
    return {};
  }
  // Also from the signal thread, just before it ends the process.
  void remove() {
    const std::lock_guard lock(mutex_);
    removed_ = true;
    if (!path_.empty()) ::unlink(path_.c_str());
  }

 private:
  std::mutex mutex_;
  std::string path_;      // guarded by mutex_; empty: there is no file of ours
  bool removed_ = false;  // guarded by mutex_
};

// Takes SIGINT and SIGTERM from the moment it is made; threads made later inherit that they do not.
class Signals {
 public:
  explicit Signals(PidFile& pid_file) : pid_file_(pid_file) {
    sigemptyset(&set_);
    sigaddset(&set_, SIGINT);
    sigaddset(&set_, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &set_, &before_);
    thread_ = std::thread([this] { work(); });
  }
  ~Signals() {
    stopping_.store(true);
    thread_.join();
    pthread_sigmask(SIG_SETMASK, &before_, nullptr);
  }
  Signals(const Signals&) = delete;
  Signals& operator=(const Signals&) = delete;

  // From now on the first signal is wait()'s.
  void arm() {
    const std::lock_guard lock(mutex_);
    armed_ = true;
  }
  // Until the first signal, or a while. Whether it came.
  bool wait(std::chrono::milliseconds at_most) {
    std::unique_lock lock(mutex_);
    return came_.wait_for(lock, at_most, [this] { return signalled_; });
  }

 private:
  void work() {
    constexpr timespec kTick = {.tv_sec = 0, .tv_nsec = 100'000'000};
    while (!stopping_.load()) {
      const int signal = sigtimedwait(&set_, nullptr, &kTick);
      if (signal < 0) continue;
      const std::lock_guard lock(mutex_);
      if (!armed_ || signalled_) {
        pid_file_.remove();
        std::_Exit(128 + signal);
      }
      signalled_ = true;
      came_.notify_all();
    }
  }

  PidFile& pid_file_;
  sigset_t set_{}, before_{};
  std::atomic<bool> stopping_{false};
  std::mutex mutex_;
  std::condition_variable came_;
  bool armed_ = false;      // guarded by mutex_
  bool signalled_ = false;  // guarded by mutex_
  std::thread thread_;
};

// The bytes of one model after the other.
class LoadingProgress {
 public:
  void update(int64_t done, int64_t total) {
    if (done == 0) progress_.reset();  // of a load that failed
    if (!progress_) progress_ = std::make_unique<Progress>("loading", total, Progress::Unit::kBytes);
    progress_->update(done);
    if (done < total) return;
    progress_->finish();
    progress_.reset();
  }

 private:
  std::unique_ptr<Progress> progress_;
};

std::string url_of(const std::string& address, uint16_t port) {
  const bool v6 = address.find(':') != std::string::npos;
  return v6 ? fmt::format("http://[{}]:{}", address, port) : fmt::format("http://{}:{}", address, port);
}

Result<int> run_server(const ServeSettings& settings, ServeOptions options) {
  PidFile pid_file;
  std::string models;
  for (const ModelSource& model : options.models) models += (models.empty() ? "" : ", ") + model.names.front();
  if (models.empty()) models = "no model yet";
  const std::string address = options.address;
  LoadingProgress progress;
  options.load.progress = [&](int64_t done, int64_t total) { progress.update(done, total); };

  Signals signals(pid_file);
  HEARTH_TRY_ASSIGN(const std::unique_ptr<Server> server, Server::create(std::move(options)));
  HEARTH_TRY(pid_file.write(settings.pid_file));
  HEARTH_TRY(server->start());
  signals.arm();
  HEARTH_TRY(write_stdout(
      fmt::format("hearth: serving {} on {} (pid {})\n", models, url_of(address, server->port()), getpid())));
  while (!signals.wait(kDeviceTick)) {
    const Status device = server->device();
    if (device) continue;
    write_stderr(fmt::format("hearth: stopping: {}", device.error().message));
    server->drain(std::min(settings.drain_timeout_ms, kLostDrainMs));
    return device.error();
  }
  write_stderr(fmt::format("hearth: stopping; answers in progress have {:g} s, a second signal ends them",
                           static_cast<double>(settings.drain_timeout_ms) * 1e-3));
  if (server->drain(settings.drain_timeout_ms)) return 0;
  return deadline_exceeded("answers in progress were ended after {:g} s (--drain-timeout)",
                           static_cast<double>(settings.drain_timeout_ms) * 1e-3);
}

Result<int> run_serve(const ServeCommand& command) {
  if (command.print_settings_doc) {
    HEARTH_TRY(write_stdout(settings_page()));
    return 0;
  }
  HEARTH_TRY_ASSIGN(const EffectiveSettings settings, effective_settings(command.flags, Environment::process()));
  if (command.show_config) {
    HEARTH_TRY(write_stdout(show_settings(settings)));
    return 0;
  }
  const auto row = std::ranges::find(serve_settings(), "log-level", &ServeSetting::key) - serve_settings().begin();
  // `hearth --log-level debug serve` is a choice too, and app.cpp has made it already.
  if (command.log_level->count() == 0 || settings.origins[static_cast<size_t>(row)] != "default")
    HEARTH_TRY(init_log(settings.values.log_level));
  size_t variables = 0;
  while (environ[variables] != nullptr) ++variables;
  for (const std::string& name : unknown_variables({environ, variables}))
    spdlog::warn("{} is no setting of the server and has no effect", name);
  HEARTH_TRY_ASSIGN(ServeOptions options, make_serve_options(settings.values));
  return run_server(settings.values, std::move(options));
}

}  // namespace

Command add_serve_command(CLI::App& app) {
  const auto s = std::make_shared<ServeCommand>();
  s->log_level = app.get_option("--log-level");
  CLI::App* command = app.add_subcommand("serve", "Serves models over the OpenAI API.");
  command->footer(kExamples);
  command
      ->add_option("MODEL", s->flags.models,
                   "Models to serve, each a folder in the Hugging Face layout, org/name in its cache, or NAME=PATH.")
      ->type_name("");
  command->add_option("--config", s->flags.config, "A TOML file of settings (default: HEARTH_CONFIG's, else none).")
      ->type_name("FILE");
  command->add_flag("--show-config", s->show_config, "Prints the settings in force and where they come from.");
  command->add_flag("--print-settings-doc", s->print_settings_doc)->group("");
  add_serve_flags(*command, s->flags);
  return {command, [s] { return run_serve(*s); }};
}

}  // namespace hearth
