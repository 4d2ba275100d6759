// SPDX-License-Identifier: Apache-2.0
#include "hearth/cli/serve_settings.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>

namespace hearth {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;

using Variables = std::map<std::string, std::string>;

Environment environment(Variables variables) {
  return {[variables = std::move(variables)](const char* name) -> std::optional<std::string> {
    const auto found = variables.find(name);
    if (found == variables.end()) return std::nullopt;
    return found->second;
  }};
}

// The settings of a command line.
Result<EffectiveSettings> from(std::vector<std::string> words, Variables variables = {}) {
  CLI::App app;
  ServeFlags flags;
  app.add_option("MODEL", flags.models);
  app.add_option("--config", flags.config);
  add_serve_flags(app, flags);
  std::reverse(words.begin(), words.end());
  try {
    app.parse(words);
  } catch (const CLI::ParseError& error) {
    return invalid_argument("parse: {}", error.what());
  }
  return effective_settings(flags, environment(std::move(variables)));
}

std::string origin(const EffectiveSettings& settings, const std::string& name) {
  for (size_t i = 0; i < serve_settings().size(); ++i)
    if (serve_settings()[i].name() == name) return settings.origins[i];
  return "no such setting";
}

class ConfigFile : public testing::Test {
 protected:
  void SetUp() override {
    path_ = fs::path(testing::TempDir()) / ("hearth-settings-" + std::to_string(getpid()) + ".toml");
  }
  void TearDown() override { fs::remove(path_); }
  std::string write(const std::string& text) const {
    std::ofstream(path_) << text;
    return path_.string();
  }
  // The message of reading `text`.
  std::string error_of(const std::string& text) const {
    const auto settings = from({"--config", write(text)});
    return settings ? "no error" : settings.error().message;
  }
  fs::path path_;
};

TEST(ServeSettings, DefaultsAreThoseOfTheLibraries) {
  const auto s = from({});
  ASSERT_TRUE(s) << s.error().message;
  const ServeOptions defaults;
  EXPECT_EQ(s->values.options.address, "127.0.0.1");
  EXPECT_EQ(s->values.options.port, defaults.port);
  EXPECT_EQ(s->values.options.http.body_bytes, defaults.http.body_bytes);
  EXPECT_EQ(s->values.options.api.n, defaults.api.n);
  EXPECT_EQ(s->values.options.engine.max_sequences, defaults.engine.max_sequences);
  EXPECT_EQ(origin(*s, "port"), "default");
  // Every default lies in its range and can be given again.
  for (const ServeSetting& setting : serve_settings()) {
    if (!setting.is_number()) continue;
    const auto value = setting.get_number(s->values);
    if (!value) continue;
    EXPECT_GE(*value, setting.min) << setting.name();
    EXPECT_LE(*value, setting.max) << setting.name();
  }
}

TEST(ServeSettings, NamesAreUniqueAndSayWhatTheyDo) {
  std::set<std::string> names;
  for (const ServeSetting& setting : serve_settings()) {
    EXPECT_TRUE(names.insert(setting.name()).second) << setting.name();
    EXPECT_EQ(setting.name().find('_'), std::string::npos) << setting.name();
    EXPECT_TRUE(setting.help.ends_with('.')) << setting.name();
    EXPECT_EQ(setting.is_number(), setting.max > 0) << setting.name();
  }
  const auto body = std::ranges::find(serve_settings(), "body-bytes", &ServeSetting::key);
  EXPECT_EQ(body->flag(), "--http-body-bytes");
  EXPECT_EQ(body->variable(), "HEARTH_HTTP_BODY_BYTES");
}

// I.e. that no two rows were bound to one field.
TEST(ServeSettings, EveryNumberHasAFieldOfItsOwn) {
  const std::vector<ServeSetting>& all = serve_settings();
  for (size_t i = 0; i < all.size(); ++i) {
    if (!all[i].is_number()) continue;
    ServeSettings changed;
    const int64_t value = all[i].get_number(changed).value_or(5) == all[i].max ? all[i].min : all[i].max;
    all[i].set_number(changed, value);
    EXPECT_EQ(all[i].get_number(changed), value) << all[i].name();
    const ServeSettings defaults;
    for (size_t j = 0; j < all.size(); ++j) {
      if (i != j && all[j].is_number()) {
        EXPECT_EQ(all[j].get_number(changed), all[j].get_number(defaults)) << all[i].name() << " and " << all[j].name();
      }
    }
  }
}

TEST_F(ConfigFile, FlagsBeforeVariablesBeforeTheFile) {
  const std::string file = write("port = 1\nthreads = 1\nmax-num-seqs = 1\n[limits]\nn = 2\n");
  const auto s =
      from({"--config", file, "--port", "3"},
           {{"HEARTH_PORT", "2"}, {"HEARTH_THREADS", "2"}, {"HEARTH_LIMITS_STOP", "3"}, {"HEARTH_HOST", ""}});
  ASSERT_TRUE(s) << s.error().message;
  EXPECT_EQ(s->values.options.port, 3);
  EXPECT_EQ(s->values.options.engine.threads, 2);
  EXPECT_EQ(s->values.options.engine.max_sequences, 1);
  EXPECT_EQ(s->values.options.api.n, 2);
  EXPECT_EQ(s->values.options.api.stop, 3);
  EXPECT_EQ(s->values.options.address, "127.0.0.1");  // an empty variable is none
  EXPECT_EQ(origin(*s, "port"), "--port");
  EXPECT_EQ(origin(*s, "threads"), "HEARTH_THREADS");
  EXPECT_EQ(origin(*s, "max-num-seqs"), file + ":3");
  EXPECT_EQ(origin(*s, "limits-n"), file + ":5");
  EXPECT_EQ(origin(*s, "limits-choices"), "default");
  // The file by the variable.
  EXPECT_EQ(from({}, {{"HEARTH_CONFIG", file}})->values.options.port, 1);
}

TEST_F(ConfigFile, EveryKindOfValue) {
  const std::string file = write(
      "host = \"0.0.0.0\"\n"
      "api-key = [\"one\", \"two\"]\n"
      "dtype = \"bf16\"\n"
      "access-log = true\n"
      "drain-timeout = 1.5\n"
      "max-model-len = 512\n"
      "kv-cache-memory-bytes = \"4Gi\"\n"
      "memory-bytes = \"70G\"\n"
      "[[model]]\n"
      "path = \"a\"\n"
      "[[model]]\n"
      "names = [\"org/b\", \"bee\"]\n"
      "path = \"models/b=c\"\n"
      "[http]\n"
      "body-bytes = 65536\n"
      "idle-timeout = 5\n");
  const auto s = from({"--config", file});
  ASSERT_TRUE(s) << s.error().message;
  const ServeOptions& o = s->values.options;
  EXPECT_EQ(o.address, "0.0.0.0");
  EXPECT_THAT(o.api_keys, ElementsAre("one", "two"));
  EXPECT_EQ(s->values.dtype, "bf16");
  EXPECT_TRUE(o.access_log);
  EXPECT_EQ(s->values.drain_timeout_ms, 1500);
  EXPECT_EQ(o.load.max_context, 512);
  EXPECT_EQ(o.engine.kv_bytes, int64_t{4} << 30);
  EXPECT_EQ(o.engine.memory_bytes, 70'000'000'000);
  EXPECT_EQ(o.http.body_bytes, 65536);
  EXPECT_EQ(o.http.idle_timeout_ms, 5000);
  ASSERT_EQ(s->values.models.size(), 2u);
  EXPECT_TRUE(s->values.models[0].names.empty());
  EXPECT_EQ(s->values.models[0].path, "a");
  EXPECT_THAT(s->values.models[1].names, ElementsAre("org/b", "bee"));
  EXPECT_EQ(s->values.models[1].path, "models/b=c");
  // What is shown can be read again and says the same, but for the keys.
  const std::string shown = show_settings(*s);
  EXPECT_EQ(shown.find("one"), std::string::npos) << shown;
  EXPECT_THAT(shown, HasSubstr("2 given, not shown"));
  const auto again = from({"--config", write(shown)});
  ASSERT_TRUE(again) << again.error().message << shown;
  for (const ServeSetting& setting : serve_settings()) {
    if (setting.get_number) {
      EXPECT_EQ(setting.get_number(again->values), setting.get_number(s->values)) << setting.name();
    }
    if (setting.get_texts && !setting.secret) {
      EXPECT_EQ(setting.get_texts(again->values), setting.get_texts(s->values)) << setting.name();
    }
  }
}

TEST_F(ConfigFile, ErrorsNameTheFileTheLineAndTheKey) {
  const std::string file = path_.string();
  EXPECT_THAT(error_of("port = 1\nprot = 8000\n"), HasSubstr(file + ":2: unknown key 'prot'; did you mean port?"));
  EXPECT_THAT(error_of("[limits]\nlogprob = 3\n"),
              HasSubstr(file + ":2: unknown key 'logprob' of [limits]; did you mean logprobs?"));
  EXPECT_THAT(error_of("[limit]\nn = 3\n"), HasSubstr("unknown key 'limit'; did you mean limits?"));
  EXPECT_THAT(error_of("body-bytes = 3\n"), HasSubstr("unknown key 'body-bytes'; it belongs to [http]"));
  EXPECT_THAT(error_of("[http]\nport = 3\n"), HasSubstr("it belongs to the top level"));
  EXPECT_THAT(error_of("\n\nport = 70000\n"), HasSubstr(file + ":3: port: 70000 is out of range; wanted 0 to 65535"));
  EXPECT_THAT(error_of("port = \"8000\"\n"), HasSubstr(":1: port is a string; wanted a number"));
  EXPECT_THAT(error_of("host = 1\n"), HasSubstr("host is a whole number; wanted a string"));
  EXPECT_THAT(error_of("access-log = 1\n"), HasSubstr("wanted true or false"));
  EXPECT_THAT(error_of("api-key = [1]\n"), HasSubstr("wanted a string or a list of them"));
  EXPECT_THAT(error_of("dtype = \"fp8\"\n"), HasSubstr("'fp8' is unknown; wanted one of auto, f32, bf16"));
  EXPECT_THAT(error_of("[[model]]\nname = \"x\"\n"), HasSubstr("[[model]] without a path"));
  EXPECT_THAT(error_of("[[model]]\npath = \"x\"\nalias = \"y\"\n"), HasSubstr(":3: unknown key 'alias' of [[model]]"));
  EXPECT_THAT(error_of("[[model]]\npath = \"x\"\nname = \"a=b\"\n"), HasSubstr("'a=b'"));
  EXPECT_THAT(error_of("port = \n"), HasSubstr(file + ":1:"));
  EXPECT_THAT(error_of("port = 1\nport = 2\n"), HasSubstr(file + ":2:"));
  const auto broken = from({"--config", write("port = = 1\n")});
  ASSERT_FALSE(broken);
  EXPECT_EQ(broken.error().code, ErrorCode::kCorrupt);
  EXPECT_EQ(from({"--config", "/nowhere/hearth.toml"}).error().code, ErrorCode::kNotFound);
}

TEST(ServeSettings, FlagsAndVariablesSayWhatWasWrong) {
  const auto error_of = [](std::vector<std::string> words, Variables variables = {}) {
    const auto settings = from(std::move(words), std::move(variables));
    return settings ? "no error" : settings.error().message;
  };
  EXPECT_EQ(error_of({"--port", "70000"}), "--port: 70000 is out of range; wanted 0 to 65535");
  EXPECT_EQ(error_of({}, {{"HEARTH_PORT", "x"}}), "HEARTH_PORT: 'x' is not a whole number; wanted 0 to 65535");
  EXPECT_THAT(error_of({"--drain-timeout", "-1"}), HasSubstr("wanted 0 to 86400 seconds"));
  EXPECT_THAT(error_of({}, {{"HEARTH_ACCESS_LOG", "maybe"}}), HasSubstr("'maybe' is neither true nor false"));
  // A key is not repeated in a message.
  EXPECT_THAT(error_of({}, {{"HEARTH_API_KEY", "secret one"}}), HasSubstr("HEARTH_API_KEY: a key"));
  EXPECT_EQ(error_of({}, {{"HEARTH_API_KEY", "secret one"}}).find("secret one"), std::string::npos);
  EXPECT_THAT(error_of({"--model", "name="}), HasSubstr("names no folder"));
  EXPECT_THAT(error_of({"--model", "a,,b=x"}), HasSubstr("empty name"));
}

TEST(ServeSettings, Bytes) {
  const auto setting = std::ranges::find(serve_settings(), "kv-cache-memory-bytes", &ServeSetting::key);
  const auto bytes = [&](const std::string& text) -> int64_t {
    ServeSettings s;
    return apply_setting(*setting, {text}, s) ? s.options.engine.kv_bytes : -1;
  };
  EXPECT_EQ(bytes("4096"), 4096);
  EXPECT_EQ(bytes("16Ki"), 16384);
  EXPECT_EQ(bytes("16KiB"), 16384);
  EXPECT_EQ(bytes("3K"), 3000);
  EXPECT_EQ(bytes("2M"), 2'000'000);
  EXPECT_EQ(bytes("2Mi"), 2 << 20);
  EXPECT_EQ(bytes("4G"), 4'000'000'000);
  EXPECT_EQ(bytes("1Ti"), int64_t{1} << 40);
  for (const char* bad : {"", "G", "-1", "1.5G", "4 G", "4Q", "9223372036854775807K", "99999999999999999999", "0x10"})
    EXPECT_EQ(bytes(bad), -1) << bad;
}

TEST(ServeSettings, ModelsFromFlagsReplaceThoseOfVariables) {
  auto s = from({"models/a", "--model", "x,y=models/b", "--served-model-name", "n"},
                {{"HEARTH_MODEL", "models/c;z=models/d,e"}, {"HEARTH_API_KEY", "k1,k2"}});
  ASSERT_TRUE(s) << s.error().message;
  ASSERT_EQ(s->values.models.size(), 2u);
  EXPECT_EQ(s->values.models[0].path, "models/a");
  EXPECT_THAT(s->values.models[1].names, ElementsAre("x", "y"));
  EXPECT_THAT(s->values.options.api_keys, ElementsAre("k1", "k2"));
  EXPECT_EQ(make_serve_options(s->values).error().message,
            "--served-model-name with 2 models; wanted one: give --model NAME=PATH for each");
  s = from({}, {{"HEARTH_MODEL", "models/c;z=models/d,e"}});
  ASSERT_EQ(s->values.models.size(), 2u);
  EXPECT_EQ(s->values.models[1].path, "models/d,e");
  EXPECT_THAT(make_serve_options(from({})->values).error().message, HasSubstr("no model"));
}

TEST_F(ConfigFile, OptionsOfTheServer) {
  const std::string keys = write("first\n\n second\r\nthird\n");
  EXPECT_EQ(from({"models/fable-13m", "--api-key-file", keys})->values.api_key_file, keys);
  EXPECT_FALSE(make_serve_options(from({"models/fable-13m", "--api-key-file", keys})->values));  // " second"
  write("first\n\nsecond\r\n");
  const auto options = make_serve_options(
      from({"models/fable-13m", "--api-key", "zero", "--api-key-file", keys, "--dtype", "bf16", "--device", "ref"})
          ->values);
  ASSERT_TRUE(options) << options.error().message;
  EXPECT_THAT(options->api_keys, ElementsAre("zero", "first", "second"));
  EXPECT_EQ(options->load.activation, DType::kBf16);
  EXPECT_EQ(options->load.kv_format, std::nullopt);
  for (const char* name : {"f32", "bf16", "fp8", "int4", "int4-fireq", "int4-saw"}) {
    const auto chosen = make_serve_options(from({"models/fable-13m", "--kv-cache-dtype", name})->values);
    ASSERT_TRUE(chosen) << chosen.error().message;
    EXPECT_EQ(chosen->load.kv_format, kv_format_from_name(name));
  }
  EXPECT_EQ(options->ops, &ref_ops());
  EXPECT_EQ(from({"models/fable-13m", "--device", "cuda:1"})->values.device, "cuda:1");
  for (const char* device : {"cuda:", "cuda:x", "cuda:1x", "cuda:12345", "cuda:-1", "gpu"})
    EXPECT_FALSE(from({"models/fable-13m", "--device", device})) << device;
  ASSERT_EQ(options->models.size(), 1u);
  EXPECT_THAT(options->models[0].names, ElementsAre("fable-13m"));
  const auto named =
      make_serve_options(from({"models/fable-13m", "--served-model-name", "a", "--served-model-name", "b"})->values);
  EXPECT_THAT(named->models[0].names, ElementsAre("a", "b"));
  EXPECT_EQ(make_serve_options(from({"/nowhere/model"})->values).error().code, ErrorCode::kNotFound);
  EXPECT_EQ(make_serve_options(from({"models/fable-13m", "--api-key-file", "/nowhere"})->values).error().code,
            ErrorCode::kNotFound);
}

TEST(ServeSettings, SwitchesCanBeTakenBack) {
  EXPECT_TRUE(from({"--access-log"})->values.options.access_log);
  EXPECT_FALSE(from({"--no-access-log"}, {{"HEARTH_ACCESS_LOG", "1"}})->values.options.access_log);
  EXPECT_EQ(from({"--port", "1", "--port", "2"})->values.options.port, 2);
}

TEST(ServeSettings, MistypedVariablesAreTold) {
  const char* const variables[] = {"PATH=/bin",      "HEARTH_API_KEYS=k",  "HEARTH_API_KEY=k", "HEARTH_PORT=1",
                                   "HEARTH_DATA=/d", "HEARTH_HTTP_BODY=1", "HEARTH_"};
  EXPECT_THAT(unknown_variables(variables), ElementsAre("HEARTH_API_KEYS", "HEARTH_HTTP_BODY", "HEARTH_"));
}

// docs/guides/settings.md is written from the table: hearth serve --print-settings-doc > docs/guides/settings.md
TEST(ServeSettings, ThePageOfTheGuideIsCurrent) {
  std::ifstream file("docs/guides/settings.md");
  const std::string page(std::istreambuf_iterator<char>(file), {});
  EXPECT_EQ(page, settings_page()) << "write it again: hearth serve --print-settings-doc > docs/guides/settings.md";
}

}  // namespace
}  // namespace hearth
