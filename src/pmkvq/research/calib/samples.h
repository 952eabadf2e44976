// Calibration samples: token sequences drawn from a data set.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
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
  std::string dataset;  // Path, see io/dataset.h
  Packing packing = Packing::kConcat;
  int64_t num_samples = 512;
  int64_t seq_len = 2048;
  int64_t effective_len = 0;  // 0: seq_len. Must be a multiple of seq_len.
  uint64_t seed = 42;
};

struct Samples {
  std::vector<std::vector<int32_t>> tokens;  // Each seq_len long, or an input_ids row as it is.
  int64_t seq_len = 0;  // What effective_len is a multiple of; 0: each sample's own length.

  // Positions 0, s, 2s, ... of sample `index`, with s = effective_len / seq_len (an integer: check;
  // effective_len 0: s = 1). A shorter input_ids row keeps the same distance between its tokens.
  std::vector<int64_t> Positions(size_t index, int64_t effective_len) const;
};

// Rows with input_ids come first, used as they are, in file order, cut at seq_len when longer
// (a single id has no next token and is skipped).
//
// Then the texts, in an order shuffled with Random(seed), each as Tokenizer::EncodeWhole gives it,
// special tokens parsed: as transformers tokenises a data set. The shuffle comes first and no more
// texts are tokenised than are needed: kConcat cuts the stream of the shuffled texts, so that its
// samples are drawn from all over the file; a last piece shorter than seq_len is dropped.
//
// Fewer samples than asked: a warning with the count. `tokenizer` may be null when all rows have
// ids. Throws InvalidInput: no sample at all, ids out of [0, V), a text without tokenizer,
// effective_len no multiple. Positions past max_position_embeddings: warning only.
Samples DrawSamples(const SampleOptions& options, const ModelConfig& config,
                    const Tokenizer* tokenizer, LogSink* log);

}  // namespace pmkvq
