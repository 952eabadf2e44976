// Weighted k-means against a plain reading in double, and against golden data.
#include "pmkvq/research/methods/weighted_kmeans.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "pmkvq/base/random.h"
#include "support/method_golden.h"

namespace pmkvq {
namespace {

using testing_support::MethodGolden;

struct Cloud {
  std::vector<float> values;
  std::vector<float> weights;
  int64_t width = 0;

  WeightedSamples samples() const {
    return {values.data(), weights.data(), std::ssize(weights), width};
  }
};

Cloud MakeCloud(int64_t count, int64_t width, uint64_t seed) {
  Random random(seed);
  Cloud cloud{{}, {}, width};
  for (int64_t i = 0; i < count * width; ++i) {
    cloud.values.push_back(static_cast<float>(4 * random.Uniform() - 2));
  }
  for (int64_t i = 0; i < count; ++i) {
    cloud.weights.push_back(i % 7 == 0 ? 0.0f : static_cast<float>(random.Uniform()));
  }
  return cloud;
}

double Distance(const Cloud& cloud, size_t sample, const std::vector<double>& centroids,
                size_t at) {
  const auto width = static_cast<size_t>(cloud.width);
  double sum = 0;
  for (size_t j = 0; j < width; ++j) {
    const double difference = double{cloud.values[sample * width + j]} - centroids[at * width + j];
    sum += difference * difference;
  }
  return sum;
}

// One round; returns the weighted error before it.
double PlainRound(const Cloud& cloud, bool refill, std::vector<double>& centroids) {
  const auto width = static_cast<size_t>(cloud.width);
  const size_t count = centroids.size() / width;
  std::vector<double> sums(centroids.size());
  std::vector<double> weights(count);
  std::vector<double> errors;
  double error = 0;
  for (size_t i = 0; i < cloud.weights.size(); ++i) {
    size_t nearest = 0;
    for (size_t at = 1; at < count; ++at) {
      if (Distance(cloud, i, centroids, at) < Distance(cloud, i, centroids, nearest)) nearest = at;
    }
    errors.push_back(double{cloud.weights[i]} * Distance(cloud, i, centroids, nearest));
    error += errors.back();
    weights[nearest] += double{cloud.weights[i]};
    for (size_t j = 0; j < width; ++j) {
      sums[nearest * width + j] += double{cloud.weights[i]} * double{cloud.values[i * width + j]};
    }
  }
  for (size_t at = 0; at < count; ++at) {
    for (size_t j = 0; weights[at] > 0 && j < width; ++j) {
      centroids[at * width + j] = sums[at * width + j] / weights[at];
    }
    if (weights[at] > 0 || !refill) continue;
    const auto worst =
        static_cast<size_t>(std::max_element(errors.begin(), errors.end()) - errors.begin());
    errors[worst] = 0;
    for (size_t j = 0; j < width; ++j) {
      centroids[at * width + j] = double{cloud.values[worst * width + j]};
    }
  }
  return error;
}

TEST(WeightedKMeans, RoundsAreThePlainOnes) {
  for (const bool refill : {false, true}) {
    const Cloud cloud = MakeCloud(300, 3, 5);
    std::vector<float> centroids = DrawSamples(cloud.samples(), 20, 1);
    for (size_t j = 0; j < 3; ++j) centroids[j] = 100.0f;  // Nobody's nearest: stays empty.
    for (int round = 0; round < 8; ++round) {
      std::vector<double> plain(centroids.begin(), centroids.end());
      const double expected = PlainRound(cloud, refill, plain);
      const double error = WeightedKMeans(
          cloud.samples(), 1, refill ? EmptyCluster::kRefill : EmptyCluster::kKeep, centroids);
      EXPECT_NEAR(error, expected, 1e-9 * expected);
      for (size_t i = 0; i < plain.size(); ++i) ASSERT_NEAR(centroids[i], plain[i], 1e-6) << i;
    }
    EXPECT_EQ(centroids[0] == 100.0f, !refill);
  }
}

TEST(WeightedKMeans, ManyRoundsAreSingleOnesOneAfterAnother) {
  const Cloud cloud = MakeCloud(200, 2, 9);
  std::vector<float> together = DrawSpreadSamples(cloud.samples(), 16, 3);
  std::vector<float> apart = together;
  WeightedKMeans(cloud.samples(), 50, EmptyCluster::kRefill, together);
  for (int i = 0; i < 50; ++i) WeightedKMeans(cloud.samples(), 1, EmptyCluster::kRefill, apart);
  EXPECT_EQ(together, apart);
}

TEST(WeightedKMeans, StartsAreSamplesAndDependOnTheSeedAlone) {
  const Cloud cloud = MakeCloud(64, 2, 4);
  std::set<std::pair<float, float>> given;
  for (size_t i = 0; i < 64; ++i) given.insert({cloud.values[2 * i], cloud.values[2 * i + 1]});
  for (const bool spread : {false, true}) {
    const auto draw = [&](uint64_t seed) {
      return spread ? DrawSpreadSamples(cloud.samples(), 40, seed)
                    : DrawSamples(cloud.samples(), 40, seed);
    };
    const std::vector<float> start = draw(1);
    ASSERT_EQ(start.size(), 80u);
    std::set<std::pair<float, float>> drawn;
    for (size_t i = 0; i < 40; ++i) drawn.insert({start[2 * i], start[2 * i + 1]});
    EXPECT_EQ(drawn.size(), 40u) << "different ones";
    EXPECT_TRUE(std::includes(given.begin(), given.end(), drawn.begin(), drawn.end()));
    EXPECT_EQ(draw(1), start);
    EXPECT_NE(draw(2), start);
  }
}

// Eight tight clusters far apart: drawn by distance, each gets a centroid.
TEST(WeightedKMeans, SpreadStartsReachEveryCluster) {
  Cloud cloud = MakeCloud(800, 1, 6);
  for (size_t i = 0; i < 800; ++i) {
    cloud.values[i] = 100.0f * static_cast<float>(i % 8) + 1e-3f * cloud.values[i];
    cloud.weights[i] = 1;
  }
  std::set<int> clusters;
  for (const float x : DrawSpreadSamples(cloud.samples(), 8, 2)) {
    clusters.insert(static_cast<int>(x / 100 + 0.5f));
  }
  EXPECT_EQ(clusters.size(), 8u);
}

TEST(WeightedKMeans, EqualSamplesFillACodebook) {
  Cloud cloud{std::vector<float>(60, 1.5f), std::vector<float>(30, 0.5f), 2};
  std::vector<float> centroids = DrawSpreadSamples(cloud.samples(), 4, 1);
  EXPECT_EQ(WeightedKMeans(cloud.samples(), 3, EmptyCluster::kRefill, centroids), 0);
  EXPECT_EQ(centroids, std::vector<float>(8, 1.5f));
}

TEST(Codebook, TakesTheFirstOfEqualCentroids) {
  const std::vector<float> centroids = {3, 3, 1, 1, 1, 1, -1, -1};
  const Codebook codebook(centroids.data(), 4, 2);
  std::vector<float> scratch(4);
  const auto nearest = [&](float a, float b) {
    const float x[] = {a, b};
    return codebook.Nearest(x, scratch.data());
  };
  EXPECT_EQ(nearest(1.1f, 1.0f), 1);
  EXPECT_EQ(nearest(0, 0), 1);
  EXPECT_EQ(nearest(2, 2), 0);
  EXPECT_EQ(nearest(-5, 0), 3);
  float x[2];
  codebook.Read(3, x);
  EXPECT_EQ(x[0], -1);
}

// The golden centroids are what a run ended with, and its start is the same tensor: the error of
// that run is compared, and the next round.
TEST(WeightedKMeans, GoldenErrorAndRound) {
  const MethodGolden golden("cq");
  const Cloud cloud{golden.Floats("learn.samples"), golden.Floats("learn.weights"), 4};
  std::vector<float> centroids = golden.Floats("learn.start");
  ASSERT_EQ(centroids, golden.Floats("learn.centroids"));
  std::vector<double> plain(centroids.begin(), centroids.end());
  PlainRound(cloud, false, plain);
  const double error = WeightedKMeans(cloud.samples(), 1, EmptyCluster::kKeep, centroids);
  EXPECT_NEAR(error, 47.58383783828, 1e-5);
  for (size_t i = 0; i < plain.size(); ++i) ASSERT_NEAR(centroids[i], plain[i], 1e-5) << i;
}

}  // namespace
}  // namespace pmkvq
