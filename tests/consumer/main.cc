// A complete program on the installed package: greedy text inside a KV budget.
#include <cstdio>

#include "pmkvq/base/error.h"
#include "pmkvq/engine/engine.h"

int main(int argc, char** argv) try {
  if (argc != 3) return std::fprintf(stderr, "usage: consumer MODEL_FOLDER PROMPT\n"), 2;
  const auto tokenizer = pmkvq::Tokenizer::Load(argv[1]);
  pmkvq::EngineOptions options;
  options.kv.spec = "pm-kvq";
  options.kv.budget_bytes = 3 << 20;
  pmkvq::Engine engine(pmkvq::Model::Load(argv[1]), tokenizer, options);
  pmkvq::Request request;
  request.prompt_ids = tokenizer->Encode(argv[2]);
  request.max_tokens = 600;
  const pmkvq::Completion done = engine.Generate({request}, nullptr, nullptr).front();
  std::printf("%s\n[%s: %zu tokens, KV peak %lld of %lld bytes]\n", done.text.c_str(),
              pmkvq::NameOf(done.finish_reason).data(), done.output_ids.size(),
              static_cast<long long>(done.kv.peak_bytes),
              static_cast<long long>(done.kv.budget_bytes));
} catch (const pmkvq::Error& error) {
  return std::fprintf(stderr, "consumer: %s\n", error.what()), 1;
}
