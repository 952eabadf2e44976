#include "pmkvq/text/vocabulary_data.h"

#include <algorithm>
#include <iterator>

namespace pmkvq {
namespace {

constexpr std::string_view kEndTexts[] = {"<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>",
                                          "<|endoftext|>"};

}  // namespace

std::vector<int32_t> EndTokenIds(const TokenizerData& data) {
  std::vector<int32_t> ids;
  for (const int32_t id : {data.eos, data.eot, data.eom}) {
    if (id != TokenizerData::kNoId) ids.push_back(id);
  }
  for (size_t i = 0; i < std::min(data.types.size(), data.tokens.size()); ++i) {
    if (data.types[i] != TokenType::kControl) continue;
    if (std::find(std::begin(kEndTexts), std::end(kEndTexts), data.tokens[i]) !=
        std::end(kEndTexts)) {
      ids.push_back(static_cast<int32_t>(i));
    }
  }
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

}  // namespace pmkvq
