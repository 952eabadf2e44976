// Calls of functions in the text of answers, as model families write them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "pmkvq/io/json.h"
#include "pmkvq/text/chat_template.h"

namespace pmkvq::server {

enum class ToolFormat : uint8_t {
  kNone,
  kHermes,   // <tool_call>{"name": ..., "arguments": {...}}</tool_call>, of Hermes, Qwen, QwQ.
  kLlama3,   // The whole answer is {"name": ..., "parameters": {...}}, or more of them behind ";".
  kMistral,  // [TOOL_CALLS][{"name": ..., "arguments": {...}}], or [TOOL_CALLS]name{...}.
};
// The format that a template writes calls of earlier turns in; kNone where it leaves them out.
ToolFormat ToolFormatOf(const ChatTemplate& chat_template);
// Text that calls begin with: "<tool_call>"; "" for kNone.
std::string_view ToolMarker(ToolFormat format);

struct ToolCall {
  std::string name;
  std::string arguments;  // JSON text.
};

// Splits an answer that arrives in pieces into text and calls. The same however it is cut. What
// looks like a call and is none stays text.
class ToolCallParser {
 public:
  explicit ToolCallParser(ToolFormat format) : format_(format) {}

  struct Output {
    std::string text;
    std::vector<ToolCall> calls;
  };
  Output Push(std::string_view piece);
  // No more text will come.
  Output Finish();

 private:
  Output Take(bool is_end);
  void AddText(std::string_view text, Output& out);
  void TakeHermes(bool is_end, Output& out);
  void TakeLlama3(bool is_end, Output& out);
  void TakeMistral(bool is_end, Output& out);

  ToolFormat format_;
  std::string held_;
  bool is_text_ = false;       // kLlama3: the answer is no call.
  bool is_start_ = true;       // kHermes: nothing but space so far.
  bool skips_spaces_ = false;  // kHermes: behind a call.
};

}  // namespace pmkvq::server
