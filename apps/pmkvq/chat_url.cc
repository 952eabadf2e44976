// pmkvq chat: a conversation with a server that speaks OpenAI's API.
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <optional>

#include "commands.h"
#include "file_options.h"
#include "help_format.h"
#include "line_editor.h"
#include "option_values.h"
#include "pmkvq/io/json.h"
#include "pmkvq/io/utf8.h"
#include "pmkvq/server/http/client.h"
#include "terminal.h"

namespace pmkvq::cli {
namespace {

struct Options {
  std::string url;
  std::string api_key;
  std::string ca_cert;
  std::string model;
  std::string system;
  std::string message;
  std::optional<double> temperature;
  std::optional<double> top_p;
  std::optional<int64_t> seed;
  int64_t max_tokens = 0;
  bool hides_reasoning = false;
};

struct Message {
  std::string role;
  std::string content;
};

// The lines "data: ..." of a stream that arrives in pieces.
class EventLines {
 public:
  template <class Take>
  void Push(std::string_view piece, const Take& take) {
    held_ += piece;
    for (size_t end = held_.find('\n'); end != std::string::npos; end = held_.find('\n')) {
      std::string line = held_.substr(0, end);
      held_.erase(0, end + 1);
      if (line.ends_with('\r')) line.pop_back();
      if (!line.starts_with("data:")) continue;
      const size_t begin = line.find_first_not_of(' ', 5);
      if (begin != std::string::npos) take(std::string_view(line).substr(begin));
    }
  }

 private:
  std::string held_;
};

// Without control characters but line breaks and tabs: a server must not steer the terminal.
std::string Shown(std::string_view text) {
  std::string shown;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    const bool is_c1 =
        byte == 0xc2 && i + 1 < text.size() && static_cast<unsigned char>(text[i + 1]) < 0xa0;
    if (is_c1) ++i;
    if (!is_c1 && (byte >= 0x20 || byte == '\n' || byte == '\t') && byte != 0x7f) {
      shown += text[i];
    }
  }
  return shown;
}

std::string Dimmed(const std::string& text) {
  return StdoutTakesStyle() ? "\x1b[2m" + text + "\x1b[0m" : text;
}

// One event of an answer, shown and taken apart.
struct Answer {
  std::string content;
  std::string finish;
  bool in_reasoning = false;
  int64_t num_tokens = -1;

  void Take(std::string_view text, const Options& options) {
    if (text == "[DONE]") return;
    const JsonValue event = JsonValue::Parse(text, options.url);
    if (event.Has("error")) FailOf(event.At("error"), options);
    if (event.Has("usage")) {
      const JsonValue count = event.At("usage").Find("completion_tokens");
      if (count.IsInteger()) num_tokens = count.AsInt();
    }
    const JsonValue choices = event.Find("choices");
    if (!choices.IsArray() || choices.size() == 0) return;
    const JsonValue choice = choices.At(0);
    if (choice.Has("finish_reason")) finish = choice.At("finish_reason").AsString();
    const JsonValue delta = choice.Find("delta");
    if (!delta.IsObject()) return;
    const bool has_reasoning = delta.Has("reasoning_content");
    for (const char* key : {"reasoning_content", "reasoning"}) {
      if (!delta.Has(key) || (has_reasoning && std::string_view(key) == "reasoning")) continue;
      const std::string part = delta.At(key).AsString();
      if (part.empty() || options.hides_reasoning) continue;
      Print(Dimmed(Shown(part)));
      in_reasoning = true;
    }
    if (!delta.Has("content")) return;
    const std::string part = delta.At("content").AsString();
    if (part.empty()) return;
    if (std::exchange(in_reasoning, false)) Print("\n\n");
    Print(Shown(part));
    content += part;
  }
  [[noreturn]] static void FailOf(const JsonValue& error, const Options& options) {
    const bool has_text =
        error.IsObject() && error.Has("message") && error.At("message").IsString();
    throw IoError(options.url, Shown(has_text ? error.At("message").AsString() : error.Dump()));
  }
};

class UrlChat {
 public:
  explicit UrlChat(const Options& options)
      : options_(options), url_(server::HttpUrl::Parse(options.url)) {
    if (url_.path.empty()) url_.path = "/v1";
    url_.ca_file = options.ca_cert;
    Clear();
  }

  void Run();

 private:
  void Clear() {
    messages_.clear();
    if (!options_.system.empty()) messages_.push_back({"system", options_.system});
  }
  void FindModel();
  std::string Body() const;
  // Adds the answer to the last message. Throws what went wrong, and the message is dropped then.
  void AnswerLast();
  void AskForAnswer();
  void FailByReply(const std::string& text) const;
  int Request(const std::string& method, const std::string& path, const std::string& body,
              const std::function<void(std::string_view)>& on_body) const;

  Options options_;
  server::HttpUrl url_;
  std::vector<Message> messages_;
};

int UrlChat::Request(const std::string& method, const std::string& path, const std::string& body,
                     const std::function<void(std::string_view)>& on_body) const {
  server::ClientRequest request;
  request.method = method;
  request.path = path;
  request.body = body;
  if (!options_.api_key.empty()) {
    request.headers.emplace_back("Authorization", "Bearer " + options_.api_key);
  }
  return server::Fetch(url_, request, on_body, [] { return IsCancelled(InterruptFlag()); });
}

// The first one that the server has.
void UrlChat::FindModel() {
  if (!options_.model.empty()) return;
  std::string text;
  const int status = Request("GET", "/models", "", [&](std::string_view piece) { text += piece; });
  if (status == 0) return;
  if (status != 200) {
    FailByReply(text);
    throw IoError(options_.url,
                  fmt::format("status {} for /models; --model NAME names one", status));
  }
  const JsonValue reply = JsonValue::Parse(text, options_.url + "/models");
  const JsonValue list = reply.At("data");
  if (list.size() == 0) throw IoError(options_.url, "the server has no model");
  options_.model = list.At(0).At("id").AsString();
}

std::string UrlChat::Body() const {
  JsonWriter json;
  json.BeginObject().Key("model").String(options_.model).Key("messages").BeginArray();
  for (const Message& message : messages_) {
    json.BeginObject().Key("role").String(message.role);
    json.Key("content").String(message.content).EndObject();
  }
  json.EndArray().Key("stream").Bool(true);
  json.Key("stream_options").BeginObject().Key("include_usage").Bool(true).EndObject();
  if (options_.temperature) json.Key("temperature").Number(*options_.temperature);
  if (options_.top_p) json.Key("top_p").Number(*options_.top_p);
  if (options_.seed) json.Key("seed").Int(*options_.seed);
  if (options_.max_tokens > 0) json.Key("max_tokens").Int(options_.max_tokens);
  json.EndObject();
  return json.text();
}

// The error that a reply's body tells, if it tells one.
void UrlChat::FailByReply(const std::string& text) const {
  std::optional<JsonValue> reply;
  try {
    reply = JsonValue::Parse(text, options_.url);
  } catch (const InvalidInput&) {
    return;
  }
  if (reply->IsObject() && reply->Has("error")) Answer::FailOf(reply->At("error"), options_);
}

void UrlChat::AnswerLast() {
  try {
    AskForAnswer();
  } catch (...) {
    messages_.pop_back();
    throw;
  }
}

void UrlChat::AskForAnswer() {
  Answer answer;
  EventLines lines;
  std::string raw;  // Where the reply is no stream: an error.
  const int status = Request("POST", "/chat/completions", Body(), [&](std::string_view piece) {
    if (raw.size() < size_t{1} << 16) raw += piece;
    lines.Push(piece, [&](std::string_view data) { answer.Take(data, options_); });
  });
  if (status != 0 && status != 200) {
    FailByReply(raw);
    throw IoError(options_.url, fmt::format("status {}", status));
  }
  Print("\n");
  const std::string tokens =
      answer.num_tokens < 0 ? "" : fmt::format(" {} tokens", answer.num_tokens);
  PrintError(fmt::format("[{}]{}",
                         status == 0             ? "interrupted"
                         : answer.finish.empty() ? "ended"
                                                 : answer.finish,
                         tokens));
  messages_.push_back({"assistant", answer.content});
}

void UrlChat::Run() {
  FindModel();
  if (!options_.message.empty()) {
    CheckUtf8(options_.message, "message");
    messages_.push_back({"user", options_.message});
    AnswerLast();
    return;
  }
  LineEditor editor(DefaultHistoryPath());
  PrintErrorWrapped(
      fmt::format("{} at {}: type a message; /clear starts over, Ctrl-C ends an "
                  "answer, Ctrl-D ends the chat",
                  options_.model, options_.url));
  std::string message;
  while (ReadMessage(editor, "> ", &message) == LineEnd::kLine) {
    if (message.find_first_not_of(" \t\r\n") == std::string::npos) continue;
    editor.Remember(message);
    if (message == "/quit" || message == "/exit") return;
    if (message == "/clear") {
      Clear();
      PrintError("the conversation is empty");
      continue;
    }
    try {
      CheckUtf8(message, "message");
      messages_.push_back({"user", message});
      AnswerLast();
    } catch (const Error& error) {
      PrintError(error.what());
    }
    if (!IsCancelled(InterruptFlag())) continue;
    if (TerminationRequested() || !StdinIsTerminal()) return;
    ClearInterrupt();
  }
}

}  // namespace

void AddChat(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand(
      "chat", "chat with a server that speaks OpenAI's API (with a model: pmkvq run --chat)");
  command->add_option("--url", options->url,
                      "address of the server, http://127.0.0.1:8080/v1 [required]");
  command
      ->add_option("--api-key", options->api_key,
                   "key for the server (default: OPENAI_API_KEY, which ps does not show)")
      ->envname("OPENAI_API_KEY");
  NamesFile(command->add_option("--ca-cert", options->ca_cert,
                                "PEM file with the certificate that an https server's leads to "
                                "(default: those of the system)"),
            FileKind::kInput);
  command->add_option("--model", options->model, "model of the server (default: its first one)");
  command->add_option("--system", options->system, "system message");
  command->add_option("--temperature", options->temperature, "0 for the likeliest tokens")
      ->transform(DecimalNumber(0, 2));
  command->add_option("--top-p", options->top_p, "least probability of the tokens drawn from")
      ->transform(DecimalNumber(0, 1));
  command->add_option("--seed", options->seed, "seed, where the server takes one");
  command
      ->add_option("--max-tokens", options->max_tokens,
                   "longest answer in tokens (0: as the server does)")
      ->transform(WholeNumber(0, 1 << 30));
  command->add_flag("--hide-reasoning", options->hides_reasoning, "show answers only");
  command->add_option("message", options->message, "one message; without it a chat");
  AddExamples(*command, {"pmkvq chat --url http://127.0.0.1:8080/v1",
                         "pmkvq chat --url https://api.example.org/v1 --model NAME \"Hello\""});
  command->callback([options] {
    if (options->url.empty()) {
      throw CLI::RequiredError("--url (to chat with a model without a server: pmkvq run)");
    }
    UrlChat(*options).Run();
  });
}

}  // namespace pmkvq::cli
