// Chat prompts of the supported model families.
//
// Templates are Jinja programs in the wild; these are native renderings of the families that the
// runtime supports, each tested against its published template's output (tools and tool calls are
// not supported).
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
  kNone,        // The prompt as it is.
  kChatml,      // <|im_start|>role\n...<|im_end|>\n, no default system turn.
  kQwen25,      // ChatML with Qwen2.5's default system turn.
  kQwq,         // ChatML, generation prompt ends in <think>\n, earlier thinking dropped.
  kQwen3,       // ChatML, earlier thinking dropped after the last user turn.
  kDeepseekR1,  // <|User|>...<|Assistant|><think>\n, earlier thinking dropped.
  kLlama3,      // <|start_header_id|>role<|end_header_id|>\n\n...<|eot_id|>
  kLlama31,     // The same, and always a system turn that begins with the dates of Llama 3.1.
  kLongcot,     // ChatML as the shipped model uses it: generation prompt ends in <think>\n.
};

// Names for --chat-template: none, chatml, qwen2.5, qwq, qwen3, deepseek-r1, llama3, llama3.1,
// longcot. Throws InvalidInput listing the names for anything else.
ChatFormat ParseChatFormat(std::string_view name);
std::string_view NameOf(ChatFormat format);

struct ChatTemplate {
  ChatFormat format = ChatFormat::kNone;
  std::string bos_token;  // Text of the BOS token where the family's template writes it; or "".

  // The prompt for `messages`, ready for the assistant's turn when `add_generation_prompt`.
  // Thinking is on where a template lets one choose. It contains the BOS token's text where the
  // template writes one: encode it without Tokenizer::prefix_ids(), except for kNone, which is the
  // contents of the messages one after the other.
  // Throws InvalidInput for an unknown role or no messages.
  std::string Render(const std::vector<ChatMessage>& messages, bool add_generation_prompt) const;
};

// Recognises the family from the Jinja text in `folder`: the file chat_template.jinja, or else
// chat_template in tokenizer_config.json (a string, or the one named "default" of a list).
// bos_token comes from tokenizer_config.json. No template there: kNone.
// A template of an unknown family: throws Unsupported naming --chat-template.
ChatTemplate DetectChatTemplate(const std::string& folder);
// The same from texts (for tests): the Jinja source and the BOS token.
ChatTemplate RecogniseChatTemplate(std::string_view jinja, const std::string& bos_token,
                                   const std::string& source);

// Text of bos_token in `folder`/tokenizer_config.json (a string or an AddedToken object); "" when
// there is none. For a ChatTemplate whose format the user has chosen.
std::string ReadBosToken(const std::string& folder);

}  // namespace pmkvq
