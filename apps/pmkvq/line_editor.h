// Reads messages of a chat: with line editing, history and multi-line paste on a terminal
// (libedit), plain lines otherwise.
#pragma once

#include <memory>
#include <string>

namespace pmkvq::cli {

enum class LineEnd {
  kLine,         // A line was read; it may be empty.
  kEndOfInput,   // Ctrl-D at an empty prompt, or the end of piped input.
  kInterrupted,  // Ctrl-C at an empty prompt. With text on the line, Ctrl-C drops the text only.
};

class LineEditor {
 public:
  // `history_path`: file that keeps the history between runs; "": none. A file that cannot be read
  // or written is no error: the history then lasts as long as the program.
  explicit LineEditor(const std::string& history_path);
  ~LineEditor();
  LineEditor(const LineEditor&) = delete;
  LineEditor& operator=(const LineEditor&) = delete;

  // Shows `prompt` and reads one line without its line break. A pasted text is one line that holds
  // line breaks (bracketed paste). Text comes as UTF-8; control characters but tab are dropped from
  // pastes, so that a pasted text cannot steer the terminal.
  // Threads: one thread; the interrupt flag of terminal.h is cleared after Ctrl-C.
  LineEnd Read(const std::string& prompt, std::string* line);

  // Adds a message to the history that the arrow keys go through.
  void Remember(const std::string& message);

  // False for piped input and TERM=dumb: prompts should then stay plain.
  bool edits() const;
  // Where messages are kept between runs; "": nowhere.
  const std::string& history_path() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// $XDG_STATE_HOME/pmkvq/chat_history, or ~/.local/state/pmkvq/chat_history; "" without a home.
// $PMKVQ_HISTORY wins; an empty $PMKVQ_HISTORY turns the file off.
std::string DefaultHistoryPath();

// Reads one message: a line, lines that end in a backslash joined with the next, or a block between
// lines that begin and end with """. kLine: `message` is complete, line breaks inside it are "\n".
LineEnd ReadMessage(LineEditor& editor, const std::string& prompt, std::string* message);

}  // namespace pmkvq::cli
