#include "pmkvq/engine/fit.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <utility>

#include "pmkvq/base/error.h"
#include "pmkvq/kv/kv_budget.h"
#include "pmkvq/kv/packed/page_codec.h"
#include "pmkvq/kv/packed/slot_layout.h"
#include "pmkvq/kv/spec/packed_spec.h"
#include "pmkvq/model/model_size.h"

namespace pmkvq {
namespace {

// The largest number in [0, most] for which `holds`, which stays false once it is; holds(0) is
// taken as true.
template <class Holds>
int64_t Largest(int64_t most, const Holds& holds) {
  int64_t low = 0;
  while (low < most) {
    const int64_t middle = low + (most - low + 1) / 2;
    if (holds(middle)) {
      low = middle;
    } else {
      most = middle - 1;
    }
  }
  return low;
}

int64_t SequenceBytes(const CacheConfig& config) {
  return std::accumulate(config.budget_bytes.begin(), config.budget_bytes.end(), int64_t{0});
}

class Fitter {
 public:
  Fitter(const FitModel& model, const FitOptions& options)
      : model_(model), options_(options), geometry_(KvGeometryOf(model.config)) {}

  Fit Run() const {
    Fit fit;
    fit.max_len = options_.max_len;
    fit.weight_bytes = model_.weight_bytes;
    fit.working_bytes = WorkingBytes(options_.sequences, options_.max_len);
    fit.cache_bytes = Room(options_.sequences, options_.max_len);
    for (const char* spec : {"fp16", "static-8", "static-4", "static-2"}) {
      fit.methods.push_back(FixedMethod(spec));
    }
    fit.methods.push_back(Progressive(fit));
    return fit;
  }

 private:
  KvRequirements Requirements(int64_t max_len) const {
    return {geometry_, 1, max_len, options_.num_threads, nullptr, nullptr, options_.chunk};
  }

  // Of a method with a fixed width. Its budget is that of max_len tokens.
  CacheConfig FixedConfig(const std::string& spec, int64_t sequences, int64_t max_len) const {
    KvOptions kv;
    static_cast<CacheSettings&>(kv) = options_.cache;
    kv.spec = spec;
    CacheConfig config = ResolvePackedConfig(kv, Requirements(max_len));
    config.max_sequences = sequences;
    return config;
  }

  CacheConfig ProgressiveConfig(int64_t budget_bytes, int64_t sequences, int64_t max_len) const {
    KvOptions kv;
    static_cast<CacheSettings&>(kv) = options_.cache;
    kv.spec = "pm-kvq";
    kv.budget_bytes = budget_bytes;
    CacheConfig config = ResolvePackedConfig(kv, Requirements(max_len));
    config.max_sequences = sequences;
    return config;
  }

  // Scratch of attention: a Forward of one token of each sequence, and one of a chunk.
  int64_t AttentionBytes(int64_t sequences, int64_t max_len, int64_t chunk) const {
    const CacheConfig config = FixedConfig("fp16", sequences, max_len);
    const int64_t sink_pages = (config.sink_tokens + kPageTokens - 1) / kPageTokens;
    const std::vector<PageTokens> pages(static_cast<size_t>(sink_pages + NumPages(config, max_len)),
                                        PageTokens{kPageTokens, kPageTokens});
    std::vector<AttentionSequence> decode(static_cast<size_t>(sequences), {pages, 1, 0});
    const std::vector<AttentionSequence> prefill = {{pages, chunk, 0}};
    size_t bytes = 0;
    std::vector<AttentionShape> done;
    std::vector<LatentShape> latents_done;
    for (const KvBlockGeometry& block : geometry_.blocks) {
      if (block.is_latent()) {
        const LatentShape shape = LatentShapeOf(block, config.float_type);
        if (std::find(latents_done.begin(), latents_done.end(), shape) != latents_done.end()) {
          continue;
        }
        latents_done.push_back(shape);
        for (const auto* batch : {&std::as_const(decode), &prefill}) {
          LatentPlan plan;
          PlanLatentAttention(shape, *batch, options_.num_threads, plan);
          bytes = std::max(bytes, plan.scratch_bytes);
        }
        continue;
      }
      const AttentionShape shape = AttentionShapeOf(block, config.float_type);
      if (std::find(done.begin(), done.end(), shape) != done.end()) continue;
      done.push_back(shape);
      for (const auto* batch : {&std::as_const(decode), &prefill}) {
        AttentionPlan plan;
        PlanAttention(shape, *batch, options_.num_threads, config.attention, plan);
        bytes = std::max(bytes, plan.scratch_bytes);
      }
    }
    return static_cast<int64_t>(bytes);
  }

  // As the engine works: one workspace for tokens of all sequences and for a prompt that is alone,
  // another for a prompt between the tokens of others.
  int64_t WorkingBytes(int64_t sequences, int64_t max_len) const {
    const int64_t chunk = std::min(options_.chunk, max_len);
    int64_t bytes = WorkspaceBytesOf(model_.config, sequences, chunk);
    if (sequences > 1) bytes += WorkspaceBytesOf(model_.config, 0, chunk);
    return bytes + AttentionBytes(sequences, max_len, chunk);
  }

  int64_t Room(int64_t sequences, int64_t max_len) const {
    return options_.memory_bytes - model_.weight_bytes - WorkingBytes(sequences, max_len);
  }

  bool FixedFits(const std::string& spec, int64_t sequences, int64_t max_len) const {
    const CacheConfig config = FixedConfig(spec, sequences, max_len);
    const int64_t room = Room(sequences, max_len);
    return SequenceBytes(config) <= room / sequences && ArenaBytes(config) <= room;
  }

  FitMethod FixedMethod(const std::string& spec) const {
    FitMethod method;
    method.spec = spec;
    const CacheConfig config = FixedConfig(spec, options_.sequences, options_.max_len);
    method.sequence_bytes = SequenceBytes(config);
    method.arena_bytes = ArenaBytes(config);
    method.fits = method.arena_bytes <= Room(options_.sequences, options_.max_len);
    method.most_sequences = Largest(kMostFitSequences, [&](int64_t sequences) {
      return FixedFits(spec, sequences, options_.max_len);
    });
    method.longest = Largest(model_.config.max_position_embeddings, [&](int64_t max_len) {
      return FixedFits(spec, options_.sequences, max_len);
    });
    return method;
  }

  // The largest budget of a sequence with which the cache of all of them fits; 0: not even one that
  // holds a first page.
  int64_t LargestBudget(int64_t sequences, int64_t max_len) const {
    const int64_t room = Room(sequences, max_len);
    const CacheConfig floor = FixedConfig("static-2", sequences, max_len);
    const int64_t least = SmallestBudget(floor, floor.sink_tokens + 1);
    if (room / sequences < least) return 0;
    const int64_t more = Largest(room / sequences - least, [&](int64_t bytes) {
      return ArenaBytes(ProgressiveConfig(least + bytes, sequences, max_len)) <= room;
    });
    const int64_t budget = least + more;
    return ArenaBytes(ProgressiveConfig(budget, sequences, max_len)) <= room ? budget : 0;
  }

  bool ProgressiveFits(int64_t sequences, int64_t max_len) const {
    const int64_t budget = LargestBudget(sequences, max_len);
    return budget > 0 && KvBudget(ProgressiveConfig(budget, sequences, max_len)).Holds(max_len);
  }

  FitMethod Progressive(Fit& fit) const {
    FitMethod method;
    method.spec = "pm-kvq";
    method.most_sequences = Largest(kMostFitSequences, [&](int64_t sequences) {
      return ProgressiveFits(sequences, options_.max_len);
    });
    method.longest = Largest(model_.config.max_position_embeddings, [&](int64_t max_len) {
      return ProgressiveFits(options_.sequences, max_len);
    });
    method.sequence_bytes = LargestBudget(options_.sequences, options_.max_len);
    if (method.sequence_bytes == 0) return method;
    const CacheConfig config =
        ProgressiveConfig(method.sequence_bytes, options_.sequences, options_.max_len);
    method.arena_bytes = ArenaBytes(config);
    method.fits = KvBudget(config).Holds(options_.max_len);
    for (const int bits : kWidths) {
      fit.longest_at_width[WidthIndex(bits)] =
          Largest(model_.config.max_position_embeddings, [&](int64_t num_tokens) {
            for (size_t layer = 0; layer < geometry_.blocks.size(); ++layer) {
              if (BlockBytes(config, layer, num_tokens, bits, bits) > config.budget_bytes[layer]) {
                return false;
              }
            }
            return true;
          });
    }
    return method;
  }

  const FitModel& model_;
  const FitOptions& options_;
  const KvGeometry geometry_;
};

void CheckRange(const char* option, int64_t value, int64_t most) {
  if (value >= 1 && value <= most) return;
  throw InvalidInput(option, fmt::format("found {}, expected 1 to {}", value, most));
}

}  // namespace

Fit FitInto(const FitModel& model, const FitOptions& given) {
  FitOptions options = given;
  const int64_t positions = model.config.max_position_embeddings;
  if (options.max_len == 0) options.max_len = positions;
  if (options.memory_bytes <= 0) {
    throw InvalidInput("--memory",
                       fmt::format("found {}, expected more than 0 bytes", options.memory_bytes));
  }
  if (options.max_len < 1 || options.max_len > positions) {
    throw InvalidInput("--len", fmt::format("found {}, expected 1 to {}, the model's positions",
                                            options.max_len, positions));
  }
  CheckRange("--sequences", options.sequences, kMostFitSequences);
  CheckRange("--chunk", options.chunk, positions);
  options.num_threads = std::max(options.num_threads, 1);
  return Fitter(model, options).Run();
}

}  // namespace pmkvq
