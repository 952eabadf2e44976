// POST /v1/responses: OpenAI's newer protocol for the same answers. Stateless: nothing is kept for
// a later request.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "pmkvq/server/api/api_error.h"
#include "pmkvq/server/api/replies.h"
#include "pmkvq/server/api/requests.h"

namespace pmkvq::server {

// Reads a body of /v1/responses by way of the chat request that asks for the same. Throws
// RefusedRequest; fields that both have in another place are named as the body has them.
CompletionRequest ReadResponsesRequest(std::string_view body, const ApiContext& context);

// The answer as items: reasoning, messages, calls.
class ResponseWriter {
 public:
  explicit ResponseWriter(ReplyHead head);

  // Moves what is pending of the choice into items. `events`: gets what a stream says of it; may be
  // null.
  void Take(ChoiceState& choice, std::string* events);
  // The end of the stream; no text will come.
  void AppendEnd(const ChoiceState& choice, const UsageState& usage, const KvReport& kv,
                 std::string& events);
  void AppendError(const ApiError& error, std::string& events);
  // The whole answer.
  std::string Body(const ChoiceState& choice, const UsageState& usage, const KvReport& kv) const;

 private:
  enum class Kind : uint8_t { kReasoning, kMessage, kCall };
  struct Item {
    Kind kind = Kind::kMessage;
    std::string id;
    std::string text;
    ReplyCall call;
    bool is_done = false;
  };

  void Begin(std::string* events);
  Item& Open(Kind kind, std::string* events);
  void AddText(Kind kind, std::string& text, std::string* events);
  void AddCall(ReplyCall call, std::string* events);
  void Close(std::string* events);
  static void WriteItem(JsonWriter& json, const Item& item, bool is_empty);
  static void WritePart(JsonWriter& json, const Item& item, bool is_empty);
  void WriteResponse(JsonWriter& json, const char* status, const ChoiceState* choice,
                     const UsageState* usage, const KvReport* kv) const;
  // Appends an event; `write` writes its members.
  template <class Write>
  void Event(const char* type, std::string* events, const Write& write);
  template <class Write>
  void ItemEvent(const char* type, std::string* events, const Write& write);

  ReplyHead head_;
  std::vector<Item> items_;
  int64_t sequence_ = 0;
  bool has_begun_ = false;
};

}  // namespace pmkvq::server
