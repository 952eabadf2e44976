// Calibration samples: token sequences drawn from a data set.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "pmkvq/base/sinks.h"
#include "pmkvq/io/model_config.h"
#include "pmkvq/text/tokenizer.h"

namespace pmkvq {

enum class Packing : uint8_t {
  kConcat,  // The reference: texts concatenated, cut at seq_len, seeded shuffle.
  kSingle,  // One text per sample, cut at seq_len; shorter texts are skipped.
};
Packing ParsePacking(std::string_view name);  // "concat", "single"; throws InvalidInput.
std::string_view NameOf(Packing packing);

struct SampleOptions {
  std::string dataset;        // Path, see io/dataset.h
  Packing packing = Packing::kConcat;
  int64_t num_samples = 512;
  int64_t seq_len = 2048;
  int64_t effective_len = 0;  // 0: seq_len. Must be a multiple of seq_len.
  uint64_t seed = 42;
};

struct Samples {
  std::vector<std::vector<int32_t>> tokens;  // Each seq_len long, or an input_ids row as it is.
  std::vector<int64_t> Positions(size_t index, int64_t effective_len) const;
};

// Rows with input_ids are used as they are, in file order, cut at seq_len when longer. Special
// tokens in texts are parsed. Fewer samples than asked: a warning with the count. `tokenizer` may
// be null when all rows have ids. Throws InvalidInput: no sample at all, ids out of [0, V), a text
// without tokenizer, effective_len no multiple, longer than max positions (warning only).
Samples DrawSamples(const SampleOptions& options, const ModelConfig& config,
                    const Tokenizer* tokenizer, LogSink* log);

}  // namespace pmkvq
