// Foreign chat templates, rendered with foreign variables. The input is a template, then optionally
// a zero byte and a JSON object of variables.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "pmkvq/base/error.h"
#include "pmkvq/io/json.h"
#include "pmkvq/io/utf8.h"
#include "pmkvq/text/jinja/template.h"
#include "pmkvq/text/tokenizer.h"

namespace {

using pmkvq::JsonValue;
using pmkvq::MarkedText;
namespace jinja = pmkvq::jinja;

constexpr std::string_view kVariables =
    R"({"messages":[{"role":"system","content":"Be é."},{"role":"user","content":" <s>hi\n"},
        {"role":"assistant","content":"<think>a</think>b","tool_calls":[{"function":{"name":"f",
        "arguments":{"x":[1,2.5,null,true]}}}]}],"tools":[{"name":"f"}],"bos_token":"<s>",
        "add_generation_prompt":true,"x":"aÄ ","n":3,"f":0.1,"l":[3,1,2],"d":{"b":1,"a":{}}})";

jinja::Variables VariablesOf(std::string_view text) {
  const JsonValue json = JsonValue::Parse(text, "variables");
  jinja::Variables variables;
  if (!json.IsObject()) return variables;
  for (const std::string& name : json.Keys()) {
    variables.emplace_back(name, jinja::FromJson(json.Find(name)));
  }
  return variables;
}

// A prompt is UTF-8, and its marks are ascending ranges inside of it that cut no character.
void CheckPrompt(const MarkedText& prompt, const jinja::Limits& limits) {
  if (pmkvq::ValidUtf8Prefix(prompt.text) != prompt.text.size()) std::abort();
  if (static_cast<int64_t>(prompt.text.size()) > limits.max_output_bytes) std::abort();
  size_t done = 0;
  for (const pmkvq::ByteRange& range : prompt.input) {
    if (range.begin < done || range.end <= range.begin || range.end > prompt.text.size()) {
      std::abort();
    }
    done = range.end;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t zero = input.find('\0');
  jinja::Limits limits;
  limits.max_steps = 50'000;
  limits.max_memory_bytes = 4 << 20;
  limits.max_output_bytes = 1 << 20;
  limits.max_range = 1000;
  limits.max_depth = 200;  // Frames with sanitizers are larger.
  limits.max_nesting = 100;
  try {
    const auto chat_template = jinja::Template::Parse(input.substr(0, zero), "fuzz", limits);
    CheckPrompt(chat_template->Render(VariablesOf(kVariables)), limits);
    if (zero != std::string_view::npos) {
      CheckPrompt(chat_template->Render(VariablesOf(input.substr(zero + 1))), limits);
    }
  } catch (const pmkvq::Error& error) {
    // Refused input is what the library promises, in one line.
    if (std::string_view(error.what()).find('\n') != std::string_view::npos) std::abort();
  }
  return 0;
}
