#include "pmkvq/engine/forced_output.h"

#include <numeric>
#include <utility>

#include "pmkvq/base/error.h"
#include "pmkvq/engine/request_check.h"
#include "pmkvq/engine/token_mask.h"

namespace pmkvq {
namespace {

class ForcedOutput : public OutputGrammar {
 public:
  ForcedOutput(std::vector<int32_t> tokens, int64_t vocab_size)
      : tokens_(std::move(tokens)), vocab_size_(vocab_size) {}

  std::unique_ptr<TokenMask> Start() const override { return std::make_unique<Mask>(*this); }

 private:
  // All ids but one: they are in order, and the one that is allowed has the last one's place.
  class Mask : public TokenMask {
   public:
    explicit Mask(const ForcedOutput& output)
        : tokens_(output.tokens_), ids_(static_cast<size_t>(output.vocab_size_)) {
      std::iota(ids_.begin(), ids_.end(), 0);
    }
    std::span<const int32_t> Forbidden() override {
      const auto last = static_cast<int32_t>(ids_.size()) - 1;
      ids_[static_cast<size_t>(allowed_)] = allowed_;
      allowed_ = tokens_[next_];
      ids_[static_cast<size_t>(allowed_)] = last;
      return {ids_.data(), ids_.size() - 1};
    }
    void Accept(int32_t /*token*/) override { ++next_; }

   private:
    const std::vector<int32_t>& tokens_;
    std::vector<int32_t> ids_;
    int32_t allowed_ = 0;
    size_t next_ = 0;
  };

  std::vector<int32_t> tokens_;
  int64_t vocab_size_;
};

}  // namespace

Request MakeForcedRequest(std::vector<int32_t> prompt_ids, std::vector<int32_t> output_ids,
                          int64_t vocab_size) {
  if (output_ids.empty()) {
    throw InvalidInput("output_ids", "found no tokens, expected at least one");
  }
  CheckTokenIds(output_ids, vocab_size, "output_ids");
  Request request;
  request.prompt_ids = std::move(prompt_ids);
  request.max_tokens = static_cast<int64_t>(output_ids.size());
  request.ignore_eos = true;
  request.num_logprobs = 1;
  request.grammar = std::make_shared<ForcedOutput>(std::move(output_ids), vocab_size);
  return request;
}

}  // namespace pmkvq
