// The fields tools and tool_choice of a body.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "pmkvq/io/json.h"
#include "pmkvq/server/api/body_fields.h"
#include "pmkvq/server/api/output_format.h"
#include "pmkvq/server/api/tool_calls.h"
#include "pmkvq/text/chat_template.h"

namespace pmkvq::server {

struct ToolRequest {
  struct Function {
    std::string name;
    std::optional<JsonValue> parameters;  // A JSON schema.
  };
  std::optional<JsonValue> list;    // As the template gets it; empty: no tools.
  std::vector<Function> functions;  // Of `list`.
  bool reads_calls = false;         // Calls in the answer are looked for.
  std::vector<size_t> must_call;    // Of `functions`: the answer is a call of one of these.
};

// Throws RefusedRequest: more than 128 tools, types other than function, a choice that names none
// of them, a template that knows no tools.
ToolRequest ReadTools(BodyFields& body, ToolFormat format);

// What a message has besides role and content, for the template; null: nothing. Arguments of calls
// become objects, as templates expect them. `where`: "messages[0]". Throws RefusedRequest.
std::shared_ptr<const JsonValue> ReadToolMessage(const JsonValue& message, const std::string& role,
                                                 const std::string& where);

// An answer that is a call of one of `must_call`. Throws RefusedRequest where parameters are not in
// the known part of JSON Schema.
std::shared_ptr<const OutputGrammar> GrammarOfCall(const ToolRequest& tools, ToolFormat format,
                                                   const OutputFormats& formats,
                                                   const AnswerPlace& place);

}  // namespace pmkvq::server
