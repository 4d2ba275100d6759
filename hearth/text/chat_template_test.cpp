// SPDX-License-Identifier: Apache-2.0
// ChatTemplate against texts that transformers rendered (tests/fixtures/text/chat_golden.json), and against templates
// that try to take all time or memory.
#include "hearth/text/chat_template.h"

#include <gmock/gmock.h>
#include <sys/resource.h>

#include <array>
#include <chrono>
#include <thread>

#include "hearth/text/test_util.h"

namespace hearth {
namespace {

using namespace text_test;
using testing::AnyOf;
using testing::HasSubstr;

OrderedJson chat_golden() { return OrderedJson::parse(read_file(kFixtures / "chat_golden.json")); }

// `want` has either `text` or `error`, and of errors only the message of raise_exception is fixed.
void expect_outcome(const Result<std::string>& got, const OrderedJson& want) {
  if (want.contains("text")) {
    ASSERT_TRUE(got) << got.error().message;
    EXPECT_EQ(*got, want["text"].get<std::string>());
    return;
  }
  ASSERT_FALSE(got) << "rendered: " << *got << "\nwanted " << want["error"] << ": " << want["message"];
  EXPECT_EQ(got.error().code, ErrorCode::kInvalidArgument) << got.error().message;
  if (want["error"] == "raised") {
    EXPECT_EQ(got.error().message, "chat template: " + want["message"].get<std::string>());
  }
}

Result<std::string> render(std::string_view source, const ChatTemplateArgs& args = {.messages_json = "[]"},
                           const ChatTemplateLimits& limits = {}) {
  HEARTH_TRY_ASSIGN(const ChatTemplate chat_template, ChatTemplate::compile(source, limits));
  return chat_template.render(args);
}

TEST(ChatTemplateTest, TemplatesAgreeWithGolden) {
  const OrderedJson golden = chat_golden();
  size_t cases = 0;
  ASSERT_GE(golden.at("templates").size(), 9u);
  for (const OrderedJson& entry : golden["templates"]) {
    SCOPED_TRACE(entry.at("name"));
    const auto chat_template = ChatTemplate::compile(entry.at("template").get<std::string>());
    ASSERT_TRUE(chat_template) << chat_template.error().message;
    for (const OrderedJson& test : entry.at("cases")) {
      SCOPED_TRACE(test.at("name"));
      OrderedJson options = test.at("options");
      const std::string messages = test.at("messages").dump();
      const bool prompt = options.value("add_generation_prompt", false);
      const std::string tools = options.contains("tools") ? options["tools"].dump() : "";
      options.erase("add_generation_prompt");
      options.erase("tools");
      const std::string extra = options.dump();
      ChatTemplateArgs args{.messages_json = messages,
                            .tools_json = tools,
                            .extra_json = extra,
                            .add_generation_prompt = prompt,
                            .local_time_s = golden.at("now_unix_s")};
      for (const auto& [name, token] : entry.at("special_tokens").items()) args.special_tokens[name] = token;
      expect_outcome(chat_template->render(args), test);
      ++cases;
    }
  }
  EXPECT_GT(cases, 100u);
}

TEST(ChatTemplateTest, ProbesAgreeWithGolden) {
  const OrderedJson golden = chat_golden();
  const std::string variables = golden.at("probe_variables").dump();
  ASSERT_GE(golden.at("probes").size(), 80u);
  for (const OrderedJson& probe : golden["probes"]) {
    SCOPED_TRACE(probe.at("name"));
    expect_outcome(render(probe.at("template").get<std::string>(),
                          {.messages_json = "[]", .extra_json = variables, .local_time_s = golden.at("now_unix_s")}),
                   probe);
  }
}

TEST(ChatTemplateTest, DemoModel) {
  const Tokenizer tokenizer = load_demo();
  const auto chat_template = ChatTemplate::from_tokenizer(tokenizer);
  ASSERT_TRUE(chat_template) << chat_template.error().message;
  const auto text = chat_template->render({.messages_json = R"([{"role": "user", "content": "Hi"}])",
                                           .add_generation_prompt = true,
                                           .special_tokens = tokenizer.special_tokens()});
  ASSERT_TRUE(text) << text.error().message;
  EXPECT_EQ(*text, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
  const auto missing = ChatTemplate::from_tokenizer(tokenizer, "tool_use");
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().code, ErrorCode::kNotFound);
}

TEST(ChatTemplateTest, VariablesHavePrecedence) {
  EXPECT_EQ(render("{{ bos_token }}{{ tools is none }}{{ x }}", {.messages_json = "[]",
                                                                 .extra_json = R"( {"bos_token": "B", "x": 1} )",
                                                                 .special_tokens = {{"bos_token", "<s>"}}})
                .value(),
            "BTrue1");
  EXPECT_EQ(render("{{ add_generation_prompt }}{{ documents }}", {.messages_json = "[]", .extra_json = "{}"}).value(),
            "FalseNone");
}

TEST(ChatTemplateTest, BadInput) {
  const std::string deep = std::string(1000, '[') + std::string(1000, ']');
  for (const std::string& messages :
       {std::string(), std::string("{}"), std::string("3"), std::string("[1"), std::string("[\"\xff\"]"),
        std::string("[]]"), std::string("[],\"x\":[]"), deep}) {
    SCOPED_TRACE(messages.substr(0, 20));
    const auto text = render("x", {.messages_json = messages});
    ASSERT_FALSE(text);
    EXPECT_EQ(text.error().code, ErrorCode::kInvalidArgument);
  }
  EXPECT_EQ(render("x", {.messages_json = "[]", .tools_json = "{}"}).error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(render("x", {.messages_json = "[]", .extra_json = "[]"}).error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(render("x", {.messages_json = "[]", .extra_json = "{}, {}"}).error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(render("\xff").error().code, ErrorCode::kInvalidArgument);
  for (const char* source :
       {"{% if %}", "{{ 1 + }}", "{% endfor %}", "{{ 'abc }}", "{% for x in %}{% endfor %}", "{{", "{% generation %}",
        "{% raw %}", "{% include 'x' %}", "{{ x | nothing }}", "{% nothing %}"}) {
    SCOPED_TRACE(source);
    const auto text = render(source);
    ASSERT_FALSE(text) << *text;
    EXPECT_EQ(text.error().code, ErrorCode::kInvalidArgument) << text.error().message;
    EXPECT_THAT(text.error().message, HasSubstr("chat template"));
  }
  EXPECT_THAT(render("a\nb\n{{ x.y }}").error().message, HasSubstr("chat template:3"));
}

TEST(ChatTemplateTest, InputLimits) {
  EXPECT_EQ(render("12345", {.messages_json = "[]"}, {.max_source_bytes = 4}).error().code,
            ErrorCode::kResourceExhausted);
  EXPECT_EQ(render("1", {.messages_json = "[[]]"}, {.max_input_bytes = 3}).error().code, ErrorCode::kResourceExhausted);
  EXPECT_EQ(render("12345", {.messages_json = "[]"}, {.max_output_bytes = 4}).error().code,
            ErrorCode::kResourceExhausted);
  EXPECT_TRUE(render("12345", {.messages_json = "[]"}, {.max_output_bytes = 5}));
}

// I2. Each would take minutes, gigabytes or the stack if nothing held it.
constexpr const char* kHostile[] = {
    // Time.
    "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
    "{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}",
    "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
    "{% for x in [1] recursive %}{{ loop([1, 1]) }}{{ loop([1, 1]) }}{% endfor %}",
    "{% set s = 'a' * 30000000 %}{% for i in range(100000) %}{% if s[29999999] == 'b' %}{% endif %}{% endfor %}",
    "{% set s = 'a' * 30000000 %}{% for i in range(100000) %}{% if 'b' in s %}{% endif %}{% endfor %}",
    "{% set s = 'a' * 30000000 %}{% for i in range(100000) %}{% for c in s %}{% break %}{% endfor %}{% endfor %}",
    "{% set s = 'a' * 30000000 %}{% for i in range(100000) %}{% set t = s.count('b') %}{% endfor %}",
    "{% set s = 'a' * 30000000 %}{% for i in range(100000) %}{% set t = s | length %}{% endfor %}",
    "{% set s = 'a' * 30000000 %}{% for i in range(100000) %}{% if s is upper %}{% endif %}{% endfor %}",
    "{% set ns = namespace(x=[1], y=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}"
    "{% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.x == ns.y }}",
    // Memory.
    "{{ 'a' * 1000000000 }}",
    "{{ 'a' * 99000000 ~ 'a' * 99000000 ~ 'a' * 99000000 ~ 'a' * 99000000 ~ 'a' * 99000000 ~ 'a' * 99000000 }}",
    "{{ 3000000 * 'a' * 3000 }}",
    "{{ ([1] * 90000000) | list | length }}",
    "{{ (1, 2) * 90000000 }}",
    "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = ns.s | replace('', ns.s) %}{% endfor %}",
    "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = ns.s.replace('a', ns.s) %}{% endfor %}",
    "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = ns.s.join(['', '', '']) %}{% endfor %}",
    "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s | length "
    "}}",
    "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s }}",
    "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}{% endfor "
    "%}",
    "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] | join %}{% endfor %}",
    "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] | tojson %}{% endfor %}",
    "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] | string %}{% endfor %}",
    "{{ 'a\\nb' | indent(1000000000) }}",
    "{{ 'a\\nb' | indent(width=1000000000) }}",
    "{{ [1, [2]] | tojson(indent=1000000000) }}",
    "{{ '%1000000000d' | format(1) }}",
    "{{ '{:1000000000}'.format('x') }}",
    "{{ [1, 2] | batch(1000000000, 0) }}",
    "{{ [1, 2] | slice(1000000000) }}",
    "{% for i in range(100000) %}{{ 'a' * 100000 }}{% endfor %}",
    // The stack.
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% set ns = namespace(x=[]) %}{% for i in range(100000) %}{% set ns.x = [ns.x] %}{% endfor %}",
    "{% set ns = namespace(x={}) %}{% for i in range(100000) %}{% set ns.x = {'a': ns.x} %}{% endfor %}",
    "{% set ns = namespace(x={}) %}{% for i in range(100000) %}{% set ns.x = dict(a=ns.x) %}{% endfor %}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(100000) %}{% set ns.x = ns.x | batch(1) %}{% endfor %}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(100000) %}{% set ns.x = {'a': ns.x} | items | list %}{% endfor "
    "%}",
};

TEST(ChatTemplateTest, I2HostileTemplatesEndWithinTheirLimits) {
  for (const char* source : kHostile) {
    SCOPED_TRACE(source);
    const auto begin = std::chrono::steady_clock::now();
    const auto text = render(source);
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    EXPECT_LT(seconds.count(), 20);
    ASSERT_FALSE(text) << text->size() << " bytes";
    EXPECT_THAT(text.error().code,
                AnyOf(ErrorCode::kResourceExhausted, ErrorCode::kDeadlineExceeded, ErrorCode::kInvalidArgument))
        << text.error().message;
  }
  struct rusage usage {};
  getrusage(RUSAGE_SELF, &usage);
  EXPECT_LT(usage.ru_maxrss, 2 << 20);  // KiB; the work limit is 256 MiB, and sanitizers keep freed memory
}

// Deep expressions, which recursion over the parsed template would follow down the stack.
TEST(ChatTemplateTest, I2DeepSourcesAreRefused) {
  const auto repeat = [](std::string_view text) {
    std::string out;
    for (int i = 0; i < 100000; ++i) out += text;
    return out;
  };
  for (const auto& [head, link, tail] :
       std::vector<std::array<std::string, 3>>{{"{{ 1", "|d", "}}"},
                                               {"{{ 1", "+1", "}}"},
                                               {"{{ x", "~x", "}}"},
                                               {"{{ 2", "*2", "}}"},
                                               {"{{ 1", "**1", "}}"},
                                               {"{{ x", ".a", "}}"},
                                               {"{{ x", "()", "}}"},
                                               {"{{ x", "[0]", "}}"},
                                               {"{{ x", "[:]", "}}"},
                                               {"{{ ", "not ", "1 }}"},
                                               {"{{ ", "-", "1 }}"},
                                               {"{{ ", "(", "}}"},
                                               {"{{ ", "[", "}}"},
                                               {"{{ ", "{1:", "}}"},
                                               {"{{ 1", " or x", "}}"},
                                               {"{{ 1", " is odd", "}}"},
                                               {"{{ ", "1 if 0 else ", "1 }}"},
                                               {"{% set ", "(", "%}"},
                                               {"", "{% if 1 %}", ""},
                                               {"{% if x %}", "{% elif x %}", "{% endif %}"},
                                               {"", "{% for a in b %}", ""},
                                               {"", "{% filter upper %}", ""},
                                               {"", "{% call a() %}", ""},
                                               {"", "{% macro a() %}", ""}}) {
    SCOPED_TRACE(link);
    const Result<std::string> text =
        render(head + repeat(link) + tail, {.messages_json = "[]"}, {.max_source_bytes = int64_t{4} << 20});
    ASSERT_FALSE(text);
    EXPECT_EQ(text.error().code, ErrorCode::kInvalidArgument) << text.error().message;
  }
}

// Slow by design and harmless: these must still work, or end, without harm.
TEST(ChatTemplateTest, I2HarmlessOddities) {
  EXPECT_TRUE(
      render("{% set ns = namespace(x=[1]) %}{% for i in range(20000) %}{% set ns.x = ns.x | reverse %}"
             "{% endfor %}{{ ns.x | list }}"));
  EXPECT_TRUE(
      render("{% set ns = namespace(x=[1]) %}{% for i in range(20000) %}{% set ns.x = ns.x[0:] %}{% endfor %}"
             "{{ ns.x }}"));
  EXPECT_TRUE(
      render("{% set ns = namespace(x=[1]) %}{% for i in range(20000) %}{% set ns.x = ns.x * 1 %}{% endfor %}"));
  EXPECT_FALSE(render("{% set a = namespace() %}{% set a.x = a %}{{ a.x.x.x }}"));
  EXPECT_FALSE(render("{% set a = namespace() %}{% set a.x = [{'b': a}] %}"));
  EXPECT_EQ(render("{{ 2 * 3 ** 2 * 2 }}{{ 'a' * 3 }}{% macro m(a, b) %}{{ a }}{{ b }}{% endmacro %}{{ m(*[1, 2]) }}"
                   "{{ m(**{'a': 3, 'b': 4}) }}{{ '2 * 3' }}{# 2 * 3 #} 2 * 3")
                .value(),
            "36aaa12342 * 3 2 * 3");
}

TEST(ChatTemplateTest, LimitsAreNamed) {
  const ChatTemplateArgs args{.messages_json = "[]"};
  const char* loop = "{% for a in range(1000) %}{{ a }}{% endfor %}";
  const auto steps = render(loop, args, {.max_steps = 1000});
  ASSERT_FALSE(steps);
  EXPECT_EQ(steps.error().code, ErrorCode::kResourceExhausted);
  EXPECT_THAT(steps.error().message, HasSubstr("1000 steps"));
  const auto work = render("{{ 'a' * 1000 }}", args, {.max_work_bytes = 999});
  ASSERT_FALSE(work);
  EXPECT_EQ(work.error().code, ErrorCode::kResourceExhausted);
  EXPECT_THAT(work.error().message, HasSubstr("999 bytes"));
  const auto time = render("{% for a in range(100000) %}{{ a }}{% endfor %}", args, {.max_time_ms = 0});
  ASSERT_FALSE(time);
  EXPECT_EQ(time.error().code, ErrorCode::kDeadlineExceeded);
  EXPECT_THAT(time.error().message, HasSubstr("0 ms"));
}

TEST(ChatTemplateTest, LongConversationFitsTheDefaultLimits) {
  Json messages = Json::array();
  for (int i = 0; i < 400; ++i) {
    messages.push_back({{"role", i % 2 ? "assistant" : "user"}, {"content", std::string(10000, 'a')}});
  }
  const OrderedJson golden = chat_golden();
  for (const OrderedJson& entry : golden.at("templates")) {
    SCOPED_TRACE(entry.at("name"));
    const auto text =
        render(entry.at("template").get<std::string>(),
               {.messages_json = messages.dump(), .special_tokens = {{"bos_token", "<s>"}, {"eos_token", "</s>"}}});
    EXPECT_TRUE(text) << text.error().message;
  }
}

TEST(ChatTemplateTest, ManyThreads) {
  const OrderedJson golden = chat_golden();
  const OrderedJson& entry = golden["templates"][0];
  const ChatTemplate chat_template = ChatTemplate::compile(entry.at("template").get<std::string>()).value();
  const std::string messages = entry.at("cases")[0].at("messages").dump();
  const std::string want = entry.at("cases")[0].at("text");
  std::vector<int> failures(8, 0);
  std::vector<std::thread> threads;
  for (int& failed : failures) {
    threads.emplace_back([&] {
      for (int i = 0; i < 100; ++i) {
        const auto text = chat_template.render(
            {.messages_json = messages, .special_tokens = {{"bos_token", "<s>"}, {"eos_token", "</s>"}}});
        failed += !(text && *text == want);
        failed += render("{{ raise_exception('no') }}").has_value();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(failures, testing::Each(0));
}

}  // namespace
}  // namespace hearth
