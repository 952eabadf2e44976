// Codebooks of short vectors: k-means with a weight per sample, and the look-up of the nearest
// centroid.
#pragma once

#include <cstdint>
#include <vector>

namespace pmkvq {

// Centroids of `width` values; immutable, may be shared between threads.
class Codebook {
 public:
  // `centroids` [count, width] is copied.
  Codebook(const float* centroids, int64_t count, int64_t width);

  int64_t count() const { return count_; }
  int64_t width() const { return width_; }

  // The centroid with the least squared distance to x [width], summed in float in the order of the
  // values; the first of equal ones. `distances` [count] is scratch. Returns its index.
  int64_t Nearest(const float* x, float* distances) const;
  // Writes centroid `index` to x [width].
  void Read(int64_t index, float* x) const;

 private:
  int64_t count_;
  int64_t width_;
  std::vector<float> columns_;  // [width, count], so that all distances grow side by side.
};

// Vectors with weights; not owned.
struct WeightedSamples {
  const float* values = nullptr;   // [count, width]
  const float* weights = nullptr;  // [count], >= 0
  int64_t count = 0;
  int64_t width = 0;
};

// Different samples, drawn by `seed` alone: [num_centroids, width]. num_centroids <= count.
std::vector<float> DrawSamples(const WeightedSamples& samples, int64_t num_centroids,
                               uint64_t seed);
// The start of k-means++ with weights: the first centroid is drawn by weight, each further one by
// weight times the squared distance to the nearest so far. Where all of these are 0, as
// DrawSamples.
std::vector<float> DrawSpreadSamples(const WeightedSamples& samples, int64_t num_centroids,
                                     uint64_t seed);

enum class EmptyCluster : uint8_t {
  kKeep,    // Its centroid stays.
  kRefill,  // Its centroid becomes the sample with the largest weighted squared distance.
};

// Lloyd's rounds: each sample goes to its nearest centroid (Codebook::Nearest), then each centroid
// becomes the weighted mean of its samples, summed in double. A cluster whose weights are all 0 is
// empty. Ends early where nothing changes. `centroids` [num_centroids, width] is start and result.
// Returns the sum of weight times squared distance before the last round's means. A CancelPoint per
// round. Cost: rounds * count * num_centroids * width.
double WeightedKMeans(const WeightedSamples& samples, int64_t rounds, EmptyCluster empty,
                      std::vector<float>& centroids);

}  // namespace pmkvq
