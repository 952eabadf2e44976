#include "logprobs_output.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace pmkvq::cli {
namespace {

// In quotes, on one line; bytes that are no whole character become U+FFFD.
std::string Shown(const Tokenizer* tokenizer, int32_t token) {
  if (tokenizer == nullptr) return fmt::format("{}", token);
  JsonWriter json;
  json.String(tokenizer->Decode({token}));
  return json.text();
}

}  // namespace

void WriteLogprobs(JsonWriter& json, const TokenLogprobs& logprobs) {
  const auto pair = [&](const TokenLogprob& one) {
    json.Key("token").Int(one.token).Key("logprob").Number(one.logprob);
  };
  json.BeginObject();
  pair(logprobs.drawn);
  json.Key("top").BeginArray();
  for (const TokenLogprob& one : logprobs.top) {
    json.BeginObject();
    pair(one);
    json.EndObject();
  }
  json.EndArray().EndObject();
}

std::string FormatPromptLogprobs(const Tokenizer* tokenizer, int32_t first_token,
                                 const std::vector<TokenLogprobs>& logprobs) {
  std::string text = fmt::format("{:>6}  {:>10}  {}\n", 0, "-", Shown(tokenizer, first_token));
  double sum = 0;
  for (size_t i = 0; i < logprobs.size(); ++i) {
    const TokenLogprob& own = logprobs[i].drawn;
    sum += own.logprob;
    text += fmt::format("{:>6}  {:>10.4f}  {}", i + 1, own.logprob, Shown(tokenizer, own.token));
    for (size_t j = 0; j < logprobs[i].top.size(); ++j) {
      const TokenLogprob& one = logprobs[i].top[j];
      text += fmt::format("{} {} {:.4f}", j == 0 ? "    likeliest:" : ",",
                          Shown(tokenizer, one.token), one.logprob);
    }
    text += "\n";
  }
  const auto count = static_cast<double>(std::max<size_t>(logprobs.size(), 1));
  return text + fmt::format("[prompt] {} tokens, log-probability {:.4f}, perplexity {:.4f}\n",
                            logprobs.size() + 1, sum, std::exp(-sum / count));
}

}  // namespace pmkvq::cli
