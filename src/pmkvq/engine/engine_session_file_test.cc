// Sessions in files: they go on with the bits that they would have had.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "pmkvq/engine/session_file.h"
#include "pmkvq/io/file.h"
#include "support/engine_fixture.h"
#include "support/expect_error.h"
#include "support/temp_folder.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;
using testing_support::LoadTinyLlama;
using testing_support::MakeRequest;
using testing_support::RandomPrompt;
using testing_support::RunOne;
using testing_support::TempFolder;

constexpr int64_t kSession = 4;

SpecEngineOptions Options(const std::string& spec, PolicyKind policy = PolicyKind::kOldestFirst) {
  SpecEngineOptions options;
  options.kv.spec = spec;
  options.kv.policy = policy;
  if (spec.starts_with("pm-kvq")) options.kv.budget_bytes = 150000;
  options.max_len = 2000;
  options.num_threads = 2;
  options.chunk = 200;
  return options;
}

Request Turn(std::vector<int32_t> prompt, int64_t max_tokens) {
  Request request = MakeRequest(std::move(prompt), max_tokens, 5);
  request.session = kSession;
  request.sampling.temperature = 1;
  return request;
}

// The second turn of a conversation: all of the first, and 70 tokens more.
Request SecondTurn(const Completion& first) {
  std::vector<int32_t> prompt = first.prompt_ids;
  prompt.insert(prompt.end(), first.output_ids.begin(), first.output_ids.end());
  for (const int32_t token : RandomPrompt(70, 2)) prompt.push_back(token);
  return Turn(std::move(prompt), 300);
}

struct Case {
  std::string spec;
  PolicyKind policy;
};

class EngineSessionFile : public testing::TestWithParam<Case> {};

TEST_P(EngineSessionFile, GoesOnWithTheSameBits) {
  const TempFolder folder;
  const std::string path = folder.path() + "/session.kv";
  const auto model = LoadTinyLlama();
  const SpecEngineOptions options = Options(GetParam().spec, GetParam().policy);
  for (const int64_t first_tokens : {1, 60, 128, 333, 600}) {
    Engine whole = OpenEngine(model, nullptr, options);
    const Completion first = RunOne(whole, Turn(RandomPrompt(450, 1), first_tokens));
    whole.SaveSession(kSession, path, "a \"note\"\n");
    const Completion expected = RunOne(whole, SecondTurn(first));

    Engine restored = OpenEngine(model, nullptr, options);
    const SavedSession saved = restored.LoadSession(kSession, path);
    EXPECT_EQ(saved.note, "a \"note\"\n");
    EXPECT_EQ(std::ssize(saved.tokens), 450 + first_tokens - 1);
    const Completion second = RunOne(restored, SecondTurn(first));
    EXPECT_EQ(second.output_ids, expected.output_ids) << first_tokens;
    EXPECT_EQ(second.kv.pages, expected.kv.pages);
    EXPECT_EQ(second.kv.bytes, expected.kv.bytes);
    EXPECT_EQ(second.kv.peak_bytes, expected.kv.peak_bytes);
    EXPECT_EQ(second.kv.narrowed_bytes, expected.kv.narrowed_bytes);
    EXPECT_EQ(restored.stats().prompt_tokens, 71) << "and nothing of the first turn";
  }
}

INSTANTIATE_TEST_SUITE_P(Caches, EngineSessionFile,
                         testing::Values(Case{"fp16", PolicyKind::kLayerBudget},
                                         Case{"static-4", PolicyKind::kLayerBudget},
                                         Case{"pm-kvq", PolicyKind::kLayerBudget},
                                         Case{"pm-kvq", PolicyKind::kOldestFirst}));

class SessionFile : public testing::Test {
 protected:
  void SetUp() override {
    Engine engine = OpenEngine(model_, nullptr, Options("pm-kvq"));
    RunOne(engine, Turn(RandomPrompt(450, 1), 300));
    engine.SaveSession(kSession, path_);
  }

  Engine Open(const SpecEngineOptions& options) const {
    return OpenEngine(model_, nullptr, options);
  }
  // Loading fails and names these.
  void ExpectRefused(std::initializer_list<std::string> parts) const {
    Engine engine = Open(Options("pm-kvq"));
    ExpectError<InvalidInput>([&] { engine.LoadSession(0, path_); }, parts);
  }

  TempFolder folder_;
  std::string path_ = folder_.path() + "/session.kv";
  std::shared_ptr<const Model> model_ = LoadTinyLlama();
};

TEST_F(SessionFile, OfAnotherCacheIsRefused) {
  SpecEngineOptions options = Options("pm-kvq");
  options.kv.budget_bytes = 160000;
  ExpectError<InvalidInput>([&] { Open(options).LoadSession(0, path_); },
                            {path_, "budget bytes of block 0: found", "as this cache has it"});
  options = Options("pm-kvq", PolicyKind::kLayerBudget);
  ExpectError<InvalidInput>([&] { Open(options).LoadSession(0, path_); },
                            {"policy: found oldest-first, expected layer-budget"});
  ExpectError<Unsupported>([&] { Open(Options("kivi")).LoadSession(0, path_); },
                           {"the cache of this method"});
  Engine kivi = Open(Options("kivi"));
  RunOne(kivi, Turn(RandomPrompt(200, 1), 10));
  ExpectError<Unsupported>([&] { kivi.SaveSession(kSession, path_); }, {"cannot be saved"});
}

TEST_F(SessionFile, OfAnotherModelIsRefused) {
  const auto other = Model::Load(testing_support::DefaultModelFolder());
  Engine engine = OpenEngine(other, nullptr, Options("fp16"));
  ExpectError<InvalidInput>([&] { engine.LoadSession(0, path_); },
                            {path_, "model_identity", "another model"});
}

TEST_F(SessionFile, NeedsAnIdleSession) {
  Engine engine = Open(Options("pm-kvq"));
  ExpectError<InvalidInput>([&] { engine.SaveSession(9, path_); }, {"session", "found 9"});
  ExpectError<InvalidInput>([&] { engine.LoadSession(-1, path_); }, {"session", "found -1"});
  engine.Submit(Turn(RandomPrompt(450, 1), 30));
  engine.Step(nullptr);
  ExpectError<InvalidInput>([&] { engine.SaveSession(kSession, path_); }, {"idle session"});
  ExpectError<InvalidInput>([&] { engine.LoadSession(kSession, path_); }, {"no running request"});
  ExpectError<InvalidInput>([&] { engine.LoadSession(1, path_); }, {"between requests"});
}

TEST_F(SessionFile, ChangedBytesAreRefused) {
  const std::string whole = ReadFile(path_);
  for (const size_t at : {whole.size() - 1, whole.size() / 2, whole.size() / 4}) {
    std::string changed = whole;
    changed[at] = static_cast<char>(changed[at] ^ 1);
    WriteFileAtomically(path_, changed);
    ExpectRefused({path_});
  }
  WriteFileAtomically(path_, whole.substr(0, whole.size() - 7));
  ExpectRefused({path_});
  WriteFileAtomically(path_, "");
  ExpectRefused({path_});
}

// Somebody who makes the hash anew: whatever the image says, it is refused or goes on.
RC_GTEST_FIXTURE_PROP(SessionFile, WrongImagesAreRefusedOrGoOn, ()) {
  const auto some = [](int64_t number) {
    const int64_t value = std::clamp<int64_t>(number, -(int64_t{1} << 50), int64_t{1} << 50);
    return *rc::gen::element<int64_t>(0, 1, -1, 2, 3, 4, 8, 16, 17, 128, value + 1, value - 1,
                                      value + 128, value / 2, int64_t{1} << 40, INT64_MAX,
                                      INT64_MIN);
  };
  StoredSession session = ReadSession(path_, model_->checkpoint().Identity());
  SequenceImage& image = session.image;
  const int num_changes = *rc::gen::inRange(1, 4);
  for (int i = 0; i < num_changes; ++i) {
    SequenceImage::Block& block = image.blocks[*rc::gen::inRange<size_t>(0, image.blocks.size())];
    const auto width_of = [&](std::vector<PageWidths>& pages) {
      if (pages.empty()) return;
      const size_t page = *rc::gen::inRange<size_t>(0, pages.size());
      int& bits = *rc::gen::arbitrary<bool>() ? pages[page].k : pages[page].v;
      bits = *rc::gen::element(0, 1, 2, 4, 8, 16, 32, 255);
    };
    switch (*rc::gen::inRange(0, 9)) {
      case 0:
        image.num_tokens = some(image.num_tokens);
        break;
      case 1:
        image.peak_bytes = some(image.peak_bytes);
        image.narrowed_bytes = some(image.narrowed_bytes);
        break;
      case 2:
        image.next_is_planned = !image.next_is_planned;
        break;
      case 3:
        width_of(block.pages);
        break;
      case 4:
        width_of(block.next_pages);
        break;
      case 5: {
        auto& bytes = block.bytes[*rc::gen::inRange<size_t>(0, 2)];
        bytes.resize(*rc::gen::inRange<size_t>(0, bytes.size() + 9));
        break;
      }
      case 6:
        block.pages.resize(*rc::gen::inRange<size_t>(0, block.pages.size() + 2));
        break;
      case 7:
        if (*rc::gen::arbitrary<bool>()) image.blocks.resize(1);
        block.next_pages.clear();
        break;
      default: {
        ImageAheadStep step = image.next_steps.empty() ? ImageAheadStep{} : image.next_steps.back();
        step.page = some(step.page);
        step.layer = some(step.layer);
        step.side = some(step.side);
        step.bits = some(step.bits);
        step.tokens_before = some(step.tokens_before);
        image.next_steps.push_back(step);
      }
    }
    if (image.blocks.size() == 1) break;
  }
  // And codes and metadata of any kind.
  for (SequenceImage::Block& block : image.blocks) {
    for (auto& bytes : block.bytes) {
      if (bytes.empty() || *rc::gen::inRange(0, 3) > 0) continue;
      const size_t first = *rc::gen::inRange<size_t>(0, bytes.size());
      for (size_t k = first; k < std::min(first + 64, bytes.size()); ++k) {
        bytes[k] = static_cast<std::byte>(*rc::gen::element(0, 0x7c, 0xff, 0x80));
      }
    }
  }
  session.tokens.resize(static_cast<size_t>(std::clamp<int64_t>(image.num_tokens, 0, 4000)));
  const std::string path = folder_.path() + "/changed.kv";
  WriteSession(path, session);
  Engine engine = Open(Options("pm-kvq"));
  try {
    const SavedSession saved = engine.LoadSession(0, path);
    std::vector<int32_t> prompt = saved.tokens;
    prompt.resize(prompt.size() + 140, 7);
    if (std::ssize(prompt) > 1900) return;
    Request request = MakeRequest(prompt, 60);
    request.session = 0;
    RunOne(engine, request);
  } catch (const InvalidInput&) {
  }
}

}  // namespace
}  // namespace pmkvq
