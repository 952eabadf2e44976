// Chat prompts of the supported model families.
//
// Templates are Jinja programs in the wild; these are native renderings of the families that the
// runtime supports, each tested against its published template's output.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace pmkvq {

struct ChatMessage {
  std::string role;  // "system", "user" or "assistant"
  std::string content;
};

enum class ChatFormat {
  kNone,          // The prompt as it is.
  kChatml,        // <|im_start|>role\n...<|im_end|>\n, no default system turn.
  kQwen25,        // ChatML with Qwen2.5's default system turn.
  kQwq,           // ChatML, generation prompt ends in <think>\n, earlier thinking dropped.
  kQwen3,         // ChatML, earlier thinking dropped after the last user turn.
  kDeepseekR1,    // <|User|>...<|Assistant|><think>\n, earlier thinking dropped.
  kLlama3,        // <|start_header_id|>role<|end_header_id|>\n\n...<|eot_id|>
  kLongcot,       // ChatML as the shipped model uses it: generation prompt ends in <think>\n.
};

// Names for --chat-template: none, chatml, qwen2.5, qwq, qwen3, deepseek-r1, llama3, longcot.
// Throws InvalidInput listing the names for anything else.
ChatFormat ParseChatFormat(std::string_view name);
std::string_view NameOf(ChatFormat format);

struct ChatTemplate {
  ChatFormat format = ChatFormat::kNone;
  std::string bos_token;  // Text of the BOS token where the family's template writes it; or "".

  // The prompt for `messages`, ready for the assistant's turn when `add_generation_prompt`.
  // Throws InvalidInput for an unknown role or no messages.
  std::string Render(const std::vector<ChatMessage>& messages, bool add_generation_prompt) const;
};

// Recognises the family from `folder`/tokenizer_config.json (its chat_template text, or the file
// chat_template.jinja beside it, and bos_token). No template there: kNone.
// A template of an unknown family: throws Unsupported naming --chat-template.
ChatTemplate DetectChatTemplate(const std::string& folder);
// The same from texts (for tests): the Jinja source and the BOS token.
ChatTemplate RecogniseChatTemplate(std::string_view jinja, const std::string& bos_token,
                                   const std::string& source);

}  // namespace pmkvq
