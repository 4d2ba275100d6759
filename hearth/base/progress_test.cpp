// SPDX-License-Identifier: Apache-2.0
#include "hearth/base/progress.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>

namespace hearth {
namespace {

constexpr int64_t kSecond = 1'000'000'000;

struct Screen {
  ManualClock clock;
  std::string text;
  ProgressOutput output(bool is_terminal, int width = 80) {
    return {.write = [this](std::string_view part) { text += part; },
            .is_terminal = is_terminal,
            .width = width,
            .clock = &clock};
  }
};

TEST(Progress, PlainOutputHasALinePerTenthAndALastOne) {
  Screen screen;
  {
    Progress progress("loading m", 1000, Progress::Unit::kItems, screen.output(false));
    for (int i = 0; i < 1000; ++i) {
      screen.clock.advance_ns(kSecond / 10);
      progress.advance(1);
    }
    progress.finish();
  }
  EXPECT_EQ(std::count(screen.text.begin(), screen.text.end(), '\n'), 10);  // 10 % to 90 %, and the end
  EXPECT_EQ(screen.text.substr(0, screen.text.find('\n')), "loading m: 10 %, 100 / 1000, 10/s, 90 s left");
  EXPECT_TRUE(screen.text.ends_with("loading m: 1000 in 1 min 40 s (10/s)\n")) << screen.text;
  EXPECT_EQ(screen.text.find_first_of("\r\x1b"), std::string::npos) << "I2";
}

TEST(Progress, PlainOutputIsQuietWhenFastAndSpeaksWhenSlow) {
  Screen fast;
  Progress quick("q", 100, Progress::Unit::kItems, fast.output(false));
  for (int i = 0; i < 100; ++i) {
    fast.clock.advance_ns(kSecond / 1000);
    quick.advance(1);
  }
  EXPECT_EQ(fast.text, "");
  quick.finish();
  quick.finish();
  quick.advance(5);
  EXPECT_EQ(fast.text, "q: 100 in 0.1 s (1000/s)\n");

  Screen slow;
  Progress lazy("s", 1'000'000, Progress::Unit::kItems, slow.output(false));
  slow.clock.advance_ns(9 * kSecond);
  lazy.advance(1);
  EXPECT_EQ(slow.text, "");
  slow.clock.advance_ns(kSecond);
  lazy.advance(1);
  EXPECT_EQ(slow.text, "s: 0 %, 2 / 1.00 M, 0.2/s, 1388 h 53 min left\n");
}

TEST(Progress, TerminalRedrawsOneLineAndEndsIt) {
  Screen screen;
  {
    Progress progress("loading m", 4'000'000'000, Progress::Unit::kBytes, screen.output(true, 100));
    screen.clock.advance_ns(kSecond);
    progress.update(1'000'000'000);
    EXPECT_EQ(screen.text,
              "\rloading m  [######..................]   25 %  1.00 GB / 4.00 GB  1.00 GB/s  3.0 s left\x1b[K");
    screen.text.clear();
    screen.clock.advance_ns(kSecond / 100);
    progress.update(1'100'000'000);
    EXPECT_EQ(screen.text, "") << "at most ten times a second";
    screen.clock.advance_ns(kSecond);
    progress.update(4'000'000'000);
    EXPECT_NE(screen.text.find("100 %"), std::string::npos);
    screen.text.clear();
    progress.finish();
    EXPECT_EQ(screen.text, "\rloading m: 4.00 GB in 2.0 s (1.99 GB/s)\x1b[K\n");
    screen.text.clear();
  }
  EXPECT_EQ(screen.text, "");
}

TEST(Progress, DestructorLeavesAFreshLineAfterAnError) {  // I1
  Screen screen;
  {
    Progress progress("m", 10, Progress::Unit::kItems, screen.output(true));
    screen.clock.advance_ns(kSecond);
    progress.advance(1);
  }
  EXPECT_TRUE(screen.text.ends_with("\x1b[K\n"));
  Screen untouched;
  { Progress progress("m", 10, Progress::Unit::kItems, untouched.output(true)); }
  EXPECT_EQ(untouched.text, "");
}

TEST(Progress, NeverWrapsAndNeverShowsControlCharacters) {
  for (const int width : {1, 5, 20, 41, 60, 79, 200}) {
    Screen screen;
    Progress progress("mod\xc3\xa9l\x1b[2J\n", 100, Progress::Unit::kItems, screen.output(true, width));
    screen.clock.advance_ns(kSecond);
    progress.advance(50);
    ASSERT_TRUE(screen.text.starts_with("\r") && screen.text.ends_with("\x1b[K"));
    const std::string line = screen.text.substr(1, screen.text.size() - 4);
    EXPECT_LE(std::ssize(line), std::max(width - 1, 0)) << line;
    EXPECT_EQ(line.find_first_of("\x1b\n"), std::string::npos);
    EXPECT_TRUE(line.empty() || static_cast<unsigned char>(line.back()) != 0xc3) << "half a character";
  }
}

TEST(Progress, UnknownTotalHasNoPercentAndOddValuesDoNoHarm) {
  Screen screen;
  Progress unknown("u", 0, Progress::Unit::kBytes, screen.output(false));
  screen.clock.advance_ns(20 * kSecond);
  unknown.update(5'000);
  EXPECT_EQ(screen.text, "u: 5.00 kB, 250 B/s\n");

  Screen more;
  Progress over("o", 10, Progress::Unit::kItems, more.output(true));
  more.clock.advance_ns(kSecond);
  over.update(25);
  EXPECT_NE(more.text.find("100 %"), std::string::npos);
  more.clock.advance_ns(kSecond);
  over.update(-3);
  EXPECT_NE(more.text.find("  0 %"), std::string::npos);
}

}  // namespace
}  // namespace hearth
