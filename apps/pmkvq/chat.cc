#include "chat.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <optional>

#include "chat_settings.h"
#include "common_options.h"
#include "line_editor.h"
#include "pmkvq/base/byte_size.h"
#include "pmkvq/base/nearest_name.h"
#include "pmkvq/base/random.h"
#include "pmkvq/io/file.h"
#include "pmkvq/io/json.h"
#include "pmkvq/io/utf8.h"
#include "run_observer.h"
#include "terminal.h"

namespace pmkvq::cli {
namespace {

constexpr int64_t kSession = PromptCache::kSession;

// A person at a terminal pressed it; SIGTERM and a signal to a piped chat are for the program.
bool CtrlCIsForTheChat() { return StdinIsTerminal() && !TerminationRequested(); }

// What ChatLoop::ConversationText gives.
std::vector<ChatMessage> ReadMessages(const JsonValue& conversation) {
  const JsonValue list = conversation.At("messages");
  std::vector<ChatMessage> messages;
  for (size_t i = 0; i < list.size(); ++i) {
    const JsonValue role = list.At(i).At("role");
    const std::string name = role.AsString();
    if (name != "user" && name != "assistant" && (name != "system" || i > 0)) {
      role.Fail("\"user\" or \"assistant\", or \"system\" for the first message");
    }
    messages.push_back({name, list.At(i).At("content").AsString()});
  }
  return messages;
}

class ChatLoop {
 public:
  ChatLoop(const ChatOptions& options, Engine& engine, const Tokenizer& tokenizer, StatsFile* stats)
      : options_(options),
        engine_(engine),
        tokenizer_(tokenizer),
        stats_(stats),
        settings_{options.request.sampling, options.request.seed, options.request.max_tokens},
        system_(options.system),
        editor_(DefaultHistoryPath()) {
    Clear();
  }

  void Run();

 private:
  using Clock = std::chrono::steady_clock;
  struct Command {
    const char* name;
    const char* argument;  // As /help shows it; "" for none.
    const char* help;
    void (ChatLoop::*run)(const std::string& argument);
  };
  static const std::vector<Command>& Commands();

  void Loop();
  void Resume();
  // Makes these the conversation; `path` is where they are from.
  void TakeUp(std::vector<ChatMessage> messages, const std::string& path);
  std::string ConversationText() const;
  std::string Prompt() const;
  void RunCommand(const std::string& line);
  // Answers the messages so far; false when there is no answer, and the last message is dropped.
  bool Answer();
  void Clear();

  void Help(const std::string&);
  void ClearAll(const std::string&) {
    Clear();
    PrintError("the conversation is empty");
  }
  void Set(const std::string& argument) {
    PrintError(argument.empty() ? settings_.Describe() : settings_.Set(argument));
  }
  void Show(const std::string&);
  void Save(const std::string& path);
  void Load(const std::string& path);
  void Regenerate(const std::string&);
  void System(const std::string& text);
  void Quit(const std::string&) { ended_ = true; }

  const ChatOptions& options_;
  Engine& engine_;
  const Tokenizer& tokenizer_;
  StatsFile* stats_;
  ChatSettings settings_;
  std::string system_;
  LineEditor editor_;
  std::vector<ChatMessage> messages_;
  std::optional<KvSequenceStats> kv_;  // After the last answer; empty: nothing is cached.
  uint64_t num_answers_ = 0;
  // A Ctrl-C before this was meant for an answer that has ended meanwhile.
  Clock::time_point late_until_;
  bool ended_ = false;
};

const std::vector<ChatLoop::Command>& ChatLoop::Commands() {
  static const std::vector<Command> commands = {
      {"help", "", "this list", &ChatLoop::Help},
      {"clear", "", "start over with an empty conversation", &ChatLoop::ClearAll},
      {"regen", "", "answer the last message again, with another seed", &ChatLoop::Regenerate},
      {"system", "TEXT", "another system message (none without TEXT); starts over",
       &ChatLoop::System},
      {"set", "NAME VALUE", "change how tokens are drawn; without arguments: the values",
       &ChatLoop::Set},
      {"show", "", "settings, conversation and cache", &ChatLoop::Show},
      {"save", "FILE", "write the conversation as JSON", &ChatLoop::Save},
      {"load", "FILE", "go on with a conversation that /save wrote", &ChatLoop::Load},
      {"quit", "", "end (also /exit, Ctrl-D, Ctrl-C at an empty prompt)", &ChatLoop::Quit},
  };
  return commands;
}

void ChatLoop::Clear() {
  messages_.clear();
  if (!system_.empty()) messages_.push_back({"system", system_});
  engine_.CloseSession(kSession);
  kv_.reset();
}

std::string ChatLoop::Prompt() const {
  if (!editor_.edits() || !kv_) return "> ";
  return fmt::format("[{} of {}] > ", FormatByteSize(kv_->bytes),
                     FormatByteSize(kv_->budget_bytes));
}

void ChatLoop::Run() {
  Resume();
  Loop();
  // An answer that failed has closed the sequence.
  if (kv_) options_.prompt_cache.Save(engine_, ConversationText());
}

// Goes on with the conversation of --prompt-cache.
void ChatLoop::Resume() {
  const std::optional<SavedSession> saved = options_.prompt_cache.Load(engine_, {});
  if (!saved) return;
  kv_ = saved->kv;
  if (saved->note.empty()) return;  // Saved without a conversation.
  const std::string& path = options_.prompt_cache.path;
  TakeUp(ReadMessages(JsonValue::Parse(saved->note, path)), path);
}

void ChatLoop::Loop() {
  PrintErrorWrapped(
      "type a message; /help lists commands, Ctrl-C ends an answer, Ctrl-D ends the chat");
  while (!ended_) {
    std::string message;
    const LineEnd end = ReadMessage(editor_, Prompt(), &message);
    if (end == LineEnd::kEndOfInput) return;
    if (end == LineEnd::kInterrupted) {
      if (CtrlCIsForTheChat() && Clock::now() < late_until_) {
        ClearInterrupt();
        late_until_ = {};
        PrintErrorWrapped("the answer had ended; Ctrl-C at an empty prompt ends the chat");
        continue;
      }
      // On a terminal Ctrl-C at the prompt is a usual way out; elsewhere the run was interrupted.
      if (CtrlCIsForTheChat()) ClearInterrupt();
      return;
    }
    if (message.find_first_not_of(" \t\r\n") == std::string::npos) continue;
    editor_.Remember(message);
    if (message[0] == '/' && message.find('\n') == std::string::npos) {
      try {
        RunCommand(message);
      } catch (const Error& error) {
        PrintError(error.what());
      }
    } else {
      messages_.push_back({"user", message});
      Answer();
    }
    if (IsCancelled(InterruptFlag())) return;  // Not ended by Answer: SIGTERM, or no terminal.
  }
}

void ChatLoop::RunCommand(const std::string& line) {
  const size_t blank = std::min(line.find_first_of(" \t"), line.size());
  std::string name = line.substr(1, blank - 1);
  if (name == "exit" || name == "bye") name = "quit";
  if (name == "reset") name = "clear";
  const size_t begin = line.find_first_not_of(" \t", blank);
  std::string argument = begin == std::string::npos ? "" : line.substr(begin);
  argument.erase(argument.find_last_not_of(" \t") + 1);
  for (const Command& command : Commands()) {
    if (name != command.name) continue;
    if (*command.argument == '\0' && !argument.empty()) {
      PrintError(fmt::format("/{} takes no argument, found \"{}\"", name, argument));
      return;
    }
    (this->*command.run)(argument);
    return;
  }
  std::vector<std::string> names;
  for (const Command& command : Commands()) names.push_back(fmt::format("/{}", command.name));
  const std::string nearest = NearestName("/" + name, names);
  PrintErrorWrapped(fmt::format(
      "unknown command /{}{} {}. A message that begins with / needs a blank before it", name,
      nearest.empty() ? "; there are" : fmt::format(": did you mean {}? There are", nearest),
      fmt::join(names, " ")));
}

bool ChatLoop::Answer() {
  Completion answer;
  try {
    CheckUtf8(messages_.back().content, "message");
    Request request = options_.request;
    request.sampling = settings_.sampling;
    request.max_tokens = settings_.max_tokens;
    request.seed = StreamSeed(settings_.seed, num_answers_);
    request.prompt_ids = tokenizer_.Encode(options_.chat_template.Render(messages_, true));
    request.session = kSession;
    RunOutput output;
    output.in_thinking = EndsInThinking(tokenizer_, request.prompt_ids);
    output.budget_remedy = options_.budget_remedy;
    RunObserver observer(engine_, output, stats_);
    answer = engine_.Generate({std::move(request)}, &observer, InterruptFlag()).front();
  } catch (const InvalidInput& error) {  // Too long for the budget, say: the chat goes on.
    PrintError(fmt::format("{}; the message is dropped, /clear starts over", error.what()));
    messages_.pop_back();
    return false;
  }
  if (answer.finish_reason == FinishReason::kError) {
    PrintError(fmt::format("{}; the message is dropped, /clear starts over", answer.error));
    messages_.pop_back();
    kv_.reset();  // The engine closed the sequence; the next answer prefills the whole
                  // conversation.
    return false;
  }
  ++num_answers_;
  if (answer.finish_reason != FinishReason::kCancelled) {
    late_until_ = Clock::now() + std::chrono::seconds(1);
  }
  kv_ = answer.kv;
  messages_.push_back({"assistant", answer.text});
  if (IsCancelled(InterruptFlag()) && CtrlCIsForTheChat()) ClearInterrupt();
  return true;
}

void ChatLoop::Help(const std::string&) {
  for (const Command& command : Commands()) {
    const std::string call = fmt::format("/{} {}", command.name, command.argument);
    PrintErrorWrapped(command.help, fmt::format("  {:<18} ", call));
  }
  const std::string indent = "  ";
  PrintErrorWrapped(
      fmt::format("Several lines: {}end a line with \\, or write them between \"\"\" lines.",
                  editor_.edits() ? "paste them, " : ""),
      indent);
  if (!editor_.edits() || editor_.history_path().empty()) return;
  PrintErrorWrapped(fmt::format("Messages are kept in {} for the arrow keys; PMKVQ_HISTORY names "
                                "another file, or none when it is empty.",
                                editor_.history_path()),
                    indent);
}

void ChatLoop::Show(const std::string&) {
  PrintError(settings_.Describe());
  PrintError(fmt::format("system: {}", system_.empty() ? "none" : system_));
  PrintError(fmt::format("messages: {}", messages_.size() - (system_.empty() ? 0 : 1)));
  if (!kv_) {
    PrintError("cache: empty");
    return;
  }
  PrintError(fmt::format("cache: {} tokens, {} of {}, pages {}", kv_->num_tokens,
                         FormatByteSize(kv_->bytes), FormatByteSize(kv_->budget_bytes),
                         FormatPages(kv_->pages)));
}

void ChatLoop::Save(const std::string& path) {
  if (path.empty()) throw InvalidInput("/save", "found no file name, expected /save FILE");
  WriteFileAtomically(path, ConversationText() + "\n");
  PrintError(fmt::format("{} messages are in {}", messages_.size(), path));
}

std::string ChatLoop::ConversationText() const {
  JsonWriter json(2);
  json.BeginObject().Key("messages").BeginArray();
  for (const ChatMessage& message : messages_) {
    json.BeginObject();
    json.Key("role").String(message.role).Key("content").String(message.content);
    json.EndObject();
  }
  json.EndArray().EndObject();
  return json.text();
}

void ChatLoop::Load(const std::string& path) {
  if (path.empty()) throw InvalidInput("/load", "found no file name, expected /load FILE");
  TakeUp(ReadMessages(JsonValue::ParseFile(path)), path);
  engine_.CloseSession(kSession);
  kv_.reset();
  if (!messages_.empty() && messages_.back().role == "user") Answer();
}

void ChatLoop::TakeUp(std::vector<ChatMessage> messages, const std::string& path) {
  const bool has_system = !messages.empty() && messages.front().role == "system";
  system_ = has_system ? messages.front().content : "";
  messages_ = std::move(messages);
  PrintError(fmt::format("{} messages from {}", messages_.size(), path));
}

void ChatLoop::Regenerate(const std::string&) {
  const bool answered = !messages_.empty() && messages_.back().role == "assistant";
  if (!answered) {
    PrintError("there is no answer yet");
    return;
  }
  if (settings_.sampling.temperature == 0) {
    PrintError("temperature 0 gives the same answer again; /set temperature 0.6 draws another");
  }
  const ChatMessage before = messages_.back();
  messages_.pop_back();
  const ChatMessage question = messages_.back();
  if (!Answer()) {
    messages_.push_back(question);
    messages_.push_back(before);
  }
}

void ChatLoop::System(const std::string& text) {
  system_ = text;
  Clear();
  PrintError(text.empty() ? "no system message; the conversation is empty"
                          : "the system message is set; the conversation is empty");
}

}  // namespace

void Chat(const ChatOptions& options, Engine& engine, const Tokenizer& tokenizer,
          StatsFile* stats) {
  ChatLoop(options, engine, tokenizer, stats).Run();
}

}  // namespace pmkvq::cli
