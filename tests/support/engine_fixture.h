// The tiny random model of tests/golden with a tokenizer whose tokens are the 256 bytes, for tests
// of what runs a whole model.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "pmkvq/base/random.h"
#include "pmkvq/research/methods/spec_engine.h"
#include "support/small_tokenizer.h"

namespace pmkvq::testing_support {

inline std::shared_ptr<const Model> LoadTinyLlama() {
  return Model::Load(PMKVQ_SOURCE_DIR "/tests/golden/tiny-llama");
}
// The same one in all tests of a program.
inline std::shared_ptr<const Model> TinyLlama() {
  static const std::shared_ptr<const Model> model = LoadTinyLlama();
  return model;
}

inline std::string DefaultModelFolder() { return PMKVQ_SOURCE_DIR "/models/longcot-10m"; }

inline std::shared_ptr<const Tokenizer> ByteTokenizer() {
  return Tokenizer::Parse(SmallTokenizer().Json(), "bytes");
}

// Ids in [3, vocab): no special ones.
inline std::vector<int32_t> RandomPrompt(int64_t num_tokens, uint64_t seed, int64_t vocab = 256) {
  Random random(seed);
  std::vector<int32_t> ids(static_cast<size_t>(num_tokens));
  for (int32_t& id : ids) {
    id = static_cast<int32_t>(3 + random.Below(static_cast<uint64_t>(vocab - 3)));
  }
  return ids;
}

inline Request MakeRequest(std::vector<int32_t> prompt, int64_t max_tokens, uint64_t seed = 0) {
  Request request;
  request.prompt_ids = std::move(prompt);
  request.max_tokens = max_tokens;
  request.seed = seed;
  request.ignore_eos = true;
  return request;
}

// Keeps everything it is told.
class RecordingObserver : public EngineObserver {
 public:
  struct Drawn {
    RequestId id;
    int32_t token;
    std::string text;
  };
  void OnToken(RequestId id, int32_t token, const std::string& text) override {
    tokens.push_back({id, token, text});
  }
  void OnHalving(RequestId id, const HalvingEvent& event) override {
    halvings.emplace_back(id, event);
  }
  void OnFinished(const Completion& completion) override { finished.push_back(completion); }

  std::string TextOf(RequestId id) const {
    std::string text;
    for (const Drawn& drawn : tokens) {
      if (drawn.id == id) text += drawn.text;
    }
    return text;
  }
  std::vector<int32_t> IdsOf(RequestId id) const {
    std::vector<int32_t> ids;
    for (const Drawn& drawn : tokens) {
      if (drawn.id == id) ids.push_back(drawn.token);
    }
    return ids;
  }

  std::vector<Drawn> tokens;
  std::vector<std::pair<RequestId, HalvingEvent>> halvings;
  std::vector<Completion> finished;
};

inline Completion RunOne(Engine& engine, const Request& request,
                         EngineObserver* observer = nullptr) {
  return engine.Generate({request}, observer, nullptr).front();
}

}  // namespace pmkvq::testing_support
