#include "default_pool.h"

#include <fmt/format.h>

#include <algorithm>

#include "pmkvq/base/byte_size.h"
#include "pmkvq/base/error.h"
#include "pmkvq/engine/fit.h"

namespace pmkvq::cli {
namespace {

constexpr double kPartOfMemory = 0.8;  // The rest is for the system, connections and replies.
// A pool keeps 1/16 free for the next pages, and lets requests in up to 97 %: with a tenth more
// nothing is halved where all fits.
constexpr double kRoomBesidePages = 1.1;

}  // namespace

int64_t DefaultPoolBytes(int64_t available, const Model& model, const SpecEngineOptions& options) {
  if (available == 0) {
    throw InvalidInput(
        "--kv-pool", "found none, and the system does not tell its memory; expected a size: 4GiB");
  }
  FitOptions fit_options;
  fit_options.memory_bytes = static_cast<int64_t>(kPartOfMemory * static_cast<double>(available));
  fit_options.max_len = options.max_len;
  fit_options.sequences = options.max_sequences;
  fit_options.chunk = options.chunk;
  fit_options.num_threads = options.num_threads;
  fit_options.cache = options.kv;
  const Fit fit = FitInto({model.config(), model.weight_bytes()}, fit_options);
  if (fit.cache_bytes <= 0) {
    throw InvalidInput(
        "--kv-pool",
        fmt::format("found none, and nothing is left for one: 80 % of the {} that is available are "
                    "{}, weights and working memory take {}; expected a size, a smaller model, "
                    "--max-sequences or --chunk",
                    FormatByteSize(available), FormatByteSize(fit_options.memory_bytes),
                    FormatByteSize(fit.weight_bytes + fit.working_bytes)));
  }
  const int64_t all = fit.methods.front().arena_bytes;  // fp16: of all requests, with max_len each.
  if (all == 0) return fit.cache_bytes;
  return std::min(fit.cache_bytes,
                  static_cast<int64_t>(kRoomBesidePages * static_cast<double>(all)));
}

}  // namespace pmkvq::cli
