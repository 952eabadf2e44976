// What a request gives, alone and among others: ids, text, ends, sessions.
#include "pmkvq/engine/engine.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "pmkvq/io/safetensors.h"
#include "support/engine_fixture.h"

namespace pmkvq {
namespace {

using testing_support::ByteTokenizer;
using testing_support::DefaultModelFolder;
using testing_support::LoadTinyLlama;
using testing_support::MakeRequest;
using testing_support::RandomPrompt;
using testing_support::RecordingObserver;
using testing_support::RunOne;

SpecEngineOptions Fp16(int64_t max_sequences = 1, int64_t max_len = 1500) {
  SpecEngineOptions options;
  options.max_sequences = max_sequences;
  options.max_len = max_len;
  options.num_threads = 1;
  return options;
}

std::vector<int32_t> GoldenIds(const std::string& fixture, const std::string& name) {
  const auto file =
      SafetensorsFile::Open(PMKVQ_SOURCE_DIR "/tests/golden/" + fixture + ".safetensors");
  const TensorView* tensor = file.Find(name);
  const auto* values = tensor->As<int64_t>();
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < tensor->num_elements(); ++i) {
    ids.push_back(static_cast<int32_t>(values[i]));
  }
  return ids;
}

TEST(EngineGolden, GreedyIdsOfTheReference) {
  for (const std::string fixture : {"tiny-llama", "default-model"}) {
    const auto model =
        fixture == "tiny-llama" ? LoadTinyLlama() : Model::Load(DefaultModelFolder());
    SpecEngineOptions options = Fp16();
    options.kv.kv_dtype = DType::kF32;
    options.chunk = 48;  // The prompt of 64 takes two chunks.
    Engine engine = OpenEngine(model, nullptr, options);
    const std::vector<int32_t> expected = GoldenIds(fixture, "greedy_ids");
    const Completion done = RunOne(engine, MakeRequest(GoldenIds(fixture, "prompt_ids"),
                                                       static_cast<int64_t>(expected.size())));
    EXPECT_EQ(done.output_ids, expected) << fixture;
    EXPECT_EQ(done.finish_reason, FinishReason::kLength);
    EXPECT_EQ(done.text, "");
    EXPECT_EQ(done.kv.num_tokens, 64 + 64 - 1);
  }
}

TEST(Engine, StopsAtAnEndOfSequenceToken) {
  const auto tokenizer = Tokenizer::Load(DefaultModelFolder());
  SpecEngineOptions options = Fp16(1, 1024);
  Engine engine = OpenEngine(Model::Load(DefaultModelFolder()), tokenizer, options);
  Request request;
  request.prompt_ids = tokenizer->Encode(
      "<|im_start|>user\nCompute 12 * 34. Work digit by digit.<|im_end|>\n<|im_start|>assistant\n"
      "<think>\n");
  RecordingObserver observer;
  const Completion done = RunOne(engine, request, &observer);
  ASSERT_EQ(done.finish_reason, FinishReason::kStop);
  EXPECT_TRUE(tokenizer->IsSpecial(done.output_ids.back()));
  EXPECT_EQ(done.text.find("<|im_end|>"), std::string::npos);
  EXPECT_EQ(done.text, tokenizer->Decode(done.output_ids, true));
  EXPECT_EQ(observer.TextOf(done.id), done.text);
  EXPECT_EQ(observer.IdsOf(done.id), done.output_ids);
  ASSERT_EQ(observer.finished.size(), 1u);
  EXPECT_EQ(observer.finished[0].output_ids, done.output_ids);
  EXPECT_GT(done.prefill_seconds, 0);
  EXPECT_GT(done.decode_seconds, 0);
  // The prompt was alone in its step; the rest of a Step takes microseconds.
  const EngineStats stats = engine.stats();
  EXPECT_GT(stats.prefill_seconds, 0);
  EXPECT_LE(stats.prefill_seconds, done.prefill_seconds);
  EXPECT_LE(stats.decode_seconds, done.decode_seconds);

  // The same without heeding it goes on.
  request.ignore_eos = true;
  request.max_tokens = static_cast<int64_t>(done.output_ids.size()) + 3;
  const Completion longer = RunOne(engine, request);
  EXPECT_EQ(longer.finish_reason, FinishReason::kLength);
  EXPECT_EQ(longer.output_ids.size(), done.output_ids.size() + 3);
  EXPECT_TRUE(
      std::equal(done.output_ids.begin(), done.output_ids.end(), longer.output_ids.begin()));
}

TEST(Engine, StopStringAcrossTokensCutsTheText) {
  Engine engine = OpenEngine(LoadTinyLlama(), ByteTokenizer(), Fp16());
  Request request = MakeRequest(RandomPrompt(20, 5), 60);
  request.sampling.temperature = 1.0;
  const Completion whole = RunOne(engine, request);
  ASSERT_GT(whole.text.size(), 30u);
  const size_t begin = 17;  // Inside the output; every byte is a token of its own.
  const std::string stop = whole.text.substr(begin, 6);
  ASSERT_EQ(whole.text.find(stop), begin);

  request.stop = {"never to be seen", stop};
  RecordingObserver observer;
  const Completion cut = RunOne(engine, request, &observer);
  EXPECT_EQ(cut.finish_reason, FinishReason::kStop);
  EXPECT_EQ(cut.text, whole.text.substr(0, begin));
  EXPECT_EQ(observer.TextOf(cut.id), cut.text);
  ASSERT_LT(cut.output_ids.size(), whole.output_ids.size());
  EXPECT_TRUE(std::equal(cut.output_ids.begin(), cut.output_ids.end(), whole.output_ids.begin()));
}

TEST(Engine, LastTokenBringsTheTextThatWasHeldBack) {
  Engine engine = OpenEngine(LoadTinyLlama(), ByteTokenizer(), Fp16());
  Request request = MakeRequest(RandomPrompt(20, 5), 60);
  request.sampling.temperature = 1.0;
  const Completion whole = RunOne(engine, request);
  // The text ends in the beginning of this stop string.
  request.stop = {whole.text.substr(whole.text.size() - 3) + "~never~"};
  RecordingObserver observer;
  const Completion done = RunOne(engine, request, &observer);
  EXPECT_EQ(done.finish_reason, FinishReason::kLength);
  EXPECT_EQ(done.text, whole.text);
  EXPECT_EQ(observer.TextOf(done.id), whole.text);
}

TEST(Engine, EndsAtMaxTokensAndMaxLen) {
  Engine engine = OpenEngine(LoadTinyLlama(), nullptr, Fp16(1, 100));
  EXPECT_EQ(RunOne(engine, MakeRequest(RandomPrompt(90, 1), 1)).output_ids.size(), 1u);
  for (const int64_t max_tokens : {0, 10, 50}) {
    const Completion done = RunOne(engine, MakeRequest(RandomPrompt(90, 1), max_tokens));
    EXPECT_EQ(done.output_ids.size(), 10u);
    EXPECT_EQ(done.finish_reason, FinishReason::kLength);
  }
  // No room for a single token: nothing to compute.
  const Completion full = RunOne(engine, MakeRequest(RandomPrompt(100, 1), 5));
  EXPECT_TRUE(full.output_ids.empty());
  EXPECT_EQ(full.finish_reason, FinishReason::kLength);
  EXPECT_EQ(full.prompt_ids.size(), 100u);
  EXPECT_EQ(full.kv.num_tokens, 0);
}

TEST(Engine, RunsToTheLastPositionOfTheModel) {
  SpecEngineOptions options = Fp16(1, 0);
  options.kv.spec = "static-2";
  Engine engine = OpenEngine(LoadTinyLlama(), nullptr, options);
  const Completion done = RunOne(engine, MakeRequest(RandomPrompt(4090, 1), 0));
  EXPECT_EQ(done.output_ids.size(), 6u);
  EXPECT_EQ(done.kv.num_tokens, 4095);
}

TEST(Engine, SeedDecidesTheSample) {
  Engine engine = OpenEngine(LoadTinyLlama(), nullptr, Fp16());
  Request request = MakeRequest(RandomPrompt(30, 2), 40, 11);
  request.sampling.temperature = 1.0;
  request.sampling.top_p = 0.95;
  const Completion first = RunOne(engine, request);
  EXPECT_EQ(RunOne(engine, request).output_ids, first.output_ids);
  request.seed = 12;
  EXPECT_NE(RunOne(engine, request).output_ids, first.output_ids);
}

// Requests of different lengths, half of them sampled. Most cross the end of their first page.
std::vector<Request> MixedRequests(size_t count) {
  std::vector<Request> requests;
  for (size_t i = 0; i < count; ++i) {
    Request request = MakeRequest(RandomPrompt(100 + static_cast<int64_t>(i * 37 % 60), 100 + i),
                                  10 + static_cast<int64_t>(i * 13 % 20), i);
    if (i % 2 == 0) request.sampling.temperature = 0.9;
    requests.push_back(request);
  }
  return requests;
}

TEST(Engine, OutputDoesNotDependOnNeighboursArrivalOrThreads) {
  const auto model = LoadTinyLlama();
  for (const char* spec : {"fp16", "pm-kvq"}) {
    SpecEngineOptions options = Fp16(1, 400);
    options.chunk = 64;
    options.kv.spec = spec;
    if (options.kv.spec == "pm-kvq") options.kv.budget_bytes = 2 * 24000;  // Ends at 4 bits.
    const std::vector<Request> requests = MixedRequests(16);
    std::vector<Completion> alone;
    {
      Engine engine = OpenEngine(model, nullptr, options);
      for (const Request& request : requests) alone.push_back(RunOne(engine, request));
    }
    for (const int threads : {1, 2}) {
      for (const size_t batch : {size_t{7}, size_t{16}}) {
        options.max_sequences = static_cast<int64_t>(batch);
        options.num_threads = threads;
        Engine engine = OpenEngine(model, nullptr, options);
        RecordingObserver observer;
        for (size_t i = 0; i < requests.size(); ++i) {
          engine.Submit(requests[i]);
          for (size_t step = 0; step < i % 3 * 4; ++step) engine.Step(&observer);  // Staggered.
        }
        while (engine.Step(&observer)) {
        }
        ASSERT_EQ(observer.finished.size(), requests.size());
        for (const Completion& done : observer.finished) {
          const Completion& expected = alone[static_cast<size_t>(done.id) - 1];
          EXPECT_EQ(done.output_ids, expected.output_ids) << spec << " request " << done.id;
          EXPECT_EQ(done.kv.peak_bytes, expected.kv.peak_bytes);
          EXPECT_EQ(done.kv.pages, expected.kv.pages);
          EXPECT_LE(done.kv.peak_bytes, done.kv.budget_bytes);
        }
      }
    }
  }
}

TEST(Engine, DecodesRunningRequestsTogetherAndTheRestWaits) {
  SpecEngineOptions options = Fp16(2);
  options.prefill_share = 1;
  Engine engine = OpenEngine(LoadTinyLlama(), nullptr, options);
  const RequestId a = engine.Submit(MakeRequest(RandomPrompt(5, 1), 3));
  const RequestId b = engine.Submit(MakeRequest(RandomPrompt(5, 2), 3));
  const RequestId c = engine.Submit(MakeRequest(RandomPrompt(5, 3), 3));
  EXPECT_FALSE(engine.SequenceOf(a).has_value());
  RecordingObserver observer;
  EXPECT_TRUE(engine.Step(&observer));  // Prefill of a, its first token.
  EXPECT_TRUE(engine.SequenceOf(a).has_value());
  EXPECT_FALSE(engine.SequenceOf(c).has_value());
  engine.Step(&observer);  // Prefill of b.
  engine.Step(&observer);  // Both.
  engine.Step(&observer);
  EXPECT_EQ(observer.finished.size(), 2u);
  EXPECT_FALSE(engine.SequenceOf(a).has_value());
  engine.Step(nullptr);  // Prefill of c; nobody listens.
  EXPECT_TRUE(engine.SequenceOf(c).has_value());
  EXPECT_TRUE(engine.Step(&observer));
  EXPECT_FALSE(engine.Step(&observer));
  EXPECT_FALSE(engine.Step(&observer));
  ASSERT_EQ(observer.finished.size(), 3u);
  EXPECT_EQ(observer.finished[0].id, a);
  EXPECT_EQ(observer.finished[1].id, b);
  EXPECT_EQ(observer.finished[2].id, c);
  EXPECT_GT(engine.workspace_bytes(), 0u);
}

TEST(Engine, CancelEndsEveryRequestWithWhatItHas) {
  class CancelAfter : public RecordingObserver {
   public:
    void OnToken(RequestId id, int32_t token, const std::string& text) override {
      RecordingObserver::OnToken(id, token, text);
      if (tokens.size() == 10) cancel = true;
    }
    CancelFlag cancel = false;
  };
  Engine engine = OpenEngine(LoadTinyLlama(), ByteTokenizer(), Fp16(2));
  std::vector<Request> requests;
  for (uint64_t i = 0; i < 3; ++i) requests.push_back(MakeRequest(RandomPrompt(8, i), 50));
  CancelAfter observer;
  const std::vector<Completion> done = engine.Generate(requests, &observer, &observer.cancel);
  ASSERT_EQ(done.size(), 3u);
  for (const Completion& completion : done) {
    EXPECT_EQ(completion.finish_reason, FinishReason::kCancelled);
    EXPECT_EQ(completion.output_ids, observer.IdsOf(completion.id));
  }
  // The step in which the flag was set is finished: two requests run.
  EXPECT_LE(done[0].output_ids.size() + done[1].output_ids.size(), 10u + 1u);
  EXPECT_TRUE(done[2].output_ids.empty());
  EXPECT_FALSE(engine.Step(nullptr));

  // The engine goes on with new requests.
  EXPECT_EQ(RunOne(engine, requests[0]).output_ids.size(), 50u);
}

TEST(Engine, SessionReusesItsPrefix) {
  const auto model = LoadTinyLlama();
  SpecEngineOptions options = Fp16(1);
  options.chunk = 32;
  Engine engine = OpenEngine(model, nullptr, options);
  Request first = MakeRequest(RandomPrompt(50, 1), 20);
  first.session = 7;
  const Completion turn = RunOne(engine, first);

  // The next turn: the conversation so far without its last 5 tokens, and new ones.
  std::vector<int32_t> prompt = turn.prompt_ids;
  prompt.insert(prompt.end(), turn.output_ids.begin(), turn.output_ids.end() - 5);
  const std::vector<int32_t> more = RandomPrompt(40, 2);
  prompt.insert(prompt.end(), more.begin(), more.end());
  Request second = MakeRequest(prompt, 30);
  Engine other = OpenEngine(model, nullptr, options);
  const Completion fresh = RunOne(other, second);

  second.session = 7;
  engine.Submit(second);
  EXPECT_TRUE(engine.Step(nullptr));
  // 65 tokens were there; the first chunk runs to the next multiple of 32.
  EXPECT_EQ(engine.store().NumTokens(0), 96);
  RecordingObserver observer;
  while (engine.Step(&observer)) {
  }
  ASSERT_EQ(observer.finished.size(), 1u);
  EXPECT_EQ(observer.finished[0].output_ids, fresh.output_ids);
  EXPECT_EQ(observer.finished[0].kv.num_tokens, fresh.kv.num_tokens);
}

TEST(Engine, SessionWithTheSamePromptComputesItsLastTokenOnly) {
  Engine engine = OpenEngine(LoadTinyLlama(), nullptr, Fp16(1));
  Request request = MakeRequest(RandomPrompt(50, 1), 20);
  request.session = 0;
  const Completion first = RunOne(engine, request);
  engine.Submit(request);
  engine.Step(nullptr);
  EXPECT_EQ(engine.store().NumTokens(0), 50);
  RecordingObserver observer;
  while (engine.Step(&observer)) {
  }
  EXPECT_EQ(observer.finished.at(0).output_ids, first.output_ids);

  // A prompt that shares nothing starts anew.
  request.prompt_ids = RandomPrompt(50, 9);
  request.prompt_ids[0] = first.prompt_ids[0] == 5 ? 6 : 5;
  Engine other = OpenEngine(LoadTinyLlama(), nullptr, Fp16(1));
  EXPECT_EQ(RunOne(engine, request).output_ids, RunOne(other, request).output_ids);
}

TEST(Engine, IdleSessionsMakeRoomAndBusyOnesAreWaitedFor) {
  Engine engine = OpenEngine(LoadTinyLlama(), nullptr, Fp16(2));
  std::vector<Request> requests;
  for (int64_t session = 0; session < 3; ++session) {
    requests.push_back(MakeRequest(RandomPrompt(10, 1), 5));
    requests.back().session = session;
  }
  // Three sessions on two sequences, one after the other and at once.
  for (const Request& request : requests) EXPECT_EQ(RunOne(engine, request).output_ids.size(), 5u);
  requests.push_back(requests[0]);
  requests.push_back(requests[0]);
  const std::vector<Completion> done = engine.Generate(requests, nullptr, nullptr);
  for (const Completion& completion : done) EXPECT_EQ(completion.output_ids, done[0].output_ids);
}

TEST(Engine, ClosedSessionsGiveTheirSequenceBack) {
  Engine engine = OpenEngine(LoadTinyLlama(), nullptr, Fp16(1));
  Request request = MakeRequest(RandomPrompt(10, 1), 5);
  request.session = 3;
  RunOne(engine, request);
  EXPECT_EQ(engine.store().NumTokens(0), 14);
  engine.CloseSession(3);
  engine.CloseSession(3);  // There is none any more.
  engine.Submit(request);
  engine.Step(nullptr);
  EXPECT_EQ(engine.store().NumTokens(0), 10) << "prefilled from the start";
  engine.CloseSession(3);  // While it runs: closed at its end.
  while (engine.Step(nullptr)) {
  }
  engine.Submit(request);
  engine.Step(nullptr);
  EXPECT_EQ(engine.store().NumTokens(0), 10);
}

TEST(Engine, NamesFinishReasons) {
  EXPECT_EQ(NameOf(FinishReason::kStop), "stop");
  EXPECT_EQ(NameOf(FinishReason::kLength), "length");
  EXPECT_EQ(NameOf(FinishReason::kKvBudget), "kv_budget");
  EXPECT_EQ(NameOf(FinishReason::kCancelled), "cancelled");
  EXPECT_EQ(NameOf(FinishReason::kError), "error");
}

}  // namespace
}  // namespace pmkvq
