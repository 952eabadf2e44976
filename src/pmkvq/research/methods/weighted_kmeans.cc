#include "pmkvq/research/methods/weighted_kmeans.h"

#include <algorithm>
#include <array>
#include <numeric>

#include "pmkvq/base/check.h"
#include "pmkvq/base/interrupt.h"
#include "pmkvq/base/random.h"

namespace pmkvq {
namespace {

double SquaredDistance(const float* a, const float* b, int64_t width) {
  double sum = 0;
  for (int64_t i = 0; i < width; ++i) {
    const double difference = double{a[i]} - double{b[i]};
    sum += difference * difference;
  }
  return sum;
}

void Append(const WeightedSamples& samples, int64_t index, std::vector<float>& centroids) {
  const float* begin = samples.values + index * samples.width;
  centroids.insert(centroids.end(), begin, begin + samples.width);
}

// In lanes, which compilers turn into vectors.
float LeastOf(const float* x, int64_t count) {
  constexpr int64_t kLanes = 8;
  std::array<float, kLanes> least;
  least.fill(x[0]);
  int64_t begin = 0;
  for (; begin + kLanes <= count; begin += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      float& so_far = least[static_cast<size_t>(lane)];
      so_far = x[begin + lane] < so_far ? x[begin + lane] : so_far;
    }
  }
  for (; begin < count; ++begin) least[0] = std::min(least[0], x[begin]);
  return *std::min_element(least.begin(), least.end());
}

// The index at which the running sum of `shares` first exceeds `target`.
int64_t IndexAt(const std::vector<double>& shares, double target) {
  double sum = 0;
  int64_t last = 0;
  for (size_t i = 0; i < shares.size(); ++i) {
    if (shares[i] <= 0) continue;
    last = static_cast<int64_t>(i);
    sum += shares[i];
    if (sum > target) break;
  }
  return last;
}

// Which centroid each sample goes to, and its weighted squared distance.
struct Assignment {
  std::vector<int64_t> centroid;
  std::vector<double> error;
};

Assignment Assign(const WeightedSamples& samples, const std::vector<float>& centroids) {
  const Codebook codebook(centroids.data(), std::ssize(centroids) / samples.width, samples.width);
  Assignment assignment;
  std::vector<float> distances(static_cast<size_t>(codebook.count()));
  for (int64_t i = 0; i < samples.count; ++i) {
    const float* x = samples.values + i * samples.width;
    const int64_t nearest = codebook.Nearest(x, distances.data());
    assignment.centroid.push_back(nearest);
    assignment.error.push_back(
        double{samples.weights[i]} *
        SquaredDistance(x, centroids.data() + nearest * samples.width, samples.width));
  }
  return assignment;
}

// Centroids become means. Empty clusters keep theirs; returns them.
std::vector<size_t> TakeMeans(const WeightedSamples& samples, const Assignment& assignment,
                              std::vector<float>& centroids) {
  const auto width = static_cast<size_t>(samples.width);
  const size_t count = centroids.size() / width;
  std::vector<double> sums(centroids.size());
  std::vector<double> weights(count);
  for (size_t i = 0; i < assignment.centroid.size(); ++i) {
    const auto at = static_cast<size_t>(assignment.centroid[i]);
    const double weight = double{samples.weights[i]};
    weights[at] += weight;
    for (size_t j = 0; j < width; ++j) {
      sums[at * width + j] += weight * double{samples.values[i * width + j]};
    }
  }
  std::vector<size_t> empty;
  for (size_t at = 0; at < count; ++at) {
    if (weights[at] <= 0) {
      empty.push_back(at);
      continue;
    }
    for (size_t j = at * width; j < (at + 1) * width; ++j) {
      centroids[j] = static_cast<float>(sums[j] / weights[at]);
    }
  }
  return empty;
}

void Refill(const WeightedSamples& samples, const std::vector<size_t>& empty,
            std::vector<double> error, std::vector<float>& centroids) {
  for (const size_t at : empty) {
    const auto worst = std::max_element(error.begin(), error.end());
    if (*worst <= 0) return;
    const auto sample = worst - error.begin();
    std::copy_n(samples.values + sample * samples.width, samples.width,
                centroids.begin() + static_cast<std::ptrdiff_t>(at) * samples.width);
    *worst = 0;
  }
}

}  // namespace

Codebook::Codebook(const float* centroids, int64_t count, int64_t width)
    : count_(count), width_(width), columns_(static_cast<size_t>(count * width)) {
  for (int64_t at = 0; at < count; ++at) {
    for (int64_t i = 0; i < width; ++i) {
      columns_[static_cast<size_t>(i * count + at)] = centroids[at * width + i];
    }
  }
}

int64_t Codebook::Nearest(const float* x, float* distances) const {
  std::fill_n(distances, count_, 0.0f);
  const float* column = columns_.data();
  for (int64_t i = 0; i < width_; ++i, column += count_) {
    const float value = x[i];
    for (int64_t at = 0; at < count_; ++at) {
      const float difference = value - column[at];
      distances[at] += difference * difference;
    }
  }
  const float least = LeastOf(distances, count_);
  return std::find(distances, distances + count_, least) - distances;
}

void Codebook::Read(int64_t index, float* x) const {
  for (int64_t i = 0; i < width_; ++i) x[i] = columns_[static_cast<size_t>(i * count_ + index)];
}

std::vector<float> DrawSamples(const WeightedSamples& samples, int64_t num_centroids,
                               uint64_t seed) {
  PMKVQ_CHECK(num_centroids >= 1 && num_centroids <= samples.count);
  std::vector<int64_t> order(static_cast<size_t>(samples.count));
  std::iota(order.begin(), order.end(), int64_t{0});
  Random random(seed);
  std::vector<float> centroids;
  for (int64_t at = 0; at < num_centroids; ++at) {
    const auto other = at + static_cast<int64_t>(random.Below(uint64_t(samples.count - at)));
    std::swap(order[static_cast<size_t>(at)], order[static_cast<size_t>(other)]);
    Append(samples, order[static_cast<size_t>(at)], centroids);
  }
  return centroids;
}

std::vector<float> DrawSpreadSamples(const WeightedSamples& samples, int64_t num_centroids,
                                     uint64_t seed) {
  PMKVQ_CHECK(num_centroids >= 1 && num_centroids <= samples.count);
  Random random(seed);
  std::vector<float> centroids;
  std::vector<double> nearest(static_cast<size_t>(samples.count), 1.0);  // Squared distances.
  std::vector<double> shares(nearest.size());
  for (int64_t at = 0; at < num_centroids; ++at) {
    CancelPoint();
    double total = 0;
    for (size_t i = 0; i < shares.size(); ++i) {
      shares[i] = double{samples.weights[i]} * nearest[i];
      total += shares[i];
    }
    if (total <= 0) {
      const std::vector<float> rest = DrawSamples(samples, num_centroids - at, seed);
      centroids.insert(centroids.end(), rest.begin(), rest.end());
      break;
    }
    Append(samples, IndexAt(shares, random.Uniform() * total), centroids);
    const float* newest = centroids.data() + at * samples.width;
    for (int64_t i = 0; i < samples.count; ++i) {
      const double distance =
          SquaredDistance(samples.values + i * samples.width, newest, samples.width);
      double& least = nearest[static_cast<size_t>(i)];
      least = at == 0 ? distance : std::min(least, distance);
    }
  }
  return centroids;
}

double WeightedKMeans(const WeightedSamples& samples, int64_t rounds, EmptyCluster empty,
                      std::vector<float>& centroids) {
  double error = 0;
  for (int64_t round = 0; round < rounds; ++round) {
    CancelPoint();
    const Assignment assignment = Assign(samples, centroids);
    error = std::accumulate(assignment.error.begin(), assignment.error.end(), 0.0);
    const std::vector<float> before = centroids;
    const std::vector<size_t> unused = TakeMeans(samples, assignment, centroids);
    if (empty == EmptyCluster::kRefill) Refill(samples, unused, assignment.error, centroids);
    if (centroids == before) break;
  }
  return error;
}

}  // namespace pmkvq
