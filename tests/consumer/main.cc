// A complete program on the installed package: an answer inside a KV budget, shown as it comes.
#include <cstdio>

#include "pmkvq/base/error.h"
#include "pmkvq/engine/engine.h"
#include "pmkvq/text/chat_template.h"

int main(int argc, char** argv) try {
  if (argc != 3) return std::fprintf(stderr, "usage: consumer MODEL_FOLDER MESSAGE\n"), 2;
  const auto tokenizer = pmkvq::Tokenizer::Load(argv[1]);
  const pmkvq::ChatTemplate chat_template = pmkvq::LoadChatTemplate(argv[1]);
  const auto model = pmkvq::Model::Load(argv[1]);
  pmkvq::KvOptions kv;
  kv.spec = "pm-kvq";
  kv.budget_bytes = 3 << 20;
  const pmkvq::EngineOptions options;
  pmkvq::Engine engine(model, tokenizer, pmkvq::MakePackedCache(*model, kv, options), options);
  pmkvq::Request request;
  request.prompt_ids = tokenizer->Encode(chat_template.Render({{"user", argv[2]}}, true));
  request.max_tokens = 600;
  pmkvq::TextStream stream([](pmkvq::RequestId, const std::string& text) {
    std::fputs(text.c_str(), stdout);
    std::fflush(stdout);
  });
  const pmkvq::Completion done = engine.Generate({request}, &stream, nullptr).front();
  std::printf("\n[%s: %zu tokens, KV peak %lld of %lld bytes]\n",
              pmkvq::NameOf(done.finish_reason).data(), done.output_ids.size(),
              static_cast<long long>(done.kv.peak_bytes),
              static_cast<long long>(done.kv.budget_bytes));
} catch (const pmkvq::Error& error) {
  return std::fprintf(stderr, "consumer: %s\n", error.what()), 1;
}
