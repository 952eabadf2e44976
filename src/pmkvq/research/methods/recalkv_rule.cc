#include "pmkvq/research/methods/recalkv_rule.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "pmkvq/kernels/gemm/gemm.h"
#include "pmkvq/kernels/linalg/eigen.h"

namespace pmkvq {
namespace {

// A B A^T-like products: a [m, E] moment [E, E] b^T [E, n].
std::vector<double> Product(const std::vector<double>& a, std::span<const double> moment,
                            const std::vector<double>& b, int64_t width) {
  const int64_t m = std::ssize(a) / width;
  const int64_t n = std::ssize(b) / width;
  std::vector<double> half(static_cast<size_t>(m * width));
  BlasGemm<double>(false, false, m, width, width, 1.0, a.data(), width, moment.data(), width, 0.0,
                   half.data(), width);
  std::vector<double> product(static_cast<size_t>(m * n));
  BlasGemm<double>(false, true, m, n, width, 1.0, half.data(), width, b.data(), width, 0.0,
                   product.data(), n);
  return product;
}

double SumOfSquares(const std::vector<double>& x) {
  return std::inner_product(x.begin(), x.end(), x.begin(), 0.0);
}

}  // namespace

std::vector<double> HeadAlignment(std::span<const float> weight, int64_t num_heads,
                                  std::span<const double> second_moment,
                                  std::span<const double> mean, double num_rows) {
  const auto width = std::ssize(mean);
  std::vector<double> centred(second_moment.begin(), second_moment.end());
  for (size_t i = 0; i < centred.size(); ++i) {
    centred[i] -= num_rows * mean[i / mean.size()] * mean[i % mean.size()];
  }
  const auto head = [&](int64_t index) {
    const auto size = std::ssize(weight) / num_heads;
    return std::vector<double>(weight.begin() + index * size, weight.begin() + (index + 1) * size);
  };
  std::vector<double> norms;
  for (int64_t a = 0; a < num_heads; ++a) {
    norms.push_back(std::sqrt(SumOfSquares(Product(head(a), centred, head(a), width))));
  }
  std::vector<double> alignment(static_cast<size_t>(num_heads * num_heads), 1.0);
  for (int64_t a = 0; a < num_heads; ++a) {
    for (int64_t b = a + 1; b < num_heads; ++b) {
      const double norm = norms[static_cast<size_t>(a)] * norms[static_cast<size_t>(b)];
      const double value =
          norm > 0 ? SumOfSquares(Product(head(a), centred, head(b), width)) / norm : 0;
      alignment[static_cast<size_t>(a * num_heads + b)] = value;
      alignment[static_cast<size_t>(b * num_heads + a)] = value;
    }
  }
  return alignment;
}

std::vector<std::vector<int64_t>> GroupHeads(std::span<const double> alignment, int64_t num_heads,
                                             int64_t group) {
  struct Pair {
    double value;
    int64_t a;
    int64_t b;
  };
  std::vector<Pair> pairs;
  for (int64_t a = 0; a < num_heads; ++a) {
    for (int64_t b = a + 1; b < num_heads; ++b) {
      pairs.push_back({alignment[static_cast<size_t>(a * num_heads + b)], a, b});
    }
  }
  std::stable_sort(pairs.begin(), pairs.end(),
                   [](const Pair& x, const Pair& y) { return x.value > y.value; });
  std::vector<std::vector<int64_t>> groups(static_cast<size_t>(num_heads / group));
  std::vector<int64_t> group_of(static_cast<size_t>(num_heads), -1);
  const auto has_room = [&](const std::vector<int64_t>& heads) {
    return std::ssize(heads) < group;
  };
  const auto first_with_room = [&] {
    return std::find_if(groups.begin(), groups.end(), has_room) - groups.begin();
  };
  const auto put = [&](int64_t head, int64_t at) {
    groups[static_cast<size_t>(at)].push_back(head);
    group_of[static_cast<size_t>(head)] = at;
  };
  for (const Pair& pair : pairs) {
    const int64_t of_a = group_of[static_cast<size_t>(pair.a)];
    const int64_t of_b = group_of[static_cast<size_t>(pair.b)];
    if (of_a < 0 && of_b < 0) {
      const int64_t at = first_with_room();
      if (at == std::ssize(groups)) continue;
      put(pair.a, at);
      put(pair.b, at);
    } else if ((of_a < 0) != (of_b < 0)) {
      const int64_t at = std::max(of_a, of_b);
      if (has_room(groups[static_cast<size_t>(at)])) put(of_a < 0 ? pair.a : pair.b, at);
    }
  }
  for (std::vector<int64_t>& heads : groups) {
    if (std::ssize(heads) <= group) continue;
    group_of[static_cast<size_t>(heads.back())] = -1;
    heads.pop_back();
  }
  for (int64_t head = 0; head < num_heads; ++head) {
    if (group_of[static_cast<size_t>(head)] < 0) put(head, first_with_room());
  }
  for (std::vector<int64_t>& heads : groups) std::sort(heads.begin(), heads.end());
  return groups;
}

LowRankWeight LowRank(std::span<const float> weight, int64_t rows,
                      std::span<const double> second_moment, int64_t rank) {
  const auto width = std::ssize(weight) / rows;
  const std::vector<double> w(weight.begin(), weight.end());
  const SymmetricEigen eigen = EigenOfSymmetric(Product(w, second_moment, w, width).data(), rows);
  const double* vectors = eigen.vectors.data() + (rows - rank) * rows;  // [rank, rows]
  std::vector<double> latent(static_cast<size_t>(rank * width));
  BlasGemm<double>(false, false, rank, width, rows, 1.0, vectors, rows, w.data(), width, 0.0,
                   latent.data(), width);
  std::vector<double> low(w.size());
  BlasGemm<double>(true, false, rows, width, rank, 1.0, vectors, rows, latent.data(), width, 0.0,
                   low.data(), width);
  return {{low.begin(), low.end()}, {vectors, vectors + rank * rows}};
}

std::vector<int64_t> RanksByImportance(std::span<const double> importance, double share,
                                       int64_t full, int64_t step) {
  const auto least = static_cast<double>(std::min(step, full));
  const auto most = static_cast<double>(full);
  // The factor at which the bounded ranks have the wanted sum: they grow with it, so it is found
  // by halving.
  const double wanted = share * most * static_cast<double>(importance.size());
  const double largest = *std::max_element(importance.begin(), importance.end());
  const auto rank_at = [&](double factor, double value) {
    return std::clamp(factor * (largest > 0 ? value / largest : 1), least, most);
  };
  double low = 0;
  double high = most * 1e12;
  for (int i = 0; i < 200; ++i) {
    const double middle = (low + high) / 2;
    double sum = 0;
    for (const double value : importance) sum += rank_at(middle, value);
    (sum < wanted ? low : high) = middle;
  }
  std::vector<int64_t> ranks;
  for (const double value : importance) {
    const auto steps = static_cast<int64_t>(std::lround(rank_at(high, value) / double(step)));
    ranks.push_back(std::clamp(steps * step, std::min(step, full), full));
  }
  return ranks;
}

}  // namespace pmkvq
