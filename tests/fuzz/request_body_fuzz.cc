// Foreign bodies of requests. The first byte chooses the endpoint; where an answer must follow a
// grammar, tokens that it allows are drawn for a while.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>

#include "pmkvq/base/error.h"
#include "pmkvq/server/api/api_error.h"
#include "pmkvq/server/api/requests.h"
#include "pmkvq/server/api/responses.h"
#include "support/small_tokenizer.h"

namespace {

using pmkvq::Tokenizer;
using pmkvq::server::ApiContext;
using pmkvq::server::CompletionRequest;

constexpr int32_t kEnd = 256;

const ApiContext& Context() {
  static const ApiContext context = [] {
    pmkvq::testing_support::SmallTokenizer text;
    text.added_tokens =
        R"([{"id":256,"content":"<|im_end|>","special":true},
            {"id":257,"content":"<think>","special":false}])";
    ApiContext made;
    made.model_names = {"m"};
    made.tokenizer = Tokenizer::Parse(text.Json(), "fuzz");
    made.vocab_size = made.tokenizer->vocab_size();
    made.chat_template = pmkvq::ChatTemplate::BuiltIn("chatml");
    made.eos_ids = {kEnd};
    made.formats = std::make_shared<pmkvq::server::OutputFormats>(made.tokenizer, made.vocab_size);
    made.tool_format = pmkvq::server::ToolFormat::kHermes;
    made.max_len = 100'000;
    return made;
  }();
  return context;
}

// All bytes are tokens: a grammar never leaves a text without a next one.
void Draw(const CompletionRequest& request, std::string_view input) {
  const std::unique_ptr<pmkvq::TokenMask> mask = request.grammar->Start();
  for (size_t step = 0; step < 60; ++step) {
    std::string allowed(static_cast<size_t>(Context().vocab_size), '\1');
    for (const int32_t id : mask->Forbidden()) allowed[static_cast<size_t>(id)] = '\0';
    const auto first = static_cast<unsigned char>(input[step % input.size()]);
    size_t token = first;
    while (allowed[token % allowed.size()] == '\0') {
      if (++token > first + allowed.size()) std::abort();
    }
    token %= allowed.size();
    if (token == kEnd) return;
    mask->Accept(static_cast<int32_t>(token));
  }
}

CompletionRequest Read(uint8_t kind, std::string_view body) {
  switch (kind % 3) {
    case 0:
      return ReadChatRequest(body, Context());
    case 1:
      return ReadTextRequest(body, Context());
    default:
      return ReadResponsesRequest(body, Context());
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  const std::string_view body(reinterpret_cast<const char*>(data) + 1, size - 1);
  try {
    const CompletionRequest request = Read(data[0], body);
    for (size_t i = 0; i < request.prompts.size(); ++i) (void)request.EngineRequest(i);
    if (request.grammar != nullptr) Draw(request, body);
  } catch (const pmkvq::server::RefusedRequest& refusal) {
    // One line that says what is wrong with which field.
    const pmkvq::server::ApiError& error = refusal.error();
    if (error.status < 400 || error.status > 499 || error.message.empty()) std::abort();
  } catch (const pmkvq::Error&) {
    // Becomes a 400, too.
  }
  return 0;
}
