#include "pmkvq/server/metrics.h"

#include <gtest/gtest.h>

#include <set>
#include <sstream>

namespace pmkvq::server {
namespace {

TEST(Metrics, HistogramsAreCumulative) {
  Histogram histogram({1, 2});
  for (const double value : {0.5, 1.0, 1.5, 9.0}) histogram.Observe(value);
  std::string out;
  histogram.AppendTo(out, "x");
  EXPECT_EQ(out,
            "x_bucket{le=\"1\"} 2\nx_bucket{le=\"2\"} 3\nx_bucket{le=\"+Inf\"} 4\nx_sum 12\n"
            "x_count 4\n");
}

// Every sample belongs to a metric that was declared once, before it.
TEST(Metrics, TextIsWellFormed) {
  Metrics metrics;
  metrics.CountRequest("/v1/completions", 200);
  metrics.CountRequest("other", 404);
  metrics.finished["stop"] = 3;
  std::istringstream text(metrics.Text({}, 100, "1.0"));
  std::set<std::string> declared;
  std::string line;
  while (std::getline(text, line)) {
    if (line.starts_with("# HELP ")) continue;
    if (line.starts_with("# TYPE ")) {
      const std::string name = line.substr(7, line.find(' ', 7) - 7);
      EXPECT_TRUE(declared.insert(name).second) << line;
      continue;
    }
    std::string name = line.substr(0, line.find_first_of("{ "));
    for (const char* suffix : {"_bucket", "_sum", "_count"}) {
      if (name.ends_with(suffix) && !declared.contains(name)) name.resize(name.rfind('_'));
    }
    EXPECT_TRUE(declared.contains(name)) << line;
    EXPECT_NO_THROW(std::stod(line.substr(line.rfind(' ')))) << line;
  }
  EXPECT_GT(declared.size(), 15U);
}

}  // namespace
}  // namespace pmkvq::server
